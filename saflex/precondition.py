"""The tangent in the optimiser's metric: ``v = D^-1 g`` with D what the optimiser divides by.

The step that is taken is not ``-alpha g_aug`` but ``-alpha D^-1 g_aug``, so the validation loss
falls by ``alpha <g, D^-1 g_aug> = alpha <D^-1 g, g_aug>``: only the tangent changes.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from saflex.errors import SettingError
from saflex.gradient import Tangent

__all__ = ["preconditioned", "require_known_optimizer"]

State = Mapping[str, Any]


def preconditioned(
    tangent: Tangent,
    params: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    *,
    stack: bool = False,
) -> Tangent:
    """Divide the validation gradient by what the optimiser divides by.

    An optimiser that has not stepped yet divides by 1. Groups with a smaller learning rate count in
    proportion; parameters that the optimiser does not hold never move, so their part is 0. An
    element that no training gradient has reached has no scale of its own: it takes the mean of its
    tensor, and a tensor that none has reached the mean of all, instead of dividing by eps.

    Parameters
    ----------
    tangent : dict of str to Tensor
    params : mapping of str to Parameter
        The same names; identity finds them in the optimiser.
    optimizer : torch.optim.Optimizer
        One of `require_known_optimizer`, in a wrapper of Accelerate, Fabric or Lightning or not.
    stack : bool
        Parameters are those of R models, (R, ...), and each model has means of its own.

    Returns
    -------
    dict of str to Tensor

    Raises
    ------
    SettingError
        An optimiser of another kind, or one that holds none of the parameters.
    """
    optimizer, divisor = require_known_optimizer(optimizer)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    held = {name: groups[id(params[name])] for name in tangent if id(params[name]) in groups}
    if not held:
        raise SettingError(
            f"the {type(optimizer).__name__} holds none of the model's {len(tangent)} trainable "
            "parameters. Pass the optimiser that steps this very model, made after any change of "
            "its parameters (a new head, a move that replaced them)."
        )
    shares = _shares(held)
    directions = {
        name: shares[name] * g if name in held else torch.zeros_like(g)
        for name, g in tangent.items()
    }
    divisors = {}
    for name, group in held.items():
        state = optimizer.state.get(params[name]) or {}
        if divisor is not None and _has_stepped(state):
            # The two parts of a complex number have a moment each.
            divisors[name] = divisor({k: _as_real(v) for k, v in state.items()}, group)
    divided = _divided({n: _as_real(d) for n, d in directions.items()}, divisors, stack=stack)
    return directions | {
        n: torch.view_as_complex(d) if directions[n].is_complex() else d for n, d in divided.items()
    }


def require_known_optimizer(
    optimizer: Any,
) -> tuple[torch.optim.Optimizer, "Callable[[State, State], Tensor] | None"]:
    """The optimiser inside its wrappers, and its rule for D; None: it divides by 1.

    Raises
    ------
    SettingError
        If the rule is not known.
    """
    # AcceleratedOptimizer, Fabric's and Lightning's keep theirs here.
    while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    kind = type(optimizer)
    for base in kind.__mro__:
        # A subclass with a step of its own may divide by anything.
        if base in _RULES and inspect.unwrap(kind.step) is inspect.unwrap(base.step):
            return optimizer, _RULES[base]
    known = ", ".join(base.__name__ for base in _RULES)
    raise SettingError(
        f"what {kind.__module__}.{kind.__name__} divides its gradient by is not known here, so "
        f"inner products cannot be measured in its metric. Use precondition=False, or one of torch's "
        f"{known}."
    )


def _has_stepped(state: State) -> bool:
    # Adagrad has its state before its first step.
    return bool(state) and ("step" not in state or _on_device(state["step"]) or state["step"] > 0)


def _as_real(value: Any) -> Any:
    """A complex tensor as real pairs (..., 2), anything else as it is."""
    if isinstance(value, Tensor) and value.is_complex():
        return torch.view_as_real(value.resolve_conj())
    return value


def _on_device(value: Any) -> bool:
    """Whether reading the number would wait for an accelerator."""
    return isinstance(value, Tensor) and value.device.type != "cpu"


def _number(value: Any) -> float | Tensor:
    return value if _on_device(value) else float(value)


def _shares(held: Mapping[str, State]) -> dict[str, float | Tensor]:
    """Learning rates relative to the fastest group's."""
    rates = {name: abs(_number(group["lr"])) for name, group in held.items()}
    if any(_on_device(rate) for rate in rates.values()):
        device = next(rate.device for rate in rates.values() if _on_device(rate))
        fastest = torch.stack([torch.as_tensor(r, device=device) for r in rates.values()]).amax()
        return {name: rate / fastest for name, rate in rates.items()}
    fastest = max(rates.values())
    return {name: rate / fastest if fastest else 1.0 for name, rate in rates.items()}


