"""What a row is: where a model's logits have their classes, declared and never guessed.

Algorithm 1 works on rows, (..., B, K), and leading dimensions are independent problems. A model of
tokens or pixels gives one problem with a row for each of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saflex.errors import ShapeError
from saflex.settings import CHOICES, require_choice

__all__ = ["Layout"]

_SHAPES = {
    "samples": ("(B, K)", 2),
    "tokens": ("(B, T, K), classes last", 3),
    "pixels": ("(B, K, H, W), classes second", 3),
    "stack": ("(R, B, K), R independent models", 3),
}


@dataclass(frozen=True)
class Layout:
    """The shape of logits, by name.

    Attributes
    ----------
    name : "samples", "tokens", "pixels" or "stack"
        (B, K); (B, T, ..., K), a row for each token; (B, K, H, ...), a row for each pixel; or
        (R, B, K), R models side by side, each of which gets what it would get alone.
    """

    name: str

    def __post_init__(self) -> None:
        require_choice("layout", self.name, CHOICES["layout"])

    @property
    def batch_dimension(self) -> int:
        """Where inputs, labels and weights have their samples."""
        return 1 if self.name == "stack" else 0

    def num_classes(self, logits: Tensor) -> int:
        return logits.shape[1 if self.name == "pixels" else -1]

    def label_shape(self, logits: Tensor, *, soft: bool) -> torch.Size:
        """Shape of the labels that belong to `logits`, which must have this layout."""
        self.require(logits)
        return logits.shape if soft else self._without_classes(logits.shape)

    def require(self, logits: Tensor) -> None:
        """Refuse logits of another shape.

        Raises
        ------
        ShapeError
        """
        expected, ndim = _SHAPES[self.name]
        fits = logits.ndim >= ndim if self.name in ("tokens", "pixels") else logits.ndim == ndim
        if not fits:
            others = ", ".join(
                f"{name!r} for {shape}" for name, (shape, _) in _SHAPES.items() if name != self.name
            )
            raise ShapeError(
                f"the model gave logits of shape {tuple(logits.shape)}, and layout={self.name!r} "
                f"expects {expected}. Declare what they are: layout={others}."
            )
        if self.num_classes(logits) < 2:
            raise ShapeError(
                f"the model gave logits of shape {tuple(logits.shape)}, of one class: there is nothing "
                "to choose. A binary model needs two outputs, (B, 2)."
            )

    def rows(self, values: Tensor) -> Tensor:
        """Logits, labels or Pi as rows, (..., B, K)."""
        if self.name == "tokens":
            return values.flatten(0, -2)
        if self.name == "pixels":
            return values.movedim(1, -1).flatten(0, -2)
        return values

    def rows_of_weights(self, values: Tensor) -> Tensor:
        """Weights or hard labels as (..., B)."""
        return values.flatten() if self.name in ("tokens", "pixels") else values

    def as_given(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        """Rows in the layout of logits of `shape`: the inverse of `rows`."""
        if self.name == "pixels":
            return rows.view(*self._without_classes(shape), rows.shape[-1]).movedim(-1, 1)
        return rows.view(*shape[:-1], rows.shape[-1])

    def weights_as_given(self, w: Tensor, shape: Sequence[int]) -> Tensor:
        return w.view(*self._without_classes(shape))

    def _without_classes(self, shape: Sequence[int]) -> torch.Size:
        kept = (*shape[:1], *shape[2:]) if self.name == "pixels" else shape[:-1]
        return torch.Size(kept)
