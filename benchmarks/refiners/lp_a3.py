"""LP-A3 (Yang et al. 2022a), Table 8: label-preserving adversarial examples as augmentations.

A port of the authors' supervised script to this training loop; they never published a recipe for
MedMNIST. Perturb the inputs so that the features of the four stages move as far as possible while
the predicted class keeps its probability, then train on them through batch normalisation of
their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from benchmarks.errors import BenchmarkError
from benchmarks.refiners import Context, Refiner
from benchmarks.registry import register
from benchmarks.upstream import Augmented
from saflex import Batch

STAGES = ("layer1", "layer2", "layer3", "layer4")
START = 0.01  # the perturbation begins uniform in +-START
PROBE = 0.1  # length of the trial step that measures how fast log p changes
MEMORY_DECAY = 0.01
# Means over steps; the first three are 0 while the warm-up lasts.
DIAGNOSTICS = ("selected", "label_changed", "perturbation_norm", "prediction_change")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the unperturbed inputs give: yhat (B,), log p of every class (B, K), features (B, F)."""

    predicted: Tensor
    log_p: Tensor
    features: Tensor

    def drop(self, log_p: Tensor) -> Tensor:
        """Fall (B,) of the log-probability of the predicted class."""
        return (self.log_p - log_p).gather(1, self.predicted[:, None])[:, 0]


class AdversarialNorms:
    """A second set of batch normalisation for perturbed inputs, swapped in for single passes.

    It normalises by the statistics of its own batch, which is all that training reads of it; the
    network's own set is neither used nor updated meanwhile, and evaluation never sees this one.
    """

    def __init__(self, model: nn.Module):
        found = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.BatchNorm2d)
        }
        if not found or any(not hasattr(model, stage) for stage in STAGES):
            raise BenchmarkError(
                "lp-a3 needs a residual network with batch normalisation and the stages "
                f"{', '.join(STAGES)}, such as resnet18-28; got {type(model).__name__}"
            )
        self.model, self.own = model, found
        self.second = nn.ModuleList(_without_statistics(module) for module in found.values())

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Run the model with the second set."""
        self._place(self.second)
        try:
            yield
        finally:
            self._place(self.own.values())

    def _place(self, modules: Any) -> None:
        for name, module in zip(self.own, modules, strict=True):
            parent, _, attribute = name.rpartition(".")
            setattr(self.model.get_submodule(parent), attribute, module)

    def logits_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and normalised features (B, F) of the four stages, through the second set."""
        maps: list[Tensor] = []
        hooks = [
            getattr(self.model, stage).register_forward_hook(
                lambda module, inputs, output: maps.append(output)
            )
            for stage in STAGES
        ]
        try:
            return self.logits(x), normalized_features(maps)
        finally:
            for hook in hooks:
                hook.remove()

    def logits(self, x: Tensor) -> Tensor:
        """Logits (B, K) through the second set."""
        with self.swapped():
            return self.model(x)


def _without_statistics(module: nn.BatchNorm2d) -> nn.BatchNorm2d:
    copy = nn.BatchNorm2d(module.num_features, eps=module.eps, track_running_stats=False)
    copy.load_state_dict({name: p.detach().clone() for name, p in module.named_parameters()})
    return copy.to(module.weight.device)


def normalized_features(maps: list[Tensor], eps: float = 1e-10) -> Tensor:
    """Flatten feature maps so that their distance is LPIPS-like: unit channels, mean over places.

    Parameters
    ----------
    maps : of each stage (B, C, H, W).
    """
    parts = []
    for stage in maps:
        unit = stage / (stage.square().sum(1, keepdim=True).sqrt() + eps)
        parts.append((unit / (stage.shape[2] * stage.shape[3]) ** 0.5).flatten(1))
    return torch.cat(parts, 1)


def step_size(t: int, steps: int, bound: float) -> float:
    """Step of iteration t: ``b 0.1^(t/T)``, from b down."""
    return bound * 0.1 ** (t / steps)


def multiplier(t: int, steps: int) -> float:
    """Lagrange multiplier of iteration t: ``0.1^(1 - t/T)``, from 0.1 up."""
    return 0.1 ** (1 - t / steps)


def perturbation_loss(
    features: Tensor, log_p: Tensor, reference: Reference, *, bound: float, weight: float
) -> Tensor:
    """``-mean ||phi(x+d) - phi(x)|| + weight mean relu(fall of log p(yhat) - b)``, to be minimised."""
    distance = (features - reference.features).norm(dim=1).mean()
    violation = torch.relu(reference.drop(log_p) - bound).mean()
    return -distance + weight * violation


def prediction_change(memory: Tensor, log_p: Tensor) -> Tensor:
    """Mean over classes of the terms of KL(now || last visit), (B,), from log-probabilities (B, K)."""
    return (log_p.exp() * (log_p - memory)).mean(1)


NEEDS = {"model": "stages"}
LIMITS = {
    "bound": {"gt": 0},
    "steps": {"ge": 1},
    "portion": {"gt": 0, "le": 1},
    "weight": {"ge": 0},
    "warm_up": {"ge": 0},
}


