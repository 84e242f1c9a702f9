"""The self-check: is the directional derivative of this model the one its gradient promises?

For the direction v in use and the rows behind the fresh gradient g, the chain rule says

    <dL_val/dz, J_z v> = <g, v>.

The left side comes from the estimator of Pi, the right one from the backward pass: two ways through
the model that agree only if both are right. What the equation cannot see (0 = 0) needs a second
look: g against autograd on the model as it stands, and no trained tensor that no name reaches.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from saflex.direction import Fresh, ValidationDirection
from saflex.errors import CheckError, SaflexError
from saflex.estimators import finite_difference, last_layer
from saflex.forward import ModelView, logits_of
from saflex.gradient import Tangent, gradient_of, validation_gradient
from saflex.leaves import require_apart, require_known_leaves
from saflex.losses import mean_cross_entropy
from saflex.passes import is_shared, undisturbed
from saflex.precision import DIFFERENCE, EXACT, Noted, Tolerance, lowest_precision
from saflex.products import logit_derivatives
from saflex.settings import CHOICES, require_choice
from saflex.transpose import Combination, Gap, exact, random_combinations, require_transpose

__all__ = ["CHECKS", "SelfCheck"]

CHECKS = ("first", "always", "never")

#: By how much of itself a finite difference may change when its step is halved.
_HALVING = 0.1


class SelfCheck:
    """Runs the check when it is due, and is silent unless something is wrong.

    Parameters
    ----------
    mode : "first", "always" or "never"
        "first": at the first step, and again when the set of trained parameters, the optimiser or
        the estimator changes. Costs two or three refinements once and waits for the device then.
        Parameters that had no part in it yet (behind a head that begins at zero) are looked at by
        themselves once they have one, at refreshes that lie twice as far apart each time.
    """

    def __init__(self, mode: str) -> None:
        require_choice("check", mode, CHECKS)
        self.mode = mode
        self._passed: tuple[Any, ...] | None = None
        self._open: set[str] = set()
        self._precision, self._refreshes, self._due = "", 0, False
        self._logits_passed = False

    def __call__(
        self, direction: ValidationDirection, x: Any = None, logits: Tensor | None = None
    ) -> None:
        """Check the last refresh of `direction`, and given logits of x, where that is due.

        Raises
        ------
        CheckError
            Saying which part is off, and which estimator would do.
        """
        if self.mode == "never":
            return
        fresh, direction.fresh = direction.fresh, None
        again = self.mode == "always" or self._passed != direction.signature()
        with self._renewed_after_an_error(direction):
            names = None if again or fresh is None else self._open_and_moving(direction, fresh)
            self._due = fresh is not None and (again or bool(names))
            if self._due:
                self._check(direction, fresh, names)
            reads_logits = direction.settings.estimator == "finite-difference"
            if logits is not None and reads_logits and (again or not self._logits_passed):
                _require_logits(direction, x, logits)
                self._logits_passed = True

    def rows(self, direction: ValidationDirection, x: Any, dz: Tensor) -> None:
        """Compare the derivative of the augmented rows' logits too, where the check was due.

        Another batch may take another way through a model than the validation rows.
        """
        if self._due:
            s, view = direction.settings, ModelView(direction.model)
            with self._renewed_after_an_error(direction):
                tangent = direction.tangent
                require_transpose(view, x, tangent, dz, estimator=s.estimator, count=1)

    @contextmanager
    def _renewed_after_an_error(self, direction: ValidationDirection) -> Iterator[None]:
        """Whoever catches the error and goes on gets a new gradient, and the same check of it."""
        try:
            yield
        except BaseException:
            self._passed, direction.tangent = None, {}
            raise

    def _check(self, direction: ValidationDirection, fresh: Fresh, names: set[str] | None) -> None:
        view = ModelView(direction.model)
        precision, draws = _second_look(direction, view, fresh)
        if direction.settings.estimator == "finite-difference":
            _require_settled(direction, view, fresh, precision)
        gap = _identity(direction, fresh, precision, draws, names=names)
        if not gap.small:
            raise CheckError(_diagnosis(direction, fresh, gap, precision, draws))
        if names is None:
            self._open, self._precision, self._refreshes = set(direction.tangent), precision, 0
        for g in (fresh.gradient, *(draw.gradient for draw in draws)):
            self._open -= _seen(direction, g, names or self._open, precision)
        self._passed = direction.signature()

    def _open_and_moving(self, direction: ValidationDirection, fresh: Fresh) -> set[str]:
        """Parameters that no check has seen and that are more than rounding by now."""
        self._refreshes += 1
        if not self._open or self._refreshes & (self._refreshes - 1):
            return set()  # looking waits for the device: at refreshes 1, 2, 4, 8, ...
        least = _tolerance(direction.settings.estimator, self._precision).floor ** 0.5
        found = set(self._open)
        for g in (fresh.gradient, direction.tangent):
            sizes = {name: exact(t).norm().item() for name, t in g.items()}
            found = {n for n in found if sizes[n] > least * max(sizes.values())}
        return found


def _seen(direction: ValidationDirection, g: Tangent, names: set[str], precision: str) -> set[str]:
    """Parameters whose part of ``<g, v>`` is so large that the equation fails without it."""
    parts = {n: (exact(g[n]) * exact(direction.tangent[n])).abs().sum().item() for n in names}
    least = _tolerance(direction.settings.estimator, precision).relative * sum(parts.values())
    return {n for n, part in parts.items() if part > least}


def _tolerance(estimator: str, precision: str) -> Tolerance:
    return (DIFFERENCE if estimator == "finite-difference" else EXACT)[precision]


def _require_logits(direction: ValidationDirection, x: Any, logits: Tensor) -> None:
    """Check that given logits are those of the model as it is, in evaluation mode, on these inputs.

    Raises
    ------
    CheckError
        If a one-sided difference with them is another one than with the model's own.
    """
    view = ModelView(direction.model)
    with undisturbed(view):
        own = logits_of(view.model, x).detach()
    given = logits.detach()
    if given.shape == own.shape:
        view, slopes = ModelView(direction.model), []
        with undisturbed(view):
            for z in (given.to(own.dtype), own):
                slopes.append(
                    finite_difference.derivative(
                        view, x, direction.tangent, step=direction.fd_step, logits=z
                    )[1].double()
                )
        size = torch.linalg.vector_norm(slopes[1])
        if not torch.linalg.vector_norm(slopes[0] - slopes[1]) > _HALVING * size:
            return
    raise CheckError(
        f"self-check: logits={tuple(given.shape)} {given.dtype} are not those of the model on these "
        f"inputs (they differ by up to {_largest(given, own)}). Finite differences need them from "
        "evaluation mode, at the current parameters, without autocast; or leave logits= out."
    )


def _largest(given: Tensor, own: Tensor) -> str:
    if given.shape != own.shape:
        return f"their shape, {tuple(own.shape)} being due"
    return f"{(given.double() - own.double()).abs().max().item():.3g}"


def _identity(
    direction: ValidationDirection,
    fresh: Fresh,
    precision: str,
    draws: Sequence[Combination] = (),
    *,
    names: set[str] | None = None,
    estimator: str | None = None,
) -> Gap:
    """Both sides for v, or for its part in some parameters: of the validation loss, or where
    that agrees of the random combination of logits that does not."""
    s = direction.settings
    estimator = estimator or s.estimator
    v = {n: t for n, t in direction.tangent.items() if names is None or n in names}
    z, dz = logit_derivatives(
        direction.model,
        fresh.x,
        v,
        estimator=estimator,
        classifier=direction.classifier if estimator == "last-layer" else None,
        fd_step=direction.fd_step,
    )
    leaf = z.detach().to(torch.promote_types(z.dtype, torch.float32)).requires_grad_()
    with torch.enable_grad():
        value = (direction.loss or mean_cross_entropy)(leaf, fresh.y)
    (slope,) = torch.autograd.grad(value, leaf)
    slope, dz = exact(slope), exact(dz)
    products = [exact(fresh.gradient[n]) * exact(t) for n, t in v.items()]
    size = sum(p.abs().sum().item() for p in products)
    spread = (torch.linalg.vector_norm(slope) * torch.linalg.vector_norm(dz)).item()
    tolerance = _tolerance(estimator, precision)
    own = Gap(
        of="the validation loss",
        derivative=(slope * dz).sum().item(),
        gradient=sum(p.sum().item() for p in products),
        tolerance=tolerance.relative * size + tolerance.floor * spread,
    )
    gaps = [own, *(draw.gap(dz, v, tolerance) for draw in draws)]
    return next((gap for gap in gaps if not gap.small), own)


def _require_settled(
    direction: ValidationDirection, view: ModelView, fresh: Fresh, precision: str
) -> None:
    with undisturbed(view):
        found = finite_difference.settled_step(
            view, fresh.x, direction.tangent, step=direction.fd_step
        )
    if not found.change > _HALVING:
        return
    given = direction.settings.fd_step
    others = _working(direction, fresh, precision, (), besides="finite-difference")
    mend = " or ".join([*(["fd_step=None, which searches for one"] if given else []), *others])
    raise CheckError(
        f"self-check: halving the step of the finite difference (fd_step={found.step:.1e}) changes "
        f"the derivative by {found.change:.0%}: rounding or kinks decide it. Use "
        f"{mend or 'float32 parameters and no autocast inside the forward'}."
    )


# The second look


def _second_look(
    direction: ValidationDirection, view: ModelView, fresh: Fresh
) -> tuple[str, list[Combination]]:
    """Compare g with autograd on the model as it stands.

    Returns
    -------
    The pass's lowest precision, and the gradient of a random combination of its logits: a fault may
    be orthogonal to the loss's gradient on these rows, hardly to that too.
    """
    trained = list(view.trainable.values())
    require_apart(view.trainable)
    with (
        undisturbed(view),
        _without_hooks(trained),
        _kept(trained),
        _frozen_left_alone(view),
        torch.enable_grad(),
        view.substituted(trained, trained),
    ):
        with Noted(view) as noted:
            logits = logits_of(view.model, fresh.x)
            value = (direction.loss or mean_cross_entropy)(logits, fresh.y)
        require_known_leaves(view, logits, known=[*trained, *noted.made])
        leaves = {name: view.trainable[name] for name in fresh.gradient}
        ordinary = gradient_of(value, leaves, keep_graph=True)
        draws = random_combinations(logits, leaves, count=1)
    precision = lowest_precision(noted.dtypes, view)
    _require_same(fresh.gradient, ordinary, precision)
    return precision, draws


def _require_same(g: Tangent, ordinary: Tangent, precision: str) -> None:
    gaps = {n: (exact(g[n]) - exact(ordinary[n])).norm().item() for n in g}
    sizes = {n: exact(ordinary[n]).norm().item() for n in g}
    whole = sum(size**2 for size in sizes.values()) ** 0.5
    if not sum(gap**2 for gap in gaps.values()) ** 0.5 > EXACT[precision].relative * whole:
        return
    off = sorted(gaps, key=lambda n: -gaps[n])[:3]
    listed = ", ".join(f"{n} ({g[n].norm().item():.3g} for {sizes[n]:.3g})" for n in off)
    raise CheckError(
        "self-check: the validation gradient is not that of the model as it stands; off most in "
        f"{listed}. The forward reaches these parameters by another way than the module's own "
        "attribute (a list, a cache such as parametrize.cached, a copy): use self.name in forward, "
        "nn.ParameterList, or refine outside the cache."
    )


@contextmanager
def _without_hooks(params: Any) -> Iterator[None]:
    """Hooks on the loop's own parameters neither fire nor change what is compared."""
    hooked = [(p, p._backward_hooks) for p in params if p._backward_hooks]
    for p, _ in hooked:
        p._backward_hooks = None
    try:
        yield
    finally:
        for p, hooks in hooked:
            p._backward_hooks = hooks


