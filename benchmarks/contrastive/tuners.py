"""Fine-tuners as refinements of one contrastive loop (Section 3, Equations 12 to 14; Table 4).

A tuner says which soft rows and weights a batch of image-text pairs gets, what the loss of their
features is, and which head classifies. The controls and SAFLEX rows of the other tables have their
contrastive counterparts here under the same names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.errors import BenchmarkError
from benchmarks.refiners import Context, Refiner
from benchmarks.refiners.saflex import SaflexRefiner
from benchmarks.refiners.uniform import Uniform
from benchmarks.upstream import Augmented
from saflex import Batch, ContrastiveSaflex, contrastive_cross_entropy
from saflex.contrastive import caption_rows
from saflex.settings import SaflexSettings


class ContrastiveTuner(Refiner):
    """Base of the fine-tuners: FLYP's loss on the pairs as they are.

    Attributes
    ----------
    trains : False where nothing is trained (zero-shot).
    reads_texts : False where the loss uses images alone (LP-FT).
    ties : texts of one class are each other's ``negatives``, as in FLYP, or one proxy class that
        its texts ``share``, as in SAFLEX.
    """

    trains = True
    reads_texts = True
    ties = "negatives"

    def __init__(self, context: Context):
        super().__init__(context)
        require_towers(context.model)

    def __call__(self, augmented: Augmented) -> Batch:
        """Give rows (B, B) and weights (B,) to pairs x = (images, captions) of classes y (B,)."""
        return self.unrefined(augmented.x, augmented.y)

    def unrefined(self, x: Any, y: Tensor) -> Batch:
        """Give the rows and weights of a batch that nobody refines, such as the clean one."""
        if y.is_floating_point():
            raise BenchmarkError(
                "contrastive fine-tuning needs one class for each image, and this upstream mixes "
                "labels: use one that keeps them, such as wilds-randaugment"
            )
        rows = torch.eye(len(y), device=y.device) if self.ties == "negatives" else caption_rows(y)
        return Batch.uniform(x, rows)

    def objective(self, image: Tensor, text: Tensor | None, batch: Batch) -> Tensor:
        """Loss of a batch from its normalised features (B, D) each: the mean of both directions."""
        logits = self.context.model.pair_logits(image, text)
        return contrastive_cross_entropy(logits, batch.y, batch.w) / 2

    def head(self) -> tuple[Tensor, Tensor | None]:
        """Weight (K, D) and bias (K,) of the classifier on normalised image features."""
        return self.context.model.text_head(), None


class ContrastiveSaflexTuner(ContrastiveTuner):
    """FLYP with rows and weights from the contrastive form of SAFLEX.

    Parameters
    ----------
    form : settings of the named form, under `settings`.
    validation_batch : B', pairs of id_val behind each gradient.
    """

    ties = "share"

    def __init__(
        self,
        context: Context,
        *,
        form: SaflexSettings,
        validation_batch: int = 128,
        **settings: Any,
    ):
        super().__init__(context)
        chosen = form.changed(**settings)
        self.refine = ContrastiveSaflex(
            context.model,
            validation=lambda: context.validation(validation_batch),
            settings=chosen,
            precondition=context.optimizer if chosen.precondition else None,
            seed=context.seed,
        )

    def __call__(self, augmented: Augmented) -> Batch:
        return self.refine(augmented.x, augmented.y)

    def diagnostics(self) -> dict[str, float]:
        return self.refine.diagnostics(reset=True)

    def state_dict(self) -> dict[str, Any]:
        return self.refine.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.refine.load_state_dict(state)


def contrastive(refiner: Refiner, settings: dict[str, Any]) -> ContrastiveTuner:
    """Give the contrastive counterpart of a refiner that was built for classification.

    Raises
    ------
    BenchmarkError
        It has none.
    """
    if isinstance(refiner, ContrastiveTuner):
        return refiner
    if isinstance(refiner, SaflexRefiner):
        return ContrastiveSaflexTuner(refiner.context, form=refiner.form, **settings)
    if type(refiner) is Uniform:
        return ContrastiveTuner(refiner.context)
    raise BenchmarkError(
        f"{type(refiner).__name__} has no contrastive form: image-text tables know flyp, lp-ft, "
        "zero-shot, uniform, weights-only and the SAFLEX forms"
    )


def require_towers(model: nn.Module) -> None:
    """Refuse a model that has no text tower."""
    if not hasattr(model, "pair_logits"):
        raise BenchmarkError(
            f"{type(model).__name__} has no text tower: flyp, lp-ft and zero-shot fine-tune "
            "image-text models such as clip-vit-b16 and clip-tiny"
        )