@register("lp-a3")
class LPA3(Refiner):
    """Add the cross-entropy of label-preserving adversarial examples to the task's own.

    Parameters
    ----------
    bound : b, the admitted fall of log p(yhat); the protocol tries 0.002 and 0.02.
    steps : T, iterations of the perturbation.
    weight : of the adversarial loss against the task's (source: 0.5).
    warm_up : epochs before the adversarial loss counts; until then no example is made, which the
        source does to no effect.
    portion : share of the samples, those whose predictions change most, that it counts for.
    """

    def __init__(
        self,
        context: Context,
        *,
        bound: float = 0.002,
        steps: int = 5,
        weight: float = 0.5,
        warm_up: int = 5,
        portion: float = 0.5,
    ):
        super().__init__(context)
        if bound <= 0 or steps < 1 or not 0 < portion <= 1:
            raise BenchmarkError(
                f"lp-a3: bound {bound} must be positive, steps {steps} at least 1 and portion "
                f"{portion} in (0, 1]"
            )
        self.bound, self.steps, self.weight = bound, steps, weight
        self.warm_up, self.portion = warm_up, portion
        data = context.data
        device = data.train.x.device
        self.norms = AdversarialNorms(context.model)
        context.optimizer.add_param_group({"params": list(self.norms.second.parameters())})
        box = torch.tensor([0, 255], dtype=torch.uint8, device=device).view(2, 1, 1, 1)
        self.low, self.high = data.normalize(box.expand(2, data.train.x.shape[1], 1, 1))
        self.generator = torch.Generator(device).manual_seed(context.seed)
        # Training rows, and validation rows where those are trained on too.
        rows = len(data.train) + len(data.validation)
        uniform = -math.log(data.num_classes)
        self.memory = torch.full((rows, data.num_classes), uniform, device=device)
        self.change = torch.zeros(rows, device=device)
        self.seen = torch.zeros(rows, dtype=torch.bool, device=device)
        self.threshold, self.epoch = -1.0, 0
        self.sums = torch.zeros(len(DIAGNOSTICS), device=device)
        self.counted = 0
        self.adversarial: tuple[Batch, Tensor] | None = None

    def begin_epoch(self, epoch: int) -> None:
        """Set the threshold above which a sample's predictions changed enough; none at first."""
        self.epoch = epoch
        seen = self.change[self.seen].sort().values
        if len(seen):
            self.threshold = seen[int((1 - self.portion) * len(seen))].item()

    def __call__(self, augmented: Augmented) -> Batch:
        """Make the adversarial batch, for `loss`; the given one stays as it is."""
        batch = super().__call__(augmented)
        with torch.no_grad():
            logits, features = self.norms.logits_and_features(batch.x)
        log_p = log_softmax(logits.float(), 1)
        reference = Reference(predicted=log_p.argmax(1), log_p=log_p, features=features)
        selected = self._remember(augmented.index, log_p)
        self.adversarial = None
        if self.epoch >= self.warm_up:
            x = self.perturbed(batch.x, reference)
            adversarial = Batch(x, batch.y, batch.w * selected)
            self.adversarial = adversarial, reference.predicted
            self.sums[0] += selected.mean()
            self.sums[2] += (x - batch.x).flatten(1).norm(dim=1).mean()
        return batch

    def perturbed(self, x: Tensor, reference: Reference) -> Tensor:
        """Perturb normalised images x (B, C, H, W) in T steps within the box of possible pixels."""
        low, high = self.low - x, self.high - x
        start = torch.rand(x.shape, generator=self.generator, device=x.device, dtype=x.dtype)
        delta = (2 * START * start - START).clamp(low, high)
        for t in range(self.steps):
            delta.requires_grad_()
            logits, features = self.norms.logits_and_features(x + delta)
            log_p = log_softmax(logits.float(), 1)
            weight = multiplier(t, self.steps)
            loss = perturbation_loss(features, log_p, reference, bound=self.bound, weight=weight)
            (gradient,) = torch.autograd.grad(loss, delta)
            with torch.no_grad():
                norm = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
                direction = -gradient / (norm + 1e-8)
                trial = log_softmax(self.norms.logits(x + delta + PROBE * direction).float(), 1)
                rate = (reference.drop(trial) - reference.drop(log_p)).abs() / PROBE
                size = step_size(t, self.steps, self.bound) / (rate + 1e-4)
                delta = (delta + size.view(-1, 1, 1, 1) * direction).clamp(low, high)
        return (x + delta).detach()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Task loss, plus the weighted adversarial loss after the warm-up."""
        task = super().loss(model, batch)
        if self.adversarial is None:
            return task
        made, predicted = self.adversarial
        logits = self.norms.logits(made.x)
        per_sample = -(made.y * log_softmax(logits, 1)).sum(1)
        if self.context.class_weights is not None:
            per_sample = per_sample * (made.y @ self.context.class_weights)
        with torch.no_grad():
            self.sums[1] += (logits.argmax(1) != predicted).float().mean()
        return task + self.weight * (made.w * per_sample).sum()

    def _remember(self, index: Tensor, log_p: Tensor) -> Tensor:
        """Update the memory of the batch's rows; the samples (B,) selected are those before it."""
        selected = (self.change[index] > self.threshold).to(log_p.dtype)
        now = prediction_change(self.memory[index], log_p)
        self.change[index] = MEMORY_DECAY * self.change[index] + (1 - MEMORY_DECAY) * now
        self.memory[index] = log_p
        self.seen[index] = True
        self.sums[3] += now.mean()
        self.counted += 1
        return selected

    def diagnostics(self) -> dict[str, float]:
        means = (self.sums / max(self.counted, 1)).tolist()
        self.sums, self.counted = torch.zeros_like(self.sums), 0
        return dict(zip(DIAGNOSTICS, means, strict=True))

    def state_dict(self) -> dict[str, Any]:
        return {
            "norms": self.norms.second.state_dict(),
            "generator": self.generator.get_state(),
            "memory": self.memory,
            "change": self.change,
            "seen": self.seen,
            "progress": [self.threshold, self.epoch, self.counted],
            "sums": self.sums,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.norms.second.load_state_dict(state["norms"])
        self.generator.set_state(state["generator"].cpu())
        self.memory, self.change, self.seen = state["memory"], state["change"], state["seen"]
        self.threshold, self.epoch, self.counted = state["progress"]
        self.sums = state["sums"]
