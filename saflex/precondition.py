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
    for name, g in tangent.items():
        group = groups.get(id(params[name]))
        if group is None:
            directions[name] = torch.zeros_like(g)
            continue
        share = abs(float(group["lr"])) / fastest if fastest else 1.0
        scaled = g if share == 1 else share * g
        root = _second_moment_root(optimizer.state.get(params[name]) or {}, group)
        directions[name] = scaled if root is None else scaled / root.to(g.dtype)
    return directions


def _second_moment_root(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor | None:
    epsilon = group.get("eps", 1e-8)
    if "exp_avg_sq" in state:
        moment = state.get("max_exp_avg_sq", state["exp_avg_sq"])
        correction = 1 - group["betas"][1] ** state["step"]
        return moment.sqrt() / correction**0.5 + epsilon
    if "square_avg" in state and "acc_delta" not in state:
        return moment_root(state["square_avg"], epsilon)
    if "sum" in state:
        return moment_root(state["sum"], epsilon)
    return None


def moment_root(moment: Tensor, epsilon: float) -> Tensor:
    """``sqrt(moment) + epsilon``, the denominator of RMSprop and Adagrad."""
    return moment.sqrt() + epsilon
