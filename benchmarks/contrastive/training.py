"""The contrastive loop of Table 4: the one training loop with pairs in place of labelled images.

images and captions -> upstream on the images -> tuner -> loss of the whole batch -> optimiser.
Everything else (epochs, order, checkpoints, curves) is `benchmarks.train.Training`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.contrastive import ensembling, gradient_cache
from benchmarks.contrastive.data import ImageTextData
from benchmarks.contrastive.tuners import contrastive, require_towers
from benchmarks.data import Split
from benchmarks.errors import BenchmarkError
from benchmarks.spec import RunSpec
from benchmarks.train import LOSS_CHECK, NonFiniteLoss, Training
from saflex import Batch

SPLITS = {"val": "validation", "id_test": "test", "ood_test": "ood_test"}


class ContrastiveTraining(Training):
    """One run of contrastive fine-tuning.

    Parameters
    ----------
    spec : the model's settings decide `micro_batch`, `warmup_steps` and `ensemble`, see
        `benchmarks.models.clip`.
    data : image-text data, on its device.
    """

    data: ImageTextData

    def __init__(self, spec: RunSpec, data: ImageTextData):
        if not isinstance(data, ImageTextData):
            raise BenchmarkError(
                f"{spec.settings.model.name} is fine-tuned on images with captions, and "
                f"{spec.dataset} has none: use iwildcam-wilds or captioned-bloodmnist"
            )
        if spec.settings.recipe.schedule == "milestones":
            raise BenchmarkError(
                "recipe.schedule 'milestones' is not for fine-tuning CLIP: expected cosine or constant"
            )
        super().__init__(spec, data)
        require_towers(self.model)
        self.refiner = contrastive(self.refiner, spec.settings.refiner.settings)
        for purpose in ("crop", "captions"):
            generator = torch.Generator(self.device).manual_seed(self._seed(purpose))
            self.generators[purpose] = generator
        self.zero_shot = ensembling.weights_of(self.model)
        self.best_weights: dict[str, Tensor] = {}

    def run(self, *, after_step: Callable[[Training], None] = lambda training: None) -> None:
        """Train to the last epoch, then mix the weights with the zero-shot ones."""
        if self.refiner.trains:
            super().run(after_step=after_step)
        elif not self.last:
            self.epoch = self.recipe.epochs
            self._evaluate()
        if self.model.ensemble:
            self._ensemble()

    def step(self, index: Tensor) -> None:
        """One step on the training pairs `index` (B,)."""
        self._set_learning_rate()
        y = self.train.y[index]
        with self._timed("upstream"):
            images = self.data.training_images(self.train.x, index, self.generators["crop"])
            augmented = self.upstream(images, y, self.generators["upstream"])
            captions = self.model.captions(augmented.y, self._templates(index))
            augmented = replace(augmented, x=(augmented.x, captions), index=index)
        with self._timed("refine"), self._autocast():
            refined = self.refiner(augmented)
        with self._timed("step"):
            share = self.spec.settings.clean_share
            clean = self.data.normalize(images) if share > 0 else None
            self.optimizer.zero_grad()
            loss = self._backward(refined, clean, y)
            self.optimizer.step()
        self.steps += 1
        self.seen = augmented, refined
        self.losses.append(loss)
        if len(self.losses) >= LOSS_CHECK:
            self._check_losses()

    def logits(self, split: Split) -> Tensor:
        """Logits (N, K) of a split: the head is rebuilt from the class names at every call."""
        with self._autocast():
            features = self.model.features(split.x, self.data.normalize)
        weight, bias = (None if t is None else t.detach().float().cpu() for t in self._head())
        logits = linear(features, weight, bias)
        if not logits.isfinite().all():
            raise NonFiniteLoss(f"logits are not finite after step {self.steps}")
        return logits

    def measure(self, *splits: str) -> dict[str, float]:
        """Metrics of the named splits (default: all), such as ``id_test/macro_f1``."""
        found = {}
        for name in splits or SPLITS:
            split = getattr(self.data, SPLITS[name])
            measured = self.data.evaluate(self.logits(split), split.y)
            found |= {f"{name}/{metric}": value for metric, value in measured.items()}
        return found

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "best_weights": self.best_weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.best_weights = {name: w.cpu() for name, w in state["best_weights"].items()}

    def _backward(self, refined: Batch, clean: Tensor | None, y: Tensor) -> Tensor:
        """Loss of Eq. (3) over pairs, and its gradient: the clean images have the same texts."""
        tuner, share = self.refiner, self.spec.settings.clean_share
        images, captions = refined.x
        inputs = [(self._encode(self.model.images), images)]
        batches = [(1.0 if clean is None else 1 - share, refined)]
        if clean is not None:
            inputs.append((self._encode(self.model.images), clean))
            batches.append((share, tuner.unrefined((clean, captions), y)))
        position = None
        if tuner.reads_texts:
            # Equal captions are encoded once: the towers have no dropout, the result is the same.
            distinct, position = captions.unique(return_inverse=True)
            inputs.append((self._encode(self.model.texts), distinct))

        def objective(*features: Tensor) -> Tensor:
            text = None if position is None else features[-1][position]
            return sum(
                weight * tuner.objective(image, text, batch)
                for (weight, batch), image in zip(batches, features, strict=False)
            )

        return gradient_cache.backward(inputs, objective, micro_batch=self.model.micro_batch)

    def _encode(self, tower: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Run a tower under the recipe's precision; its features come back in float32."""

        def encode(x: Tensor) -> Tensor:
            with self._autocast():
                return tower(x).float()

        return encode

    def _head(self) -> tuple[Tensor, Tensor | None]:
        self.model.eval()
        with torch.no_grad(), self._autocast():
            return self.refiner.head()

    def _templates(self, index: Tensor) -> Tensor:
        """Template of each row in this epoch: a random one first, the others in turn after it.

        FLYP lists every image once with each template and spends two epochs on the list; so does
        this, and each epoch sees each image once.
        """
        count = len(self.data.templates)
        generator = torch.Generator().manual_seed(self._seed("templates"))
        first = torch.randint(count, (len(self.train),), generator=generator)
        return (first[index.cpu()] + self.epoch) % count

    def _validation_batch(self, size: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        images, y = super()._validation_batch(size)
        generator = self.generators["captions"]
        count = len(self.data.templates)
        templates = torch.randint(count, y.shape, generator=generator, device=generator.device)
        return (images, self.model.captions(y, templates)), y

    def _set_learning_rate(self) -> None:
        """Linear warm-up, then constant or half a cosine, both per step (FLYP's schedule)."""
        warmup, total = self.model.warmup_steps, self.recipe.epochs * self.steps_per_epoch
        factor = 1.0
        if self.steps < warmup:
            factor = (self.steps + 1) / warmup
        elif self.recipe.schedule == "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * (self.steps - warmup) / max(total - warmup, 1)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr * factor

    def _evaluate(self) -> None:
        with self._timed("evaluate"):
            self.last = measured = self.measure()
        primary = f"val/{self.spec.metric}"
        if not self.best or measured[primary] > self.best[primary]:
            self.best = {**measured, "epoch": float(self.epoch)}
            self.best_weights = ensembling.weights_of(self.model) if self.model.ensemble else {}
        total, count = self.epoch_loss
        self.epoch_loss = (0.0, 0)
        point = {"epoch": float(self.epoch), "train/loss": total / max(count, 1), **measured}
        point |= {f"refiner/{name}": value for name, value in self.refiner.diagnostics().items()}
        for name, value in point.items():
            self.curves[name].append(value)

    def _ensemble(self) -> None:
        """Measure the weight ensemble of the last and of the best epoch: ``ensemble/id_test/...``."""
        if not self.refiner.trains:  # every mixture of the zero-shot weights is themselves
            same = {f"ensemble/{name}": value for name, value in self.last.items()}
            self.last, self.best = self.last | same, self.best | same
            return
        with self._timed("evaluate"):
            fine_tuned = ensembling.weights_of(self.model)
            found = self._ensembled(fine_tuned)
            self.last = self.last | found
            if self.best["epoch"] != self.epoch:
                found = self._ensembled(self.best_weights)
            self.best = self.best | found
            self.model.load_state_dict(fine_tuned)

    def _ensembled(self, fine_tuned: dict[str, Tensor]) -> dict[str, float]:
        def score(weights: dict[str, Tensor]) -> float:
            self.model.load_state_dict(weights)
            return self.measure("val")[f"val/{self.spec.metric}"]

        alpha = ensembling.choose(self.zero_shot, fine_tuned, score)
        self.model.load_state_dict(ensembling.interpolate(self.zero_shot, fine_tuned, alpha))
        measured = {f"ensemble/{name}": value for name, value in self.measure().items()}
        return {**measured, "ensemble/alpha": alpha}
