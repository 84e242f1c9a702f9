"""Replicas: the seeds of a bundle trained at once, one stacked model (`settings.replicas`).

Each seed keeps its own data, initial weights, order, augmentation and validation draws, taken from
the very streams that it has when trained alone, so results agree up to rounding. Dropout masks and
Gumbel noise cannot: they are drawn for the whole stack from one stream.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.errors import BenchmarkError
from benchmarks.refiners import Context, Refiner
from benchmarks.refiners.saflex import SaflexRefiner
from benchmarks.refiners.uniform import Uniform
from benchmarks.running.stacked import Stack, StackedLog, StackedTask, signature, stack_refinement
from benchmarks.tasks import Classification
from benchmarks.train import NonFiniteLoss, Training, build, build_optimizer
from benchmarks.upstream import Augmented
from saflex import Batch

# Bytes of stacked parameters; gradients, moments and tangents take four times as much again.
LARGEST_STACK = {"cpu": 2**28, "cuda": 2**31}


class Replicas(Training):
    """R runs in step with each other, each evaluated and recorded as a run of its own.

    Parameters
    ----------
    runs : not yet started; they lend their streams, and their models become views of the stack.
        `stacks` says which of them may be stacked.

    Attributes
    ----------
    failed : replica -> what became of it. The others go on undisturbed.
    """

    def __init__(self, runs: list[Training]):
        first = runs[0]
        self.runs, self.failed = runs, {}
        self.spec, self.data, self.recipe = first.spec, first.data, first.recipe
        self.device, self.train, self.clock = first.device, first.train, first.clock
        self.upstream, self.ensemble, self.length = first.upstream, None, first.length
        self.model = Stack([run.model for run in runs])
        self.optimizer = build_optimizer(self.model, self.recipe)
        self.task = StackedTask(self.model, self.data, self._autocast)
        self.refiner: Refiner = build("refiners", self.spec.settings.refiner, self._context())
        self.log: StackedLog | None = None
        if isinstance(self.refiner, SaflexRefiner):
            self.log = stack_refinement(self.refiner.refine, len(runs))
        for run in runs:
            run.refiner = _Share(run.refiner.context)
        self.epoch = self.step_in_epoch = self.steps = 0
        self.losses: list[Tensor] = []
        self.seconds = defaultdict(float)
        torch.manual_seed(self.seed("dropout"))

    def inputs(self, index: Tensor) -> tuple[Batch | None, Augmented]:
        """Stack what each run makes of its own training rows, index (B, R)."""
        cleans, parts = zip(
            *(run.inputs(i) for run, i in zip(self.runs, index.unbind(1), strict=True)),
            strict=True,
        )
        augmented = Augmented(
            **{name: torch.stack([getattr(part, name) for part in parts]) for name in "xy"},
            index=torch.stack([part.index for part in parts]),
        )
        if cleans[0] is None:
            return None, augmented
        return Batch(*(torch.stack(part) for part in zip(*cleans, strict=True))), augmented

    def check_losses(self) -> None:
        if not self.losses:
            return
        columns = torch.stack(self.losses).float().cpu().unbind(1)
        self.losses = []
        for replica, run in self._alive():
            run.steps, run.losses = self.steps, list(columns[replica].unbind())
            self._guard(replica, run.check_losses)
        self._check_gradients()

    def _check_gradients(self) -> None:
        broken = None if self.log is None else self.log.direction.broken
        for replica in [] if broken is None else broken.nonzero().flatten().tolist():
            message = f"validation gradient is not finite at or before step {self.steps}"
            self.failed.setdefault(replica, self._place(message))
        if len(self.failed) == len(self.runs):
            raise NonFiniteLoss("no replica is left")

    def evaluate(self) -> None:
        each = [{}] * len(self.runs) if self.log is None else self.log.each(reset=True)
        with self._timed("evaluate"):
            for replica, run in self._alive():
                run.epoch, run.steps, run.refiner.values = self.epoch, self.steps, each[replica]
                self._guard(replica, run.evaluate)
        self._check_gradients()

    def _alive(self) -> list[tuple[int, Training]]:
        return [(r, run) for r, run in enumerate(self.runs) if r not in self.failed]

    def _guard(self, replica: int, check: Callable[[], None]) -> None:
        try:
            check()
        except NonFiniteLoss as error:
            self.failed[replica] = self._place(str(error))

    def _place(self, message: str) -> str:
        return f"{message} (after step {self.steps}, epoch {self.epoch + 1})"

    def order(self) -> Tensor:
        for run in self.runs:
            run.epoch = self.epoch
            run.upstream.begin_epoch(self.epoch, self.recipe.epochs)
        return torch.stack([run.order() for run in self.runs], 1)

    def _context(self) -> Context:
        own = [run.refiner.context for run in self.runs]
        weights = None
        if own[0].class_weights is not None:
            weights = torch.stack([context.class_weights for context in own]).unsqueeze(1)

        def validation(size: int) -> tuple[Tensor, Tensor]:
            x, y = zip(*(context.validation(size) for context in own), strict=True)
            return torch.stack(x), torch.stack(y)

        return Context(
            model=self.model,
            optimizer=self.optimizer,
            data=self.data,
            task=self.task,
            validation=validation,
            seed=own[0].seed,
            epochs=own[0].epochs,
            steps_per_epoch=own[0].steps_per_epoch,
            clean_share=own[0].clean_share,
            class_weights=weights,
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that resumed replicas need; the runs' models are the stack's parameters."""
        self.check_losses()
        state = {
            "keys": [run.spec.key for run in self.runs],
            "runs": [run.state_dict() for run in self.runs],
            "optimizer": self.optimizer.state_dict(),
            "refiner": self.refiner.state_dict(),
            "progress": [self.epoch, self.step_in_epoch, self.steps],
            "failed": dict(self.failed),
            "broken": None if self.log is None else self.log.direction.broken,
            "seconds": {**self.seconds, "total": self.total_seconds},
        }
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint of the same replicas."""
        keys = [run.spec.key for run in self.runs]
        if state["keys"] != keys:
            raise BenchmarkError(f"checkpoint belongs to runs {state['keys']}, not {keys}")
        for run, own in zip(self.runs, state["runs"], strict=True):
            run.load_state_dict(own)  # into the stack; the random streams are the same in each
        self.optimizer.load_state_dict(state["optimizer"])
        self.refiner.load_state_dict(state["refiner"])
        self.epoch, self.step_in_epoch, self.steps = state["progress"]
        self.failed = dict(state["failed"])
        if self.log is not None:
            self.log.direction.broken = state["broken"]
        self.seconds = defaultdict(float, state["seconds"])


class _Share(Refiner):
    """What a run in a stack keeps of its refiner: the clean batch and its own diagnostics."""

    values: dict[str, float] = {}

    def diagnostics(self) -> dict[str, float]:
        return self.values


def stacks(runs: Iterable[Training]) -> Iterator[list[Training]]:
    """Group runs that can be trained as one stack, reading no more of them than a stack holds."""
    waiting: dict[tuple, list[Training]] = defaultdict(list)
    for run in runs:
        if obstacle(run):
            yield [run]
            continue
        splits = (run.train, run.data.validation, run.data.test)
        key = (signature(run.model), tuple(len(split) for split in splits))
        size = sum(p.numel() * p.element_size() for p in run.model.parameters())
        limit = LARGEST_STACK.get(run.device.type, LARGEST_STACK["cuda"])
        waiting[key].append(run)
        if len(waiting[key]) >= limit // size:
            yield waiting.pop(key)
    yield from waiting.values()


def together(group: list[Training]) -> Training:
    """Give the one training of a group: a stack, or the run itself where there is but one."""
    if len(group) > 1:
        return Replicas(group)
    torch.manual_seed(group[0].seed("dropout"))  # others may have been built since
    return group[0]


def results(training: Training) -> Iterator[tuple[Training, str, dict[str, float]]]:
    """Give each run of a finished training, what became of it if it failed, and its seconds.

    The seconds of a replica are the stack's, divided by R: what that run cost.
    """
    seconds = {**training.seconds, "total": training.total_seconds}
    if not isinstance(training, Replicas):
        yield training, "", seconds
        return
    share = {phase: value / len(training.runs) for phase, value in seconds.items()}
    for replica, run in enumerate(training.runs):
        yield run, training.failed.get(replica, ""), share


def obstacle(run: Training) -> str:
    """Say why a run must be trained alone; empty if it need not."""
    if type(run.task) is not Classification:
        return "pairs of images and texts are not stacked"
    if not isinstance(run.refiner, Uniform | SaflexRefiner):
        return f"refiner {run.spec.settings.refiner.name} is not made for a stack"
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in run.model.modules()):
        return "batch normalisation keeps running statistics"
    if isinstance(run.refiner, SaflexRefiner):
        settings = run.refiner.refine.settings
        if run.class_weights is not None:
            return "class weights differ between the seeds, and SAFLEX takes one set"
        if settings.estimator != "forward-mode":
            # One step length for a whole stack: a diverged model would spoil the others.
            return f"estimator {settings.estimator} does not keep stacked models apart"
        if settings.cosine_every:
            return "cosine_every measures one cosine for a whole stack"
    return ""


def joint_key(runs: list[Training]) -> str:
    """Name of the checkpoint of runs trained together."""
    return hashlib.sha256(" ".join(run.spec.key for run in runs).encode()).hexdigest()[:16]
