"""Weight ensembling (Wortsman et al. 2022): theta = (1 - a) theta_zero-shot + a theta_fine-tuned.

The mixing coefficient a is chosen on id_val alone, among 0, 0.1, ..., 1 (protocol, Table 4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

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


class WeightEnsemble:
    """The ensembles of a run's last and of its best epoch with the weights it began with.

    Parameters
    ----------
    model : before its first step.
    """

    def __init__(self, model: nn.Module):
        self.model, self.zero_shot = model, weights_of(model)
        self.best: dict[str, Tensor] = {}

    def note_best(self) -> None:
        """Keep the present weights as those of the best epoch."""
        self.best = weights_of(self.model)

    def measure(
        self,
        score: Callable[[], float],
        evaluate: Callable[[], dict[str, float]],
        *,
        of: Weights | None = None,
    ) -> dict[str, float]:
        """Metrics ``ensemble/...`` of fine-tuned weights, mixed; the model is left as it was.

        Parameters
        ----------
        score, evaluate : of the model as it then is: the validation metric that chooses the
            coefficient, and all metrics.
        of : fine-tuned weights; default: the model's own.
        """
        now = weights_of(self.model)
        fine_tuned = now if of is None else of

        def scored(weights: dict[str, Tensor]) -> float:
            self.model.load_state_dict(weights)
            return score()

        alpha = choose(self.zero_shot, fine_tuned, scored)
        self.model.load_state_dict(interpolate(self.zero_shot, fine_tuned, alpha))
        found = {f"ensemble/{name}": value for name, value in evaluate().items()}
        self.model.load_state_dict(now)
        return {**found, "ensemble/alpha": alpha}

    def state_dict(self) -> dict[str, Any]:
        return self.best

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = {name: weights.cpu() for name, weights in state.items()}
