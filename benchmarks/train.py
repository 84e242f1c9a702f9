"""The one training loop: Equation (1) is its data flow, Equation (3) its loss.

clean batch -> upstream -> refiner -> one loss -> optimiser. Every method of every table runs through
`Training.step`; they differ in the refiner alone, and what is trained in the task
(`benchmarks.tasks`).
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import metrics, registry
from benchmarks.data import Data, Split
from benchmarks.errors import BenchmarkError
from benchmarks.models.ensembling import WeightEnsemble
from benchmarks.refiners import Context, Refiner
from benchmarks.seeds import derive
from benchmarks.spec import Recipe, RunSpec
from benchmarks.tasks import Classification
from benchmarks.upstream import Augmented
from saflex import Batch, SaflexError

LOSS_CHECK = 50  # steps between looks at the losses: each look waits for the device
EVALUATION_BATCH = 2048


class NonFiniteLoss(BenchmarkError):
    """The loss became NaN or infinite; the run is recorded as failed with the step."""


class Interrupted(Exception):
    """The run was asked to stop; its checkpoint is written."""


class Training:
    """One run: model, optimiser, upstream, refiner and everything a resumed run needs.

    Its length is a number of optimiser steps that depends on the training split alone: a row that
    trains on other rows goes through those in as many steps, of the same sizes.

    Parameters
    ----------
    spec : decides every setting.
    data : already on its device.

    Attributes
    ----------
    train : the rows that are trained on, `settings.train_on`.
    length : rows of an epoch, those of the training split.
    seen : augmented and refined batch of the last step, for whoever looks on from `after_step`.
    """

    def __init__(self, spec: RunSpec, data: Data):
        data = metrics.checked(data, spec.metric)
        self.spec, self.recipe = spec, spec.settings.recipe
        self.device, self.length = data.train.x.device, len(data.train)
        # Of the training split, whatever rows are trained on: the same loss for every method.
        self.class_weights = _class_weights(data) if self.recipe.class_weights else None
        if spec.settings.train_on == "validation":
            data = data.validation_only()
        self.train = _rows(data, spec.settings.train_on)
        if absent := metrics.absent_classes(self.train.y, data):
            rows = f"the rows of {spec.settings.train_on} ({len(self.train):,})"
            note = f"{data.name}: {rows}, which are trained on, have none of {absent}"
            data = replace(data, notes=(*data.notes, note))
        self.data = data
        torch.manual_seed(self.seed("init"))
        settings = spec.settings
        self.model = build("models", settings.model, data).to(self.device)
        if self.recipe.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(self.model, self.recipe)
        task = getattr(self.model, "task", Classification)
        self.task: Classification = task(self.model, data, self._autocast)
        self.upstream = build("upstream", settings.upstream, data)
        self.generators = {
            purpose: torch.Generator(self.device).manual_seed(self.seed(purpose))
            for purpose in ("upstream", "validation", *self.task.streams)
        }
        self.refiner: Refiner = build("refiners", settings.refiner, self._context())
        # Its coefficient is chosen on validation rows: not on those that were trained on.
        ensembled = getattr(self.model, "ensemble", False) and not spec.trains_on_validation
        self.ensemble = WeightEnsemble(self.model) if ensembled else None
        torch.manual_seed(self.seed("dropout"))
        self.epoch = self.step_in_epoch = self.steps = 0
        self.losses: list[Tensor] = []
        self.curves: dict[str, list[float]] = defaultdict(list)
        self.seconds: dict[str, float] = defaultdict(float)
        self.best: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self.epoch_loss = (0.0, 0)
        self.clock = time.perf_counter()

    def run(self, *, after_step: Callable[[Training], None] = lambda training: None) -> None:
        """Train to the last epoch; `after_step` may write a checkpoint or raise `Interrupted`."""
        if not self.refiner.trains and not self.last:
            self.epoch = self.recipe.epochs
            self.evaluate()
        every = self.recipe.evaluate_every or math.ceil(self.recipe.epochs / 100)
        while self.epoch < self.recipe.epochs:
            self._run_epoch(after_step)
            self.epoch, self.step_in_epoch = self.epoch + 1, 0
            if self.epoch % every == 0 or self.epoch == self.recipe.epochs:
                self.evaluate()
        if self.ensemble:
            self._measure_ensemble()

    def _run_epoch(self, after_step: Callable[[Training], None]) -> None:
        if self.step_in_epoch == 0:
            self.refiner.begin_epoch(self.epoch)
        self.upstream.begin_epoch(self.epoch, self.recipe.epochs)
        self.model.train()
        order = self.order()
        for start in range(self.step_in_epoch, self.steps_per_epoch):
            size = self.recipe.batch_size
            self.step(order[start * size : (start + 1) * size])
            self.step_in_epoch += 1
            after_step(self)
        self.check_losses()

    def step(self, index: Tensor) -> None:
        """One step on the training rows `index` (B,)."""
        set_learning_rate(
            self.optimizer,
            self.recipe,
            epoch=self.epoch,
            step=self.steps,
            total=self.recipe.epochs * self.steps_per_epoch,
        )
        with self._timed("upstream"):
            clean, augmented = self.inputs(index)
        with self._timed("refine"), self._autocast():
            refined = self.refiner(augmented)
        with self._timed("step"):
            self.optimizer.zero_grad()
            loss = self.task.backward(self.refiner, clean, augmented.y, refined)
            self.optimizer.step()
        self.steps += 1
        self.seen = augmented, refined
        self.losses.append(loss)
        if len(self.losses) >= LOSS_CHECK:
            self.check_losses()

    def inputs(self, index: Tensor) -> tuple[Batch | None, Augmented]:
        """First arrow of Eq. (1): the clean batch, where the loss has one, and the augmented one."""
        task, y = self.task, self.train.y[index]
        x = task.rows(self.train, index, self.generators)
        augmented = self.upstream(x, y, self.generators["upstream"])
        place = {"index": index, "epoch": self.epoch, "seed": self.seed("templates")}
        complete = task.complete(augmented.x, augmented.y, **place)
        augmented = replace(
            augmented, x=complete, index=index if augmented.index is None else augmented.index
        )
        clean = None
        if self.spec.settings.clean_share > 0:
            clean = self.refiner.uniform(task.complete(self.data.normalize(x), y, **place), y)
        return clean, augmented

    @property
    def total_seconds(self) -> float:
        """Wall-clock of this run, over all the processes that it took."""
        return self.seconds["total"] + time.perf_counter() - self.clock

    def diagnostics(self) -> dict[str, float]:
        """Mean of each of the refiner's curves over the run."""
        return {
            name.removeprefix("refiner/"): sum(values) / len(values)
            for name, values in self.curves.items()
            if name.startswith("refiner/")
        }

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.length / self.recipe.batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to be bit-identical, readable with weights_only=True."""
        self.check_losses()
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return {
            "key": self.spec.key,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "refiner": self.refiner.state_dict(),
            "ensemble": self.ensemble.state_dict() if self.ensemble else {},
            "generators": {name: g.get_state() for name, g in self.generators.items()},
            "rng": torch.get_rng_state(),
            "cuda_rng": cuda,
            "progress": [self.epoch, self.step_in_epoch, self.steps],
            "epoch_loss": self.epoch_loss,
            "curves": dict(self.curves),
            "seconds": {**self.seconds, "total": self.total_seconds},
            "best": self.best,
            "last": self.last,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint of the same run."""
        if state["key"] != self.spec.key:
            raise BenchmarkError(f"checkpoint belongs to run {state['key']}, not {self.spec.key}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.refiner.load_state_dict(state["refiner"])
        if self.ensemble:
            self.ensemble.load_state_dict(state["ensemble"])
        for name, generator in self.generators.items():
            generator.set_state(state["generators"][name].cpu())
        torch.set_rng_state(state["rng"].cpu())
        if state["cuda_rng"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.device)
        self.epoch, self.step_in_epoch, self.steps = state["progress"]
        self.epoch_loss = state["epoch_loss"]
        self.curves = defaultdict(list, state["curves"])
        self.seconds = defaultdict(float, state["seconds"])
        self.best, self.last = state["best"], state["last"]

    def logits(self, split: Split) -> Tensor:
        """Logits (N, K) of a split in eval mode and in its fixed order, in host memory."""
        self.model.eval()
        size = getattr(self.model, "evaluation_batch", EVALUATION_BATCH)
        with torch.no_grad():
            predict, x = self.task.predictor(), split.x
            order = torch.arange(len(split))
            if getattr(self.model, "evaluation_order", "") == "shuffled":
                order = metrics.shuffled_order(len(split))
                x = x[order.to(self.device)]
            parts = [
                predict(x[start : start + size]).float().cpu()
                for start in range(0, len(split), size)
            ]
        logits = torch.cat(parts)[order.argsort()]
        if not logits.isfinite().all():
            raise NonFiniteLoss(f"logits are not finite after step {self.steps}")
        return logits

    def measure(self, *names: str) -> dict[str, float]:
        """Metrics of the named splits (default: all that the data have), such as ``test/auroc``."""
        splits = self.data.evaluated
        return {
            f"{name}/{metric}": value
            for name in names or splits
            for metric, value in self.data.evaluate(
                self.logits(splits[name]), splits[name].y
            ).items()
        }

    def evaluate(self) -> None:
        with self._timed("evaluate"):
            self.last = measured = self.measure()
        primary = f"val/{self.spec.metric}"
        # Undefined where validation lacks a class: `metrics.checked` has said so, nothing is selected.
        if primary in measured and measured[primary] > self.best.get(primary, -math.inf):
            self.best = {**measured, "epoch": float(self.epoch)}
            if self.ensemble:
                self.ensemble.note_best()
        total, count = self.epoch_loss
        self.epoch_loss = (0.0, 0)
        point = {"epoch": float(self.epoch), "train/loss": total / max(count, 1), **measured}
        point |= {f"refiner/{name}": value for name, value in self.refiner.diagnostics().items()}
        for name, value in point.items():
            self.curves[name].append(value)

    def _measure_ensemble(self) -> None:
        """Measure the weight ensemble of the last and of the best epoch: ``ensemble/id_test/...``."""
        if not self.refiner.trains:  # every mixture of the zero-shot weights is themselves
            same = {f"ensemble/{name}": value for name, value in self.last.items()}
            self.last, self.best = self.last | same, self.best | same
            return
        if not self.best:  # the validation metric is undefined: nothing to choose a coefficient by
            return

        def score() -> float:
            return self.measure("val")[f"val/{self.spec.metric}"]

        with self._timed("evaluate"):
            found = self.ensemble.measure(score, self.measure)
            self.last = self.last | found
            if self.best["epoch"] != self.epoch:
                found = self.ensemble.measure(score, self.measure, of=self.ensemble.best)
            self.best = self.best | found

    def check_losses(self) -> None:
        if not self.losses:
            return
        losses = torch.stack(self.losses).float().cpu()
        if not losses.isfinite().all():
            bad = self.steps - len(losses) + int((~losses.isfinite()).nonzero()[0]) + 1
            raise NonFiniteLoss(f"loss is not finite at step {bad}")
        # One by one, so that the mean does not depend on where a checkpoint cut the epoch.
        total, count = self.epoch_loss
        for value in losses.tolist():
            total, count = total + value, count + 1
        self.epoch_loss = (total, count)
        self.losses = []

    def order(self) -> Tensor:
        """Rows of this epoch, as many as the training split has, in order.

        Passes through the rows that are trained on follow each other, each in an order of its own; an
        epoch is a piece of that stream and a function of its number, so that resuming is exact.
        """
        rows, length = len(self.train), self.length
        first, start = divmod(self.epoch * length, rows)
        passes = []
        for number in range(first, first + math.ceil((start + length) / rows)):
            generator = torch.Generator().manual_seed(self.seed(f"order/{number}"))
            passes.append(torch.randperm(rows, generator=generator))
        return torch.cat(passes)[start : start + length].to(self.device)

    def seed(self, purpose: str) -> int:
        return derive(self.spec.dataset, self.spec.seed, purpose)

    def _context(self) -> Context:
        return Context(
            model=self.model,
            optimizer=self.optimizer,
            data=self.data,
            task=self.task,
            validation=self._validation_batch,
            seed=self.seed("refiner"),
            epochs=self.recipe.epochs,
            steps_per_epoch=self.steps_per_epoch,
            clean_share=self.spec.settings.clean_share,
            class_weights=self.class_weights,
        )

    def _validation_batch(self, size: int) -> tuple[Any, Tensor]:
        """Draw validation rows without replacement, independently of the training order."""
        split, generator = self.data.validation, self.generators["validation"]
        index = slice(None)
        if size < len(split):
            index = torch.randperm(len(split), generator=generator, device=self.device)[:size]
        x, y = self.data.normalize(split.x[index]), split.y[index]
        return self.task.drawn(x, y, self.generators), y

    def _autocast(self) -> torch.autocast:
        enabled = self.recipe.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    @contextmanager
    def _timed(self, phase: str):
        start = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - start


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Build the recipe's optimiser over the parameters that need gradients."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    common = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    match recipe.optimizer:
        case "adam":
            return torch.optim.Adam(parameters, fused=True, **common)
        case "adamw":
            return torch.optim.AdamW(parameters, fused=True, **common)
        case "sgd":
            return torch.optim.SGD(parameters, momentum=recipe.momentum, **common)


def set_learning_rate(
    optimizer: torch.optim.Optimizer, recipe: Recipe, *, epoch: int, step: int, total: int
) -> None:
    """Set the rate of a step: constant, x0.1 at each milestone, or half a cosine to 0.

    The cosine is over epochs, or over the steps after a linear warm-up (``cosine-steps``).
    """
    warmup = recipe.warmup_steps
    match recipe.schedule:
        case "constant":
            factor = 1.0
        case "milestones":
            factor = 0.1 ** sum(epoch >= share * recipe.epochs for share in recipe.milestones)
        case "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * epoch / recipe.epochs))
        case "cosine-steps":
            factor = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))
    if step < warmup:
        factor = (step + 1) / warmup
    for group in optimizer.param_groups:
        group["lr"] = recipe.lr * factor


def _rows(data: Data, train_on: str) -> Split:
    splits = [getattr(data, name) for name in train_on.split("+")]
    if len(splits) == 1:
        return splits[0]
    return Split(torch.cat([s.x for s in splits]), torch.cat([s.y for s in splits]))


def _class_weights(data: Data) -> Tensor:
    y, classes = data.train.y, data.num_classes
    if absent := metrics.absent_classes(y, data):
        raise BenchmarkError(
            f"{data.name}: class_weights divide by the training rows of each class, and {absent} has none: "
            "take more rows or leave class_weights out"
        )
    return len(y) / (classes * torch.bincount(y, minlength=classes).float())


def build(family: str, component: Any, subject: Any) -> Any:
    """Build a registered thing; a setting that it does not know is named with its owner."""
    thing = registry.load(family, component.name)
    try:
        return thing(subject, **component.settings)
    except SaflexError as error:
        raise BenchmarkError(f"{family}/{component.name}: {error}") from error
    except TypeError as error:
        if "unexpected keyword" in str(error) or "missing" in str(error):
            raise BenchmarkError(f"settings of {family}/{component.name}: {error}") from error
        raise