@contextmanager
def _kept(params: Sequence[Tensor]) -> Iterator[None]:
    """The loop's own parameters are in place here: what a forward writes to them is taken back."""
    found = [(p, p.data, p.detach().clone()) for p in params]
    try:
        yield
    finally:
        for p, home, numbers in found:
            if p.data_ptr() != home.data_ptr():
                p.data = home
            if p.device.type != "meta" and not torch.equal(home, numbers):
                home.copy_(numbers)


@contextmanager
def _frozen_left_alone(view: ModelView) -> Iterator[None]:
    """Refuse a forward that writes into a frozen parameter which is too large for a copy."""

    def sums() -> dict[str, float]:
        shared = {n: p.detach() for n, p in view.frozen.items() if is_shared(p)}
        kinds = {n: torch.promote_types(p.dtype, torch.float32) for n, p in shared.items()}
        return {n: p.sum(dtype=kinds[n]).item() for n, p in shared.items() if p.is_floating_point()}

    before = sums()
    yield
    written = [n for n, after in sums().items() if not (after == before[n] or after != after)]
    if written:
        raise CheckError(
            f"the forward of {type(view.model).__name__} writes into the frozen parameter {written[0]} "
            "in place, and it is too large for a copy in every pass: refining changes it. Point it to "
            f"a new tensor ({written[0]}.data = ...), or change it outside the forward."
        )


