"""The loss of a task, stated once: it decides g, Pi and the loss of the training step alike.

With class weights c, label smoothing s and ignored rows, labels y with weights w cost

    sum_i w_i sum_k c_k t_ik (-log p_ik) / sum_i u_i sum_k c_k q_ik,     t = (1 - s) y + s / K,

where q are the upstream's labels and u is even over the rows that count. The denominator does not
depend on what is learned, so no label is chosen because it makes its own loss smaller. For hard
labels and w = u this is `torch.nn.CrossEntropyLoss`. Soft validation labels are divided by their number,
as torch does; soft upstream labels by their class weights, so that they weigh what hard ones do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saflex.batch import Batch, soft_cross_entropy, soft_rows
from saflex.errors import EmptyValidationError, SettingError, ShapeError
from saflex.layouts import Layout

__all__ = ["CrossEntropy", "Loss", "Watched", "as_loss", "mean_cross_entropy"]

Loss = Callable[[Tensor, Tensor], Tensor]

_NO_CLASSIFICATION = (
    nn.BCELoss, nn.BCEWithLogitsLoss, nn.MultiLabelMarginLoss, nn.MultiLabelSoftMarginLoss,
    nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.PoissonNLLLoss, nn.GaussianNLLLoss,
    nn.CTCLoss,
)  # fmt: skip
_F = nn.functional
_NO_CLASSIFICATION_FUNCTIONS = (
    _F.binary_cross_entropy, _F.binary_cross_entropy_with_logits, _F.multilabel_margin_loss,
    _F.multilabel_soft_margin_loss, _F.mse_loss, _F.l1_loss, _F.smooth_l1_loss, _F.huber_loss,
    _F.poisson_nll_loss, _F.gaussian_nll_loss, _F.ctc_loss,
)  # fmt: skip


def as_loss(loss: Any, *, layout: str = "samples") -> tuple["CrossEntropy", Loss]:
    """The training loss and the validation loss that ``loss=`` asks for.

    Parameters
    ----------
    loss : None, nn.CrossEntropyLoss, `CrossEntropy` or callable
        The settings of a cross-entropy hold for both, and are read at every step: class weights
        may change on the way. A callable ``(logits, y) -> scalar`` is the validation loss alone;
        the training loss is then the plain cross-entropy.
    layout : str
        See `saflex.layouts.Layout`.

    Raises
    ------
    SettingError
        A loss of multi-label classification or regression, one without a mean, or a
        cross-entropy with a forward of its own.
    """
    if isinstance(loss, _NO_CLASSIFICATION) or loss in _NO_CLASSIFICATION_FUNCTIONS:
        name = getattr(loss, "__name__", type(loss).__name__)
        raise SettingError(
            f"loss={name}: SAFLEX chooses one distribution over K classes for each sample, which "
            "multi-label classification and regression do not have. Use it with a cross-entropy, "
            "or with a callable (logits, y) -> scalar over K classes."
        )
    if isinstance(loss, CrossEntropy):
        if loss.layout.name != layout:
            raise SettingError(
                f"loss has layout={loss.layout.name!r} and the settings {layout!r}: they must agree."
            )
        return loss, loss
    if isinstance(loss, nn.CrossEntropyLoss):
        task = _OfModule(loss, layout)
        return task, task
    if isinstance(loss, nn.NLLLoss):
        raise SettingError(
            "loss=NLLLoss(...): expected nn.CrossEntropyLoss with the same settings, which of "
            "log-probabilities is the same number."
        )
    task = CrossEntropy(layout=layout)
    if loss is None:
        return task, task
    if not callable(loss):
        raise SettingError(
            f"loss={loss!r}: expected nn.CrossEntropyLoss(...) or a function (logits, y) -> scalar."
        )
    return task, loss


@dataclass(frozen=True, kw_only=True, eq=False)
class CrossEntropy:
    """Cross-entropy over K classes, as a validation loss and as a training loss.

    Attributes
    ----------
    weight : Tensor, shape (K,), or None
        Class weights c >= 0; (R, 1, K) where the models of a stack have their own.
    label_smoothing : float in [0, 1)
    ignore_index : int or None
        Hard label of rows that do not count; None: there is none, and such a label is an error.
    layout : Layout or its name
        Where the classes are in the logits, and what a row is.
    """

    weight: Tensor | None = None
    label_smoothing: float = 0.0
    ignore_index: int | None = None
    layout: Layout | str = "samples"

    def __post_init__(self) -> None:
        if isinstance(self.layout, str):
            object.__setattr__(self, "layout", Layout(self.layout))
        self._require(self.weight)

    def _require(self, c: Tensor | None) -> None:
        """Refuse class weights that are none; looks at their values."""
        fits = c is None or c.ndim == 1 or (c.ndim == 3 and self.layout.name == "stack")
        if not fits or (c is not None and not bool(((c >= 0) & c.isfinite()).all())):
            raise SettingError(
                f"class weights {c}: expected K finite numbers >= 0, a tensor of shape (K,)."
            )

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        """The validation loss: a mean over rows, summed over a stack's models.

        Parameters
        ----------
        logits : Tensor
            As the model gives them.
        y : Tensor
            Hard labels, shaped like the logits without the classes, or soft ones, shaped like them.

        Raises
        ------
        LabelError, ShapeError, EmptyValidationError
        """
        rows, counted = self.targets(y, logits, check=y.device.type == "cpu")
        w = None
        # As in torch: soft labels are divided by their number, hard ones by their class weights.
        if counted is not None or (self.weight is not None and not y.is_floating_point()):
            w = self.even_weights(rows, counted)
            if w.device.type == "cpu" and not w.any():
                raise EmptyValidationError(
                    f"every label of the validation batch is ignored (ignore_index="
                    f"{self.ignore_index}) or has class weight 0. Pass batches with labels."
                )
        return self._cross_entropy(self.layout.rows(logits), rows, w)

    def targets(
        self, y: Tensor, logits: Tensor, *, check: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Labels as rows (..., B, K), and which of them count (..., B), None for all.

        Ignored rows get the even label. `check` looks at values, which waits for the device.
        """
        if not isinstance(y, Tensor):
            soft_rows(y)  # which says what it expects
        wanted = self.layout.label_shape(logits, soft=y.is_floating_point())
        if y.shape != wanted:
            raise ShapeError(_shape_message(y, logits, wanted, self.layout))
        dtype = torch.promote_types(logits.dtype, torch.float32)
        y = y.detach().to(logits.device)
        if y.is_floating_point():
            rows = self.layout.rows(y)
            return soft_rows(rows, rows.shape[-1], dtype=dtype, check=check), None
        classes = self.layout.num_classes(logits)
        y = self.layout.rows_of_weights(y)
        if self.ignore_index is None:
            return soft_rows(y, classes, dtype=dtype, check=check), None
        counted = y != self.ignore_index
        rows = soft_rows(y.masked_fill(~counted, 0), classes, dtype=dtype, check=check)
        return torch.where(counted.unsqueeze(-1), rows, 1 / classes), counted

    def even_weights(self, rows: Tensor, counted: Tensor | None) -> Tensor:
        """Weights of rows that nobody refined: u over the denominator. Shape (..., B)."""
        return self.over_class_mass(_even(rows, counted), rows, counted)

    def over_class_mass(self, w: Tensor, rows: Tensor, counted: Tensor | None) -> Tensor:
        """Weights w over the denominator ``sum_i u_i sum_k c_k q_ik`` of the upstream's `rows`."""
        if self.weight is None:
            return w
        mass = (_even(rows, counted) * (rows * self._class_weights(rows)).sum(-1)).sum(
            -1, keepdim=True
        )
        return w / torch.where(mass > 0, mass, torch.ones_like(mass))

    def products(self, pi: Tensor) -> Tensor:
        """Pi of this loss from that of the log-probabilities, both (..., B, K).

        ``sum_k t_ik c_k Pi_ik`` is linear in y: its coefficients are returned.
        """
        if self.weight is not None:
            pi = pi * self._class_weights(pi)
        s = self.label_smoothing
        return (1 - s) * pi + s * pi.mean(-1, keepdim=True) if s else pi

    def clean(self, x: Any, y: Tensor, like: Batch) -> Batch:
        """A batch that nobody refined, with labels in the form of those of `like`."""
        shape = list(like.y.shape)
        shape[self.layout.batch_dimension] = len(y.movedim(self.layout.batch_dimension, 0))
        # Only shape, type and device of the logits are read.
        logits = like.y.new_empty(()).expand(shape)
        rows, counted = self.targets(y, logits, check=y.device.type == "cpu")
        w = self.even_weights(rows, counted)
        return Batch(x, self.layout.as_given(rows, shape), self.layout.weights_as_given(w, shape))

    def training_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The loss of a refined batch, in float32 or better; a scalar."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if logits.shape != batch.y.shape:
            raise ShapeError(
                f"the model gave logits of shape {tuple(logits.shape)} and the batch has labels of "
                f"shape {tuple(batch.y.shape)}: pass the batch that those inputs belong to."
            )
        rows, w = self.layout.rows(batch.y), self.layout.rows_of_weights(batch.w)
        return self._cross_entropy(self.layout.rows(logits), rows.to(logits.dtype), w)

    def _cross_entropy(self, logits: Tensor, rows: Tensor, w: Tensor | None) -> Tensor:
        weight = None if self.weight is None else self._class_weights(rows)
        return soft_cross_entropy(
            logits, rows, w, weight=weight, label_smoothing=self.label_smoothing
        )

    def _class_weights(self, rows: Tensor) -> Tensor:
        if self.weight.shape[-1] != rows.shape[-1]:
            raise SettingError(
                f"loss has {self.weight.shape[-1]} class weights and the model {rows.shape[-1]} classes."
            )
        return self.weight.to(rows)


