"""Image-text models as a task (Section 3, Equations 12 to 14; Table 4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from benchmarks.data import Split
from benchmarks.errors import BenchmarkError
from benchmarks.tasks import Classification, Streams, gradient_cache
from saflex import Batch, contrastive_cross_entropy, soft_cross_entropy
from saflex.contrastive import caption_rows

if TYPE_CHECKING:
    from benchmarks.datasets.image_text import ImageTextData
    from benchmarks.models.clip import Clip
    from benchmarks.refiners import Refiner


class ImageText(Classification):
    """Fine-tuning with the loss of pre-training: a batch of B pairs is a B-class problem.

    Inputs of the model are pairs (images, captions); labels are rows (B, B) over the batch's texts.
    A model that has been given a `head` (LP-FT) is a classifier: labels (B, K), no texts.
    """

    streams: ClassVar[tuple[str, ...]] = ("crop", "captions")
    data: ImageTextData
    model: Clip

    def rows(self, split: Split, index: Tensor, streams: Streams) -> Tensor:
        return self.data.training_images(split.x, index, streams["crop"])

    def complete(
        self, x: Tensor, y: Tensor, *, index: Tensor, epoch: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Add captions: of each row a random template in the first epoch, the others in turn.

        FLYP lists every image once with each template and spends two epochs on the list; so does
        this, and each epoch sees each image once.
        """
        count, rows = len(self.data.templates), len(self.data.train) + len(self.data.validation)
        first = torch.randint(count, (rows,), generator=torch.Generator().manual_seed(seed))
        return x, self.model.captions(y, (first[index.cpu()] + epoch) % count)

    def drawn(self, x: Tensor, y: Tensor, streams: Streams) -> tuple[Tensor, Tensor]:
        stream, count = streams["captions"], len(self.data.templates)
        templates = torch.randint(count, y.shape, generator=stream, device=stream.device)
        return x, self.model.captions(y, templates)

    def uniform(self, x: Any, y: Tensor, *, ties: str = "negatives") -> Batch:
        """Book pairs that nobody refines.

        Parameters
        ----------
        ties : texts of one class are each other's ``negatives`` (FLYP's own code), or ``share`` the
            label evenly, one proxy class (SAFLEX).
        """
        if y.is_floating_point():
            raise BenchmarkError(
                "contrastive fine-tuning needs one class for each image, and this upstream mixes "
                "labels: use one that keeps them, such as wilds-randaugment"
            )
        if self.model.head is not None:
            return Batch.uniform(x, y, self.data.num_classes)
        rows = caption_rows(y) if ties == "share" else torch.eye(len(y), device=y.device)
        return Batch.uniform(x, rows)

    def backward(self, refiner: Refiner, clean: Batch | None, y: Tensor, refined: Batch) -> Tensor:
        """Loss of Eq. (3) over pairs, and its gradient: the clean images have the same texts."""
        share = refiner.context.clean_share
        images, captions = refined.x
        inputs = [(self._encode(self.model.images), images)]
        batches = [(1.0 if clean is None else 1 - share, refined)]
        if clean is not None:
            inputs.append((self._encode(self.model.images), clean.x[0]))
            batches.append((share, clean))
        position = None
        if self.model.head is None:
            # Equal captions are encoded once: the towers have no dropout, the result is the same.
            distinct, position = captions.unique(return_inverse=True)
            inputs.append((self._encode(self.model.texts), distinct))

        def objective(*features: Tensor) -> Tensor:
            text = None if position is None else features[-1][position]
            return sum(
                weight * self.objective(image, text, batch)
                for (weight, batch), image in zip(batches, features, strict=False)
            )

        return gradient_cache.backward(inputs, objective, micro_batch=self.model.micro_batch)

    def objective(self, image: Tensor, text: Tensor | None, batch: Batch) -> Tensor:
        """Loss of normalised features (B, D): the mean of both directions, or the head's."""
        if self.model.head is not None:
            return soft_cross_entropy(self.model.head(image.float()), batch.y, batch.w)
        logits = self.model.pair_logits(image, text)
        return contrastive_cross_entropy(logits, batch.y, batch.w) / 2

    def predictor(self) -> Callable[[Tensor], Tensor]:
        """The zero-shot head is made anew from the class names at the present weights."""
        if (head := self.model.head) is None:
            with self.autocast():
                weight, bias = self.model.text_head().float(), None
        else:
            weight, bias = head.weight, head.bias

        def predict(x: Tensor) -> Tensor:
            with self.autocast():
                features = self.model.images(self.data.normalize(x))
            return linear(features.float(), weight, bias)

        return predict

    def _encode(self, tower: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Run a tower under the recipe's precision; its features come back in float32."""

        def encode(x: Tensor) -> Tensor:
            with self.autocast():
                return tower(x).float()

        return encode


def require_towers(model: nn.Module) -> None:
    """Refuse a model that has no text tower."""
    if not hasattr(model, "pair_logits"):
        raise BenchmarkError(
            f"{type(model).__name__} has no text tower: flyp, lp-ft and zero-shot fine-tune "
            "image-text models such as clip-vit-b16 and clip-tiny"
        )
