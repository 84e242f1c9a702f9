"""Label smoothing (Szegedy et al. 2016, arXiv 1512.00567, Sec. 7): labels soft for all alike."""

from __future__ import annotations

from benchmarks.errors import BenchmarkError
from benchmarks.refiners import Context, Refiner
from benchmarks.registry import register
from benchmarks.upstream import Augmented
from saflex import Batch, soft_rows

REFUSES = {"model": "pairs"}


@register("label-smoothing")
class LabelSmoothing(Refiner):
    """Labels (1 - eps) y + eps / K of the augmented batch, uniform weights.

    A SAFLEX label is soft; this one is soft for every sample alike, so what both gain over the
    upstream's label is softness.

    Parameters
    ----------
    eps : share in [0, 1] spread over all K classes; 0.1 is the source's.
    """

    labels_only = True

    def __init__(self, context: Context, *, eps: float = 0.1):
        super().__init__(context)
        if not 0 <= eps <= 1:
            raise BenchmarkError(f"label-smoothing eps={eps}: expected a share in [0, 1]")
        self.eps = eps

    def __call__(self, augmented: Augmented) -> Batch:
        k = self.context.data.num_classes
        y = soft_rows(augmented.y, k, dtype=augmented.x.dtype)
        return Batch.uniform(augmented.x, (1 - self.eps) * y + self.eps / k, k)