def _divided(directions: Tangent, divisors: Mapping[str, Tensor], *, stack: bool) -> Tangent:
    """``g / D``, with the means in place of elements of D that nothing has reached."""
    if not divisors:
        return {}
    # A row for each model, (R, numbers), so that none takes its means from another.
    rows = {n: d.flatten(1) if stack else d.reshape(1, -1) for n, d in divisors.items()}
    sums = {n: torch.where(d > 0, d, 0.0).sum(1) for n, d in rows.items()}
    counts = {n: (d > 0).sum(1).to(sums[n]) for n, d in rows.items()}
    first = next(iter(sums.values()))
    everywhere, count = (
        torch.stack([value.to(first) for value in values.values()]).sum(0)
        for values in (sums, counts)
    )
    everywhere = torch.where(count > 0, everywhere / count.clamp_min(1), 1.0)
    found = {}
    for name, d in rows.items():
        own = sums[name] / counts[name].clamp_min(1)
        mean = torch.where(counts[name] > 0, own, everywhere.to(own)).unsqueeze(1)
        g = directions[name]
        found[name] = g / torch.where(d > 0, d, mean).view_as(g).to(g)
    return found


# What each optimiser of torch divides by; 0 where no gradient has come yet. Bias corrections that
# are the same for every parameter and those of momentum scale the whole of v and are left out.


def _adam(state: State, group: State) -> Tensor:
    moment = state.get("max_exp_avg_sq", state["exp_avg_sq"])
    correction = (1 - group["betas"][1] ** _number(state["step"])) ** 0.5
    return _with_eps(moment.sqrt() / correction, group["eps"])


def _radam(state: State, group: State) -> Tensor:
    beta, step = group["betas"][1], _number(state["step"])
    longest = 2 / (1 - beta) - 1
    length = longest - 2 * step * beta**step / (1 - beta**step)
    rect = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2))
    if isinstance(length, Tensor):
        rect = torch.where(length > 5, rect / length, 1.0).clamp_min(0)
        adapted = _with_eps(state["exp_avg_sq"].sqrt(), group["eps"])
        adapted = adapted / ((1 - beta**step) ** 0.5 * rect**0.5)
        return torch.where(length > 5, adapted, 1.0)
    if length <= 5:  # the first steps are not adaptive
        return torch.ones_like(state["exp_avg_sq"])
    adapted = _with_eps(state["exp_avg_sq"].sqrt(), group["eps"])
    return adapted / ((1 - beta**step) ** 0.5 * (rect / length) ** 0.5)


def _adamax(state: State, group: State) -> Tensor:
    # The running maximum has eps in it from the first step on.
    return torch.where(state["exp_inf"] > group["eps"], state["exp_inf"], 0.0)


def _rmsprop(state: State, group: State) -> Tensor:
    moment = state["square_avg"]
    if group["centered"]:
        moment = (moment - state["grad_avg"].square()).clamp_min(0)
    return torch.where(state["square_avg"] > 0, moment.sqrt() + group["eps"], 0.0)


def _adagrad(state: State, group: State) -> Tensor:
    # Its learning rate falls by a rule of its own, the same for all parameters of a group.
    slower = 1 + (_number(state["step"]) - 1) * group["lr_decay"]
    return _with_eps(state["sum"].sqrt(), group["eps"]) * slower


def _adadelta(state: State, group: State) -> Tensor:
    eps = group["eps"]
    root = (state["square_avg"] + eps).sqrt() / (state["acc_delta"] + eps).sqrt()
    return torch.where(state["square_avg"] > 0, root, 0.0)


def _with_eps(root: Tensor, eps: float) -> Tensor:
    return torch.where(root > 0, root + eps, 0.0)


_RULES: dict[type, Callable[[State, State], Tensor] | None] = {
    torch.optim.SGD: None,
    torch.optim.ASGD: None,
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adam,
    torch.optim.NAdam: _adam,
    torch.optim.RAdam: _radam,
    torch.optim.SparseAdam: _adam,
    torch.optim.Adamax: _adamax,
    torch.optim.RMSprop: _rmsprop,
    torch.optim.Adagrad: _adagrad,
    torch.optim.Adadelta: _adadelta,
}
