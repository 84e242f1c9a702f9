"""SAFLEX as printed, as derived and as recommended, and the weights-only control (Ren et al. 2018)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from benchmarks.refiners import Context, Refiner
from benchmarks.registry import register
from benchmarks.upstream import Augmented
from saflex import Batch, ContrastiveSaflex, Saflex
from saflex.settings import SaflexSettings


class SaflexRefiner(Refiner):
    """Algorithm 1 around the library's `Saflex`, or around its contrastive form.

    Parameters
    ----------
    validation_batch : B', rows of validation data behind each gradient (protocol: 128).
    settings : keyword arguments of `saflex.Saflex`, over those of the named form.
    """

    form: ClassVar[SaflexSettings]
    divided, ties = True, "share"

    def __init__(self, context: Context, *, validation_batch: int = 128, **settings: Any):
        super().__init__(context)
        weights = context.class_weights  # they enter g, Pi and the labels too
        pairs = hasattr(context.model, "pair_logits")
        self.refine = (ContrastiveSaflex if pairs else Saflex)(
            context.model,
            validation=lambda: context.validation(validation_batch),
            settings=self.form.changed(layout=context.task.layout, **settings),
            optimizer=context.optimizer,
            loss=None if weights is None else nn.CrossEntropyLoss(weight=weights),
            seed=context.seed,
        )

    def __call__(self, augmented: Augmented) -> Batch:
        return self.refine(augmented.x, augmented.y, index=augmented.index)

    def diagnostics(self) -> dict[str, float]:
        return self.refine.diagnostics(reset=True)

    def state_dict(self) -> dict[str, Any]:
        return self.refine.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.refine.load_state_dict(state)


@register("saflex")
class Recommended(SaflexRefiner):
    """The recommended form: entropic prior, Pi scaled by its batch standard deviation."""

    form = SaflexSettings()


@register("saflex-printed")
class Printed(SaflexRefiner):
    """Algorithm 1 taken literally: softmax outputs and the printed sign."""

    form = SaflexSettings.printed()


@register("saflex-derived")
class Derived(SaflexRefiner):
    """Algorithm 1 with the output and the sign that the paper's own derivation needs."""

    form = SaflexSettings.derived()


@register("saflex-memory")
class Remembering(SaflexRefiner):
    """The recommended form, Pi of each row averaged over its visits: for fixed sets (Table 3)."""

    form = SaflexSettings(memory=1.0)


@register("weights-only")
class WeightsOnly(SaflexRefiner):
    """Learning to reweight (Ren et al. 2018): upstream labels, weights max(0, Pi . y), renormalised."""

    form = SaflexSettings(rule="soft", relabel=False)