# What an error says


def _diagnosis(
    direction: ValidationDirection,
    fresh: Fresh,
    gap: Gap,
    precision: str,
    draws: Sequence[Combination],
) -> str:
    estimator = direction.settings.estimator
    blocks = _blocks(list(direction.tangent))
    off = [
        block
        for block, names in blocks.items()
        if not _identity(direction, fresh, precision, draws, names=names).small
    ]
    others = _working(direction, fresh, precision, draws, besides=estimator)
    mend = (
        f"Use {' or '.join(others)}, which agrees here"
        if others
        else "No estimator agrees: look for torch.no_grad() in the forward (write .detach()), a "
        "backward formula that is not the forward's, or rounding passed straight through"
    )
    return (
        f"self-check: along the direction in use {gap.of} of {type(direction.model).__name__} "
        f"changes by {gap.gradient:.6g} by its gradient and by {gap.derivative:.6g} by "
        f"estimator={estimator!r} ({precision}); the part off is that of {', '.join(off) or 'all'}: "
        f"a tangent is lost or made up between there and the logits. {mend}."
    )


def _blocks(names: list[str]) -> dict[str, set[str]]:
    """Parameters by the module that owns them, at most a dozen groups."""
    for depth in (3, 2, 1):
        blocks: dict[str, set[str]] = {}
        for name in names:
            owner = ".".join(name.split(".")[:-1][:depth]) or name
            blocks.setdefault(owner, set()).add(name)
        if len(blocks) <= 12:
            break
    return blocks


