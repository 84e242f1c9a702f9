"""The refined batch of Equation (1), and the one loss every batch is trained with (Equation 7)."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from saflex.errors import LabelError, SettingError, ShapeError
from saflex.structures import joined_inputs

__all__ = ["Batch", "soft_cross_entropy", "soft_rows"]

# A soft label is written by somebody's mixup, often in float32 or bfloat16.
_ROW_SUM_TOLERANCE = 1e-2


class Batch(NamedTuple):
    """Inputs, soft labels and sample weights: what an upstream makes and a refiner returns.

    Attributes
    ----------
    x
        Inputs, anything the model takes.
    y : Tensor, shape (..., B, K)
        Soft labels; every row sums to 1.
    w : Tensor, shape (..., B)
        Sample weights in [0, 1], summing to 1 over B, or all 0 where a refiner rejected every
        sample (the loss term is then exactly 0). With class weights they sum to one over the mean
        class weight of the upstream's labels (see `saflex.losses`).
    """

    x: Any
    y: Tensor
    w: Tensor

    @classmethod
    def uniform(cls, x: Any, y: Tensor, num_classes: int | None = None) -> "Batch":
        """A batch nobody has refined: the labels as given, every weight 1/B.

        Parameters
        ----------
        x
            Inputs.
        y : Tensor, shape (..., B) of integers or (..., B, K) of floats
            Hard or soft labels.
        num_classes : int, optional
            K; required with hard labels.

        Raises
        ------
        LabelError, ShapeError
            See `soft_rows`.
        """
        rows = soft_rows(y, num_classes, dtype=_label_dtype(x))
        return cls(x, rows, torch.full_like(rows[..., 0], 1.0 / max(rows.shape[-2], 1)))

    @classmethod
    def joined(
        cls, clean: "Batch", augmented: "Batch", *, share: float = 0.5, dim: int | None = None
    ) -> "Batch":
        """The union of a clean and a refined batch, what Equation (3) trains on.

        Parameters
        ----------
        clean, augmented : Batch
            Their inputs must have the same structure, and the same shape but for the rows.
        share : float in [0, 1]
            Of the loss that the clean rows have; the rest is the augmented rows'.
        dim : int, optional
            Dimension of the rows in every tensor; the last one of w if not given.

        Returns
        -------
        Batch
            The clean rows first; weights ``share * clean.w`` and ``(1 - share) * augmented.w``.

        Raises
        ------
        SettingError, ShapeError
        """
        if not 0 <= share <= 1:
            raise SettingError(
                f"share={share!r}: expected the clean rows' part of the loss, 0 to 1."
            )
        dim = clean.w.ndim - 1 if dim is None else dim
        return cls(
            joined_inputs([clean.x, augmented.x], dim=dim),
            torch.cat([clean.y, augmented.y], dim),
            torch.cat([share * clean.w, (1 - share) * augmented.w], dim),
        )


def soft_cross_entropy(
    logits: Tensor,
    y: Tensor,
    w: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Weighted cross-entropy with soft labels, ``-sum_i w_i sum_k c_k y_ik log p_ik`` (Equation 7).

    Parameters
    ----------
    logits : Tensor, shape (..., B, K)
    y : Tensor, shape (..., B, K)
        Soft labels.
    w : Tensor, shape (..., B), optional
        Sample weights; 1/B each if not given.
    weight : Tensor, shape (K,), optional
        Class weights c, which multiply and do not normalise; 1 each if not given.
    label_smoothing : float in [0, 1]
        Share s of the uniform label: ``(1 - s) y + s / K`` is trained on.

    Returns
    -------
    Tensor, scalar
        Summed over leading dimensions, so that each model of a stack gets its own gradient.

    Raises
    ------
    ShapeError
        If the three do not fit together.
    """
    if logits.shape != y.shape:
        raise ShapeError(
            f"logits have shape {tuple(logits.shape)} and y has {tuple(y.shape)}: both must be "
            "(..., B, K). Hard labels become rows with Batch.uniform(x, y, num_classes=K)."
        )
    if w is not None and w.shape != y.shape[:-1]:
        raise ShapeError(f"w has shape {tuple(w.shape)}, expected {tuple(y.shape[:-1])}.")
    if label_smoothing:
        y = (1 - label_smoothing) * y + label_smoothing / y.shape[-1]
    if weight is not None:
        y = y * weight.to(y)
    # A class that a model has masked out (logit -inf) and that no label wants costs nothing.
    per_sample = -torch.where(y != 0, y * torch.log_softmax(logits, -1), 0.0).sum(-1)
    return per_sample.mean(-1).sum() if w is None else (w * per_sample).sum()


