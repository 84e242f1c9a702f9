"""Demo images: scikit-learn's 8x8 digits enlarged to 28x28x3, so that no download is needed; in no table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.datasets.scikit_learn import content_hash
from benchmarks.registry import register

if TYPE_CHECKING:
    from benchmarks.data import Data

__all__ = ["content_hash", "load"]

SIDE = 28


OFFERS = ("image",)


@register("digits-images")
def load(name: str, *, seed: int, limit: int | None = None, label_noise: float = 0.0) -> Data:
    """Enlarge the 1,797 digits bilinearly and split them 65/15/20, stratified, by seed.

    Parameters
    ----------
    limit : training images kept, drawn by class proportion.
    label_noise : share in [0, 1] of the training labels replaced by another class.
    """
    import torch
    from sklearn import __version__, datasets

    from benchmarks.data import Data, Split
    from benchmarks.datasets import small_images
    from benchmarks.datasets.tabular import split_indices

    bunch = datasets.load_digits()
    grey = torch.from_numpy(bunch.images).float()[:, None] * (255 / 16)
    large = torch.nn.functional.interpolate(grey, size=(SIDE, SIDE), mode="bilinear")
    x = large.round().to(torch.uint8).repeat(1, 3, 1, 1)
    y = torch.from_numpy(bunch.target.astype("int64"))
    train, validation, test = (
        Split(x[rows], y[rows]) for rows in split_indices(y.numpy(), name, seed)
    )
    train = small_images.part(train, name, seed=seed, limit=limit, purpose="limit")
    train = small_images.noisy(train, name, seed=seed, num_classes=10, share=label_noise)
    return Data(
        name=name,
        train=train,
        validation=validation,
        test=test,
        num_classes=10,
        kind="image",
        class_names=tuple(str(label) for label in bunch.target_names),
        normalize=small_images.normalize,
        notes=("digits-images: scikit-learn's 8x8 digits enlarged to 28x28",),
        provenance={"scikit-learn": __version__},
    )