def _working(
    direction: ValidationDirection,
    fresh: Fresh,
    precision: str,
    draws: Sequence[Combination],
    *,
    besides: str,
) -> list[str]:
    """Other estimators that pass on the same rows, as settings."""
    found = []
    for estimator in CHOICES["estimator"]:
        if estimator == besides:
            continue
        try:
            if _passes(direction, fresh, precision, draws, estimator):
                found.append(f"estimator={estimator!r}")
        except (SaflexError, RuntimeError):
            continue  # it says so itself where it is chosen
    return found


def _passes(
    direction: ValidationDirection,
    fresh: Fresh,
    precision: str,
    draws: Sequence[Combination],
    estimator: str,
) -> bool:
    view = ModelView(direction.model)
    other = ValidationDirection(
        direction.model, direction.source, direction.settings.changed(), loss=direction.loss
    )
    if estimator == "last-layer":
        other.classifier = last_layer.classifier_name(view.model, fresh.x)
        g = last_layer.classifier_gradient(
            view.model, fresh.x, fresh.y, classifier=other.classifier, loss=direction.loss
        )
    else:
        g = validation_gradient(view.model, fresh.x, fresh.y, loss=direction.loss, check=False)
    other.tangent = g
    if estimator == "finite-difference":
        with undisturbed(view):
            settled = finite_difference.settled_step(view, fresh.x, g)
        if settled.change > _HALVING:
            return False
        other.fd_step = settled.step
    own = Fresh(fresh.x, fresh.y, g)
    draws = [draw for draw in draws if g.keys() <= draw.gradient.keys()]
    return _identity(other, own, precision, draws, estimator=estimator).small
