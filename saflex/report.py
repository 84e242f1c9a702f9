"""What the diagnostics mean and what to try: the text of ``refine.report()``.

Numbers come in, sentences go out; nothing here looks at a model. Every finding names its number, what
it says about the run, and a setting or a check that answers it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["Findings", "findings", "report"]

# A trend is read from the first and the last quarter of the run, so that single batches don't decide,
# of at least so many stretches, and only where it exceeds the noise between neighbours.
_QUARTER, _FEWEST_STRETCHES, _STANDARD_ERRORS = 4, 8, 3
# Halves of right labels agree until the loss has fallen by so much; then nothing that they share is left.
_DISAGREE, _FALLEN = 0.3, 0.8


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a report is made from.

    Attributes
    ----------
    steps : int
    settings : dict
        Of `SaflexSettings.as_dict`.
    mean : dict of str to float
        Every diagnostic, averaged over the run.
    course : sequence of dict of str to float
        The same over successive stretches of equal length, ``validation_loss`` among them.
    halves : float or None
        Correlation of Pi as two halves of a validation batch see it, on the last refined batch.
    halves_unknown : str
        Why it was not measured.
    validation_rows : int
        Rows of that validation batch.
    """

    steps: int
    settings: dict
    mean: dict[str, float]
    course: Sequence[dict[str, float]]
    halves: float | None = None
    halves_unknown: str = ""
    validation_rows: int = 0

    def start_and_end(self, name: str) -> tuple[float, float]:
        """Means over the first and the last quarter of the run."""
        size = max(len(self.course) // _QUARTER, 1)
        first, last = self.course[:size], self.course[-size:]
        return tuple(sum(c[name] for c in part) / len(part) for part in (first, last))

    def trend(self, name: str) -> tuple[float, float] | None:
        """`start_and_end` where they differ by more than chance; None where they don't, or too early."""
        values = [c[name] for c in self.course]
        if len(values) < _FEWEST_STRETCHES:
            return None
        # Half the mean square of neighbours' differences is the variance that is no trend.
        variance = sum((b - a) ** 2 for a, b in pairwise(values)) / (2 * (len(values) - 1))
        start, end = self.start_and_end(name)
        error = (variance * 2 / (len(values) // _QUARTER)) ** 0.5
        return (start, end) if abs(end - start) > _STANDARD_ERRORS * error else None

    @property
    def fallen(self) -> bool:
        """Whether so much of the validation loss is gone that halves no longer tell about labels."""
        start, end = self.start_and_end("validation_loss")
        return end < _FALLEN * start


def report(found: Findings) -> str:
    """The numbers, and below them what they say."""
    if not found.steps:
        return "Saflex: no batch refined yet. Call refine(x, y), then ask again."
    lines = [f"Saflex after {found.steps:,} refined batches", *_numbers(found), "What they say"]
    said = findings(found) or [
        "Nothing stands out. What counts is held-out loss and accuracy on rows that are not in the "
        "validation set."
    ]
    return "\n".join([*lines, *(f"  * {sentence}" for sentence in said)])


def findings(found: Findings) -> list[str]:
    """Every sentence whose condition holds, the gravest first."""
    return [sentence for rule in _RULES if (sentence := rule(found))]


def _numbers(f: Findings) -> list[str]:
    m = f.mean
    pi, loss = f.start_and_end("pi_mean_abs"), f.start_and_end("validation_loss")
    halves = f.halves_unknown if f.halves is None else f"correlate by {f.halves:.2f}"
    if f.halves is not None and f.halves < _DISAGREE and f.fallen:
        halves += " (the loss has fallen: what is left is what they do not share)"
    return [
        f"  labels      {_percent(1 - m['label_unchanged'])} with another arg max than the "
        f"upstream's, entropy {m['label_entropy']:.2f}",
        f"  weights     {_percent(m['accepted'])} of the samples kept, {_percent(m['all_rejected'])} "
        f"of the batches wholly rejected, effective share {m['effective_share']:.2f}",
        f"  gain        {m['gain']:.3g} refined, {m['gain_upstream']:.3g} as received (fall of the "
        "validation loss per unit of step size)",
        f"  mean |Pi|   {pi[0]:.3g} in the first quarter, {pi[1]:.3g} in the last",
        f"  validation  loss {loss[0]:.3g} in the first quarter, {loss[1]:.3g} in the last",
        f"  halves      Pi by two halves of {f.validation_rows} validation rows: {halves}",
    ]


def _no_signal(f: Findings) -> str | None:
    if f.mean["pi_mean_abs"] == 0:
        return (
            "Pi is 0 everywhere: no trainable parameter moves the logits, or the validation loss "
            "has no slope. Nothing is learned; check requires_grad and the validation labels."
        )
    return None


def _printed_sign(f: Findings) -> str | None:
    if f.mean["gain"] < 0:
        because = (
            " sign='printed' asks for that (docs/method.md, erratum 1): use Saflex(...) or "
            "Saflex.derived(...)."
            if f.settings["sign"] == "printed"
            else " Check the validation labels and beta."
        )
        return f"The refined batches are predicted to raise the validation loss.{because}"
    return None


def _all_rejected(f: Findings) -> str | None:
    share = f.mean["all_rejected"]
    if share > 0.01:
        return (
            f"{_percent(share)} of the batches were rejected whole; their loss is 0, so those "
            "steps train on nothing but clean rows. Larger batches, beta=0 or rule='uniform' "
            "avoid it."
        )
    return None


def _few_samples(f: Findings) -> str | None:
    share = f.mean["effective_share"]
    if 0 < share < 0.2 and f.mean["all_rejected"] < 0.5:
        return (
            f"A batch counts like {_percent(share)} of its samples: the weight sits on few, and the "
            "training gradient is as noisy as theirs. Try rule='algorithm-1' or 'uniform'."
        )
    return None


def _unchanged(f: Findings) -> str | None:
    changed = 1 - f.mean["label_unchanged"]
    if f.settings["relabel"] and changed < 0.005 and f.mean["label_entropy"] < 0.05:
        return (
            f"Labels changed {_percent(changed)}: this trains on what the upstream gave. A smaller "
            "tau or beta, or a larger eps, lets Pi decide more."
        )
    return None


def _overwhelmed(f: Findings) -> str | None:
    changed = 1 - f.mean["label_unchanged"]
    if changed > 0.5:
        return (
            f"Labels changed {_percent(changed)}: more than the upstream's are left. Unless that many "
            "are wrong, hold on to them: larger tau, smaller eps, beta > 0 with prior='label', and "
            "clean rows in the loss (refine.loss(..., clean=(x, y)))."
        )
    return None


def _growing_products(f: Findings) -> str | None:
    pi_0, pi_1 = f.trend("pi_mean_abs") or (0, 0)
    loss_0, loss_1 = f.start_and_end("validation_loss")
    if pi_0 > 0 and pi_1 / pi_0 >= 3 and loss_1 > 0.9 * loss_0:
        scale = f.settings["scale"]
        follows = (
            "beta and tau lose their meaning with it: scale='batch-std'."
            if scale not in ("batch-std", "cosine")
            else "the logits have become steep: lower the learning rate, decay the weights, or stop "
            "earlier."
        )
        return (
            f"|Pi| grew {pi_1 / pi_0:.1f}-fold while the validation loss stood still ({loss_0:.3g}, "
            f"then {loss_1:.3g}): {follows}"
        )
    return None


def _rising_loss(f: Findings) -> str | None:
    start, end = f.trend("validation_loss") or (0, 0)
    if end > 1.1 * start:
        return (
            f"The validation loss rose from {start:.3g} to {end:.3g}, though every step was chosen to "
            "lower it: steps are too long for a first-order choice, or training overfits. Lower the "
            "learning rate, or stop earlier."
        )
    return None


def _fitted_validation(f: Findings) -> str | None:
    start, end = f.trend("validation_loss") or (0, 0)
    if end < 0.1 * start:
        return (
            f"The validation loss fell from {start:.3g} to {end:.3g}: these rows are being fitted. "
            "Select epochs on others, and compare with training on them outright."
        )
    return None


def _halves_disagree(f: Findings) -> str | None:
    if f.halves is not None and f.halves < _DISAGREE and not f.fallen:
        return (
            f"The two halves of the validation batch disagree about Pi (correlation {f.halves:.2f}) "
            f"before its loss has fallen: {f.validation_rows} rows may be too few, labels there may be "
            "wrong, or the model knew what they share from the start. Look at the labels, take more "
            "rows, or average (ema=0.9; memory=1.0 where training rows come back)."
        )
    return None


def _against_the_batch(f: Findings) -> str | None:
    cosine = f.mean.get("cosine")
    if cosine is not None and cosine < 0:
        return (
            f"The validation gradient and the refined batch's own point apart (cosine {cosine:.2f}): "
            "the step works against the validation loss, whatever the labels."
        )
    return None


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


_RULES: tuple[Callable[[Findings], str | None], ...] = (
    _no_signal, _printed_sign, _all_rejected, _few_samples, _overwhelmed, _unchanged,
    _growing_products, _rising_loss, _fitted_validation, _halves_disagree, _against_the_batch,
)  # fmt: skip
