"""FLYP (Goyal et al. 2023): fine-tune with the loss of pre-training, class names as captions."""

from __future__ import annotations

from benchmarks.errors import BenchmarkError
from benchmarks.refiners import Context, Refiner
from benchmarks.registry import register
from benchmarks.tasks.image_text import require_towers

TIES = ("negatives", "share")


NEEDS = {"model": "pairs"}
LIMITS = {"ties": ("negatives", "share")}


@register("flyp")
class Flyp(Refiner):
    """The pairs as they are, uniform weights.

    Parameters
    ----------
    ties : texts of one class in a batch are each other's ``negatives`` (FLYP's own code), or
        ``share`` the label evenly (the control for what SAFLEX rows gain by that alone).
    """

    def __init__(self, context: Context, *, ties: str = "negatives"):
        super().__init__(context)
        require_towers(context.model)
        if ties not in TIES:
            raise BenchmarkError(f"flyp ties {ties!r}: expected one of {', '.join(TIES)}")
        self.ties = ties