class _OfModule(CrossEntropy):
    """The settings of an `nn.CrossEntropyLoss` as they are now: deferred reweighting replaces them."""

    def __init__(self, module: nn.CrossEntropyLoss, layout: str) -> None:
        kind = type(module)
        if kind.forward is not nn.CrossEntropyLoss.forward or "forward" in vars(module):
            raise SettingError(
                f"loss={kind.__name__}(...) has a forward of its own, which its settings do not tell. "
                "Pass nn.CrossEntropyLoss(...), or a function (logits, y) -> scalar for the "
                "validation loss alone."
            )
        if module.reduction != "mean":
            raise SettingError(
                f"loss={kind.__name__}(reduction={module.reduction!r}): expected reduction='mean'."
            )
        object.__setattr__(self, "module", module)
        object.__setattr__(self, "layout", Layout(layout))
        object.__setattr__(self, "_known", None)
        self.weight  # noqa: B018 (looked at once now)

    @property
    def weight(self) -> Tensor | None:
        c = self.module.weight
        if c is not self._known:  # looking waits for the device
            self._require(c)
            object.__setattr__(self, "_known", c)
        return c

    @property
    def label_smoothing(self) -> float:
        return self.module.label_smoothing

    @property
    def ignore_index(self) -> int:
        return self.module.ignore_index


