"""Zero-shot CLIP (Radford et al. 2021): nothing is trained, class names classify."""

from __future__ import annotations

from benchmarks.contrastive.tuners import ContrastiveTuner
from benchmarks.registry import register


@register("zero-shot")
class ZeroShot(ContrastiveTuner):
    """Leave the pre-trained model as it is."""

    trains = False
