"""The tangent in the optimiser's metric: ``v = D^-1 g`` with D the root of its second moment.

The step that is taken is not ``-alpha g_aug`` but ``-alpha D^-1 g_aug``, so the validation loss
falls by ``alpha <g, D^-1 g_aug> = alpha <D^-1 g, g_aug>``: only the tangent changes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from saflex.gradient import Tangent

__all__ = ["preconditioned"]


def preconditioned(
    tangent: Tangent, params: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> Tangent:
    """Divide the validation gradient by what the optimiser divides by.

    Adam and its kin (bias correction and AMSGrad's maximum included), RMSprop and Adagrad are
    recognised by their state; any other optimiser, or one that has not stepped yet, divides by 1.
    Groups with a smaller learning rate count in proportion; parameters that the optimiser does not
    hold never move, so their part is 0.

    Parameters
    ----------
    tangent : dict of str to Tensor
    params : mapping of str to Parameter
        The same names; identity finds them in the optimiser.
    optimizer : torch.optim.Optimizer

    Returns
    -------
    dict of str to Tensor
    """
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    fastest = max((abs(float(g["lr"])) for g in optimizer.param_groups), default=0.0)
    directions: Tangent = {}
    moments, corrections, epsilons = {}, {}, {}
    for name, g in tangent.items():
        group = groups.get(id(params[name]))
        if group is None:
            directions[name] = torch.zeros_like(g)
            continue
        share = abs(float(group["lr"])) / fastest if fastest else 1.0
        directions[name] = g if share == 1 else share * g
        found = _second_moment(optimizer.state.get(params[name]) or {}, group)
        if found is not None:
            moments[name], corrections[name] = found
            epsilons[name] = group.get("eps", 1e-8)
    if moments:
        roots = torch._foreach_div(
            torch._foreach_sqrt(list(moments.values())), list(corrections.values())
        )
        torch._foreach_add_(roots, list(epsilons.values()))
        divided = torch._foreach_div([directions[name] for name in moments], roots)
        directions.update(zip(moments, divided, strict=True))
    return directions


def _second_moment(
    state: Mapping[str, Any], group: Mapping[str, Any]
) -> tuple[Tensor, float] | None:
    """The moment whose root the optimiser divides by, and what divides that root in turn."""
    if "exp_avg_sq" in state:
        moment = state.get("max_exp_avg_sq", state["exp_avg_sq"])
        # The step counter lives on the CPU unless the optimiser is capturable or fused.
        return moment, (1 - group["betas"][1] ** float(state["step"])) ** 0.5
    if "square_avg" in state and "acc_delta" not in state:
        return state["square_avg"], 1.0
    if "sum" in state:
        return state["sum"], 1.0
    return None