#: The loss where none is given: the mean over the rows of (B, K) logits.
mean_cross_entropy = CrossEntropy()


class Watched:
    """A validation loss that still knows its last value.

    Attributes
    ----------
    last : Tensor, scalar, or None before the first call
    """

    def __init__(self, loss: Loss) -> None:
        self._loss = loss
        self.last: Tensor | None = None

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        value = self._loss(logits, y)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = (
                f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            )
            raise ShapeError(
                f"the validation loss has {got}, expected one number: reduction='mean', or .mean()."
            )
        self.last = value.detach().reshape(())
        return value


def _even(rows: Tensor, counted: Tensor | None) -> Tensor:
    """u: the same weight for every row that counts, shape (..., B)."""
    if counted is None:
        return torch.full_like(rows[..., 0], 1.0 / max(rows.shape[-2], 1))
    u = counted.to(rows.dtype)
    return u / u.sum(-1, keepdim=True).clamp_min(1)


def _shape_message(y: Tensor, logits: Tensor, wanted: torch.Size, layout: Layout) -> str:
    said = (
        f"labels have shape {tuple(y.shape)} and the model's logits {tuple(logits.shape)}: with "
        f"layout={layout.name!r} labels of type {y.dtype} must have shape {tuple(wanted)}."
    )
    if not y.is_floating_point() and y.shape == logits.shape:
        return f"{said} One-hot rows are floats: pass y.float()."
    if y.is_floating_point() and y.shape == layout.label_shape(logits, soft=False):
        return f"{said} Class numbers are integers: pass y.long()."
    if y.shape[:1] == wanted[:1] and y.ndim == len(wanted):
        return f"{said} The model's last layer has another width than the labels: change one."
    return f"{said} Every input needs one label."
