"""SAFLEX for image-text training (Section 3; Appendix A, Equations 13 and 14).

A batch of B pairs is a B-class problem: row i of the logit matrix is ``g(I_i) . h(T_j)``, its label
is i. Equal captions are one proxy class: they share its probability evenly.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from saflex.algorithm import Saflex
from saflex.batch import Batch, soft_cross_entropy
from saflex.errors import LabelError, SettingError, ShapeError
from saflex.labels import soft_labels
from saflex.losses import CrossEntropy, Loss

__all__ = [
    "ContrastiveSaflex",
    "ImageTextLogits",
    "caption_rows",
    "contrastive_cross_entropy",
    "tied_labels",
]


class ContrastiveSaflex(Saflex):
    """Refine image-text pairs: ``((images, texts), captions) -> Batch`` with y of shape (B, B).

    The model maps ``(images, texts)`` to the (B, B) logit matrix (see `ImageTextLogits`); captions
    are integers, shape (B,), equal where two pairs have the same caption or class. The validation
    source gives ``((images, texts), captions)`` too. Settings are those of `Saflex`; the paper uses
    ``tau=0.1`` here. Keep captions on the CPU if the GPU must not be waited for.
    """

    def __init__(self, model: nn.Module, **changes: Any) -> None:
        super().__init__(model, **changes)
        if self.memory is not None:
            raise SettingError(
                f"memory={self.settings.memory}: the columns of a contrastive batch are its own "
                "texts, so there is nothing to average between batches. Set memory=None."
            )

    def _losses(self, loss: Any) -> tuple[CrossEntropy, Loss]:
        if isinstance(loss, nn.Module):
            raise SettingError(
                f"loss={type(loss).__name__}(...): image-text training has its own loss, Equation 13 "
                "in both directions. A function (logits, captions) -> scalar replaces it for the "
                "validation gradient."
            )
        if self.settings.layout != "samples":
            raise SettingError(
                f"layout={self.settings.layout!r}: expected 'samples', the (B, B) matrix."
            )
        return _ImageTextLoss(), loss or _ImageTextLoss()

    def _chosen(self, score: Tensor, upstream: Tensor, y_aug: Tensor, **settings: Any) -> Tensor:
        return tied_labels(score, y_aug, **settings)


class _ImageTextLoss(CrossEntropy):
    """The loss of Equation 13, with captions as labels."""

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        return contrastive_cross_entropy(logits, caption_rows(y, logits.dtype))

    def targets(
        self, y: Tensor, logits: Tensor, *, check: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        if logits.shape[-1] != logits.shape[-2]:
            raise ShapeError(
                f"the model returned logits of shape {tuple(logits.shape)}, expected a square "
                "(B, B) matrix of images against texts. Wrap the two towers in ImageTextLogits."
            )
        if y.shape != logits.shape[:1] or y.is_floating_point():
            raise LabelError(
                f"captions have shape {tuple(y.shape)} and type {y.dtype}, expected "
                f"{logits.shape[0]} integers, equal for equal captions (torch.arange(B) if all "
                "differ)."
            )
        dtype = torch.promote_types(logits.dtype, torch.float32)
        return caption_rows(y.to(logits.device), dtype), None

    def clean(self, x: Any, y: Tensor, like: Batch) -> Batch:
        raise SettingError(
            "clean= would put clean pairs among the texts of the augmented ones. Add the two losses: "
            "share * contrastive_cross_entropy(model(x), caption_rows(y)) + (1 - share) * "
            "refine.loss(model, batch)."
        )

    def training_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return contrastive_cross_entropy(logits, batch.y.to(logits), batch.w.to(logits))


def tied_labels(
    pi: Tensor, captions: Tensor, *, probabilities: Tensor | None = None, **settings: Any
) -> Tensor:
    """Soft rows over the B texts, choosing among distinct captions and sharing evenly among ties.

    Parameters
    ----------
    pi : Tensor, shape (B, B)
    captions : Tensor of integers, shape (B,)
    probabilities : Tensor, shape (B, B), optional
        Row softmax of the logit matrix.
    **settings
        Of `saflex.soft_labels`.

    Returns
    -------
    Tensor, shape (B, B)
        Rows sum to 1; columns of equal captions are equal.
    """
    distinct, position = torch.unique(captions, return_inverse=True)
    member = torch.nn.functional.one_hot(position, len(distinct)).to(pi)
    size = member.sum(0)
    labels = soft_labels(
        # The gain of a class is the mean over its texts, because its label is spread evenly.
        pi @ (member / size),
        member,
        probabilities=None if probabilities is None else probabilities @ member,
        **settings,
    )
    return (labels / size) @ member.T


def caption_rows(captions: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Upstream labels of a contrastive batch: even over all texts with the pair's own caption.

    Parameters
    ----------
    captions : Tensor of integers, shape (B,)

    Returns
    -------
    Tensor, shape (B, B)
    """
    tied = (captions.unsqueeze(-1) == captions.unsqueeze(-2)).to(dtype)
    return tied / tied.sum(-1, keepdim=True)


def contrastive_cross_entropy(logits: Tensor, y: Tensor, w: Tensor | None = None) -> Tensor:
    """Equation 13 with the soft rows and weights of Equation 14, both directions added.

    Text-to-image uses the transposed labels, rows normalised; a text that no image is labelled with
    contributes nothing there.

    Parameters
    ----------
    logits, y : Tensor, shape (B, B)
        Images in rows, texts in columns.
    w : Tensor, shape (B,), optional
        Weight of each pair, used in both directions; 1/B if not given.

    Returns
    -------
    Tensor, scalar
    """
    if logits.shape != y.shape or logits.shape[-1] != logits.shape[-2]:
        raise ShapeError(
            f"logits have shape {tuple(logits.shape)} and y {tuple(y.shape)}: both must be (B, B)."
        )
    wanted = y.transpose(-2, -1)
    mass = wanted.sum(-1, keepdim=True)
    rows = wanted / torch.where(mass > 0, mass, torch.ones_like(mass))
    return soft_cross_entropy(logits, y, w) + soft_cross_entropy(logits.transpose(-2, -1), rows, w)


class ImageTextLogits(nn.Module):
    """A CLIP-like model as a function ``(images, texts) -> logit matrix``.

    Parameters
    ----------
    towers : nn.Module
        Called as ``towers(images, texts)``; returns normalised image features, text features and
        the logit scale (and possibly a bias), as a tuple or as open_clip's dict, or an output with
        ``logits_per_image`` (Hugging Face's CLIP and SigLIP).
    """

    def __init__(self, towers: nn.Module) -> None:
        super().__init__()
        self.towers = towers

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        out = self.towers(*pair)
        if isinstance(out, Mapping):
            if out.get("logits_per_image") is not None:
                return out["logits_per_image"]
            needed = ("image_features", "text_features", "logit_scale")
            if missing := [key for key in needed if key not in out]:
                raise ShapeError(
                    f"the towers returned a {type(out).__name__} with {list(out)}, without {missing}: "
                    f"expected {', '.join(needed)} (and logit_bias), or logits_per_image."
                )
            out = tuple(out[key] for key in (*needed, "logit_bias") if key in out)
        image, text, scale, *bias = out
        logits = scale * image @ text.transpose(-2, -1)
        return logits + bias[0] if bias else logits
