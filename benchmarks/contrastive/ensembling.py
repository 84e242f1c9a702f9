"""Weight ensembling (Wortsman et al. 2022): theta = (1 - a) theta_zero-shot + a theta_fine-tuned.

The mixing coefficient a is chosen on id_val alone, among 0, 0.1, ..., 1 (protocol, Table 4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

ALPHAS = tuple(step / 10 for step in range(11))

Weights = Mapping[str, Tensor]


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Copy a model's state to host memory."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def interpolate(zero_shot: Weights, fine_tuned: Weights, alpha: float) -> dict[str, Tensor]:
    """Mix two states; what is no floating-point number is taken from the fine-tuned one."""
    return {
        name: (1 - alpha) * zero_shot[name] + alpha * value if value.is_floating_point() else value
        for name, value in fine_tuned.items()
    }


def choose(
    zero_shot: Weights, fine_tuned: Weights, score: Callable[[dict[str, Tensor]], float]
) -> float:
    """Give the mixing coefficient with the highest score, the largest one among equals.

    Parameters
    ----------
    score : of a state, on validation data.
    """
    scores = {alpha: score(interpolate(zero_shot, fine_tuned, alpha)) for alpha in ALPHAS}
    return max(scores, key=lambda alpha: (scores[alpha], alpha))
