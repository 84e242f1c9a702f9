"""LP-FT (Kumar et al. 2022): a linear probe first, then fine-tune image tower and head together."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import nn

from benchmarks.refiners import Context, Refiner
from benchmarks.registry import register
from benchmarks.tasks.image_text import require_towers

# A class without training rows gets this much less than the lowest fitted intercept.
ABSENT_MARGIN = 10.0


NEEDS = {"model": "pairs"}
LIMITS = {"iterations": {"ge": 1}}


@register("lp-ft")
class LpFt(Refiner):
    """Cross-entropy on a linear head over normalised image features; the text tower is not used.

    The head starts as the zero-shot head, which is its end of weight ensembling (Wortsman et al.
    2022); the probe replaces it before the first step.

    Parameters
    ----------
    strengths : inverse regularisation strengths C of the probe, chosen on id_val by accuracy, over
        features scaled to the model's logit scale.
    iterations : limit of the solver.
    """

    def __init__(
        self,
        context: Context,
        *,
        strengths: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0),
        iterations: int = 300,
    ):
        super().__init__(context)
        require_towers(context.model)
        self.strengths, self.iterations = tuple(strengths), iterations
        model = context.model
        with torch.no_grad():
            weight = model.text_head()
        model.head = nn.Linear(weight.shape[1], weight.shape[0]).to(weight.device)
        with torch.no_grad():
            model.head.weight.copy_(weight)
            model.head.bias.zero_()
        context.optimizer.add_param_group({"params": list(model.head.parameters())})
        self.probe: dict[str, float] = {}

    def begin_epoch(self, epoch: int) -> None:
        """Fit the linear probe before the first epoch."""
        if epoch > 0:
            return
        model, data = self.context.model, self.context.data
        scale = model.scale.detach().float().item()
        x, y = model.features(data.train.x, data.normalize).numpy(), data.train.y.cpu().numpy()
        val_x = model.features(data.validation.x, data.normalize).numpy()
        val_y = data.validation.y.cpu().numpy()
        best = -1.0
        for strength in self.strengths:
            fitted = LogisticRegression(C=strength, max_iter=self.iterations)
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", ConvergenceWarning
                )  # the probe is a start, not an end
                fitted.fit(scale * x, y)
            accuracy = float((fitted.predict(scale * val_x) == val_y).mean())
            if accuracy > best:
                best = accuracy
                self.probe = {"probe_strength": strength, "probe_val_accuracy": accuracy}
                self._set_head(fitted, scale)

    def diagnostics(self) -> dict[str, float]:
        return dict(self.probe)

    def state_dict(self) -> dict[str, Any]:
        return {"probe": self.probe}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.probe = dict(state["probe"])

    def _set_head(self, fitted: LogisticRegression, scale: float) -> None:
        """Take over the probe; scikit-learn fits only the classes that have training rows."""
        weight, bias = fitted.coef_, fitted.intercept_
        if len(fitted.classes_) == 2:  # one row for both
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        head = self.context.model.head
        with torch.no_grad():
            head.weight.zero_()
            head.bias.fill_(float(bias.min()) - ABSENT_MARGIN)
            rows = torch.as_tensor(fitted.classes_, device=head.weight.device)
            head.weight[rows] = torch.as_tensor(scale * weight).to(head.weight)
            head.bias[rows] = torch.as_tensor(bias).to(head.bias)
