"""Line 1 of Algorithm 1 over time: when the validation gradient is renewed and how it is smoothed.

gradient of one validation batch -> mean over ranks -> exponential average -> optimiser's metric.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from saflex.errors import NonFiniteGradientError
from saflex.estimators import finite_difference, last_layer
from saflex.forward import ModelView, unwrapped
from saflex.gradient import Tangent, gradient_norm, non_finite_message, validation_gradient
from saflex.losses import Loss
from saflex.passes import undisturbed
from saflex.precondition import preconditioned, require_known_optimizer
from saflex.settings import SaflexSettings
from saflex.structures import map_tensors
from saflex.validation import ValidationSource

__all__ = ["Fresh", "ValidationDirection", "averaged_over_ranks"]

# On an accelerator the flag is read this rarely: reading waits for the device.
_REFRESHES_BETWEEN_CHECKS = 100


class Fresh(NamedTuple):
    """The last validation batch of this rank, and its gradient before any averaging."""

    x: Any
    y: Tensor
    gradient: Tangent


class ValidationDirection:
    """The direction v of Algorithm 1's line 3, renewed every r steps.

    Parameters
    ----------
    model : nn.Module
    source : ValidationSource
    settings : SaflexSettings
    optimizer : torch.optim.Optimizer or None
        Whose metric is used, with ``settings.precondition``.
    loss : callable or None
        Validation loss ``(logits, y) -> scalar``.
    group : torch.distributed.ProcessGroup or None
        Ranks that share one gradient.

    Attributes
    ----------
    gradient, tangent : dict of str to Tensor
        g after averaging, and v, which is g in the optimiser's metric.
    fresh : Fresh or None
        What the last refresh was made of; whoever has read it may set it to None.
    fd_step : float or None
        The finite-difference step in use.
    """

    def __init__(
        self,
        model: nn.Module,
        source: ValidationSource,
        settings: SaflexSettings,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        loss: Loss | None = None,
        group: Any = None,
    ) -> None:
        self.model, self.source, self.settings = unwrapped(model), source, settings
        self.optimizer, self.loss, self.group = optimizer, loss, group
        if settings.precondition:
            require_known_optimizer(optimizer)
        self.classifier, self.fd_step = settings.classifier, settings.fd_step
        self.fresh: Fresh | None = None
        self.gradient: Tangent = {}
        self.tangent: Tangent = {}
        self.norm = torch.zeros((), device="cpu")
        self.steps = self.refreshes = 0
        self._rows: tuple[Any, Tensor] | None = None
        self._trained: dict[str, tuple[nn.Parameter, torch.Size]] = {}
        self._average: Tangent = {}
        self._joined: dict[str, int] = {}
        self._non_finite: Tensor | None = None

    def __call__(self) -> Tangent:
        """The tangent of this step."""
        due = self.steps % self.settings.refresh_every == 0 or not self.tangent
        if due or not self._is_of(ModelView(self.model)):
            self._refresh()
        self.steps += 1
        return self.tangent

    def signature(self) -> tuple[Any, ...]:
        """What the tangent depends on besides numbers: it was checked for this, or for another."""
        trained = ((name, id(p), shape) for name, (p, shape) in self._trained.items())
        return (*trained, id(self.optimizer), self.settings.estimator, self.classifier)

    def _is_of(self, view: ModelView) -> bool:
        """Whether the tangent belongs to what is trained: a layer may be unfrozen or replaced."""
        return view.trainable.keys() == self._trained.keys() and all(
            p is view.trainable[name] and p.shape == shape
            for name, (p, shape) in self._trained.items()
        )

    def _refresh(self) -> None:
        view = ModelView(self.model)
        params = view.require_trainable()
        for name, (p, _) in self._trained.items():
            if params.get(name) is not p:  # another layer of this name shares no past
                self._average.pop(name, None)
        self._trained = _with_shapes(params)
        g = self.batch_gradient()
        self.fresh = None if self._rows is None else Fresh(*self._rows, g)
        if self.group is not None:
            g = averaged_over_ranks(g, self.group)
        norm = self.norm_of(g)
        g = self._without_non_finite(g, torch.isfinite(norm).all())
        self.refreshes += 1
        self.gradient = self._smoothed(g)
        self.norm = self.norm_of(self.gradient) if self.settings.ema else norm
        self.tangent = (
            preconditioned(
                self.gradient, params, self.optimizer, stack=self.settings.layout == "stack"
            )
            if self.settings.precondition
            else self.gradient
        )
        if self.settings.estimator == "finite-difference" and self.fd_step is None:
            with undisturbed(view):
                x = self._rows[0]
                self.fd_step = finite_difference.settled_step(view, x, self.tangent).step

    def batch_gradient(self) -> Tangent:
        """The gradient of the next validation batch alone: what a stack of models overrides."""
        device = next(p.device for p in self.model.parameters() if p.requires_grad)
        x, y = self.source.next()
        # The batches of a user's loader are ours to move: nobody else sees them.
        x, y = map_tensors((x, y), lambda t: t.detach().to(device, non_blocking=True))
        self._rows = x, y
        if self.settings.estimator != "last-layer":
            return validation_gradient(self.model, x, y, loss=self.loss, check=False)
        if self.classifier is None:
            self.classifier = last_layer.classifier_name(self.model, x)
        return last_layer.classifier_gradient(
            self.model, x, y, classifier=self.classifier, loss=self.loss
        )

    def norm_of(self, g: Tangent) -> Tensor:
        """Euclidean norm of a gradient, a scalar; a stack of R models gives its R norms."""
        return gradient_norm(g)

    def _without_non_finite(self, g: Tangent, finite: Tensor) -> Tangent:
        """Raise at once on the CPU; elsewhere use a zero direction now and raise at the next check.

        A zero direction means Pi = 0: labels fall back to their prior, no NaN reaches the model.
        """
        if finite.device.type == "cpu":
            if not finite:
                raise NonFiniteGradientError(non_finite_message(g))
            return g
        self._note_non_finite(~finite)
        if self.refreshes % _REFRESHES_BETWEEN_CHECKS == 0:
            self.raise_if_non_finite()
        return {name: torch.where(finite, v, 0.0) for name, v in g.items()}

    def without_non_finite(self, pi: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """Pi and p of rows that are numbers: raise on the CPU, elsewhere 0 and even, and raise later.

        One row that is not would spoil the deviation that Pi of all rows is divided by.
        """
        finite = torch.isfinite(pi).all(-1, keepdim=True) & torch.isfinite(p).all(-1, keepdim=True)
        if pi.device.type == "cpu":
            if not finite.all():
                rows = (~finite).nonzero()[:, -2].tolist()
                raise NonFiniteGradientError(
                    f"Pi or the logits are not finite in {len(rows)} of {finite.numel()} augmented "
                    f"rows, first {rows[:3]}. Look for NaN in those inputs, or a diverged model."
                )
            return pi, p
        self._note_non_finite(~finite.all())
        return torch.where(finite, pi, 0.0), torch.where(finite, p, 1 / p.shape[-1])

    def _note_non_finite(self, broken: Tensor) -> None:
        self._non_finite = broken if self._non_finite is None else self._non_finite | broken

    def raise_if_non_finite(self) -> None:
        """Read the flag of accelerators (waits for the device)."""
        if self._non_finite is not None and bool(self._non_finite):
            self._non_finite = None
            raise NonFiniteGradientError(
                "a validation gradient or an augmented row since the last check was not finite; zeros "
                "were used in its place. Look for NaN in the inputs, a diverged model, or "
                "overflow under float16 (use bfloat16 or float32)."
            )

    def _smoothed(self, g: Tangent) -> Tangent:
        decay = self.settings.ema
        if decay == 0:
            return g
        # By name: a layer may be frozen, unfrozen or replaced by one of another width meanwhile.
        for name, v in g.items():
            if name not in self._average or self._average[name].shape != v.shape:
                self._average[name], self._joined[name] = torch.zeros_like(v), self.refreshes - 1
        # New tensors: the last tangent may still be in somebody's hands.
        mean = torch._foreach_lerp([self._average[name] for name in g], list(g.values()), 1 - decay)
        self._average = dict(zip(g, mean, strict=True))
        # As in Adam: an average that starts at zero is too small by a known factor.
        corrections = [1 - decay ** (self.refreshes - self._joined[name]) for name in g]
        return dict(zip(g, torch._foreach_div(mean, corrections), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """All that decides the next tangents."""
        return {
            "steps": self.steps,
            "refreshes": self.refreshes,
            "made_with": self._made_with(),
            "classifier": self.classifier,
            "gradient": _copied(self.gradient),
            "tangent": _copied(self.tangent),
            "average": _copied(self._average),
            "joined": dict(self._joined),
            "fd_step": self.fd_step,
            "source": self.source.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`, on the device of the model."""
        self.source.load_state_dict(state["source"])
        s, params = self.settings, ModelView(self.model).require_trainable()

        def own(tangent: Tangent) -> Tangent:
            # Parameters that are frozen by now have no place in it.
            return {n: v.to(params[n].device).clone() for n, v in tangent.items() if n in params}

        self.steps, self.refreshes = state["steps"], state["refreshes"]
        self.classifier = s.classifier or state["classifier"]
        self.fd_step = s.fd_step or state["fd_step"]
        self.gradient, self._average = own(state["gradient"]), own(state["average"])
        self._joined = dict(state["joined"])
        # Of other parameters, or made in another way: the next step makes one anew.
        self._trained = _with_shapes(params) if state["tangent"] else {}
        same = state.get("made_with") == self._made_with()
        self.tangent = own(state["tangent"]) if same else {}
        if self.gradient:
            self.norm = self.norm_of(self.gradient)

    def _made_with(self) -> list[Any]:
        """What a saved tangent must share with a resumed run to be used there; plain values."""
        s = self.settings
        shapes = [[name, list(shape)] for name, (_, shape) in self._trained.items()]
        return [shapes, s.estimator, s.precondition, self.classifier]


def averaged_over_ranks(g: Tangent, group: Any) -> Tangent:
    """Mean of every rank's validation gradient, in one collective: all refine against the same."""
    flat = torch.cat([v.reshape(-1) for v in g.values()])
    dist.all_reduce(flat, group=group)
    flat /= dist.get_world_size(group)
    parts = flat.split([v.numel() for v in g.values()])
    return {
        name: part.view(v.shape).to(v.dtype)
        for (name, v), part in zip(g.items(), parts, strict=True)
    }


def _copied(tangent: Tangent) -> Tangent:
    return {name: v.detach().clone() for name, v in tangent.items()}


def _with_shapes(params: dict[str, nn.Parameter]) -> dict[str, tuple[nn.Parameter, torch.Size]]:
    return {name: (p, p.shape) for name, p in params.items()}
