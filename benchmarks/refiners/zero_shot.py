"""Zero-shot CLIP (Radford et al. 2021): nothing is trained, class names classify."""

from __future__ import annotations

from benchmarks.refiners import Context, Refiner
from benchmarks.registry import register
from benchmarks.tasks.image_text import require_towers

NEEDS = {"model": "pairs"}


@register("zero-shot")
class ZeroShot(Refiner):
    """Leave the pre-trained model as it is."""

    trains = False

    def __init__(self, context: Context):
        super().__init__(context)
        require_towers(context.model)
