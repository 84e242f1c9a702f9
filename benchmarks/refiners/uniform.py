"""Upstream labels and uniform weights: no-aug, upstream alone, and the clean+aug and train+val controls."""

from __future__ import annotations

from benchmarks.refiners import Refiner
from benchmarks.registry import register


@register("uniform")
class Uniform(Refiner):
    """Keep the upstream's labels; every sample weighs the same."""