def soft_rows(
    y: Tensor,
    num_classes: int | None = None,
    *,
    dtype: torch.dtype | None = None,
    check: bool = True,
) -> Tensor:
    """Labels of either kind as rows of the simplex.

    Parameters
    ----------
    y : Tensor, shape (..., B) of integers or (..., B, K) of floats
    num_classes : int, optional
        K. Required with hard labels; with soft ones their width must equal it.
    dtype : torch.dtype, optional
        Of the result; the default floating type, or that of soft `y`, if not given.
    check : bool
        Look at the values. This waits for the device, so a training loop on an accelerator
        checks once and then no more; an unchecked label out of range gives a row of zeros.

    Raises
    ------
    LabelError
        Labels outside 0..K-1, negative entries, or rows that do not sum to 1.
    ShapeError
        Soft labels of another width than K, or hard labels without K.
    """
    _require_labels(y)
    if not y.is_floating_point():
        return _one_hot_rows(y, num_classes, dtype or torch.get_default_dtype(), check)
    if y.ndim < 2 or (num_classes is not None and y.shape[-1] != num_classes):
        expected = "K" if num_classes is None else num_classes
        raise ShapeError(
            f"soft labels have shape {tuple(y.shape)}, expected (..., B, {expected}). If these are "
            "class numbers, pass them as integers (y.long()); if the model's last layer has "
            "another width than the labels, change one of them."
        )
    if check and y.numel():
        _check_distribution(y)
    return y if dtype is None else y.to(dtype)


def _require_labels(y: Any) -> None:
    if not isinstance(y, Tensor):
        raise LabelError(
            f"labels are a {type(y).__name__}, expected a tensor: pass torch.as_tensor(y)."
        )
    if y.dtype == torch.bool or y.is_complex():
        raise LabelError(
            f"labels have type {y.dtype}, expected class numbers (integers) or rows of "
            "probabilities (floats): y.long() for two classes, y.float() for one-hot rows."
        )


def _one_hot_rows(y: Tensor, num_classes: int | None, dtype: torch.dtype, check: bool) -> Tensor:
    if num_classes is None:
        raise ShapeError("hard labels need num_classes: pass num_classes=K, or soft rows (B, K).")
    if check and y.numel():
        low, high = (int(v) for v in torch.aminmax(y))
        if low < 0 or high >= num_classes:
            raise LabelError(
                f"labels run from {low} to {high}, expected 0 to {num_classes - 1} for "
                f"{num_classes} classes. Ignored samples (such as -100) need "
                "loss=nn.CrossEntropyLoss(ignore_index=...); otherwise check that the model has as "
                "many outputs as there are classes."
            )
    # Compared rather than scattered: a bad label on a GPU must not kill the device context.
    return (y.unsqueeze(-1) == torch.arange(num_classes, device=y.device)).to(dtype)


def _check_distribution(y: Tensor) -> None:
    off = (y.detach().sum(-1) - 1).abs().max().item()
    low = y.detach().min().item()
    if not off <= _ROW_SUM_TOLERANCE or low < 0:
        raise LabelError(
            f"rows of y must be probabilities: the worst row sum is off by {off:.3g} and the "
            f"smallest entry is {low:.3g}. Normalise them (y / y.sum(-1, keepdim=True)), or pass "
            "softmax(logits) where logits were passed. Several true classes a sample (multi-label) "
            "and regression have no such rows: SAFLEX's labels are distributions over K classes."
        )


def _label_dtype(x: Any) -> torch.dtype:
    exact = (torch.float32, torch.float64)
    return x.dtype if isinstance(x, Tensor) and x.dtype in exact else torch.get_default_dtype()
