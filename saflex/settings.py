"""The settings of Algorithm 1 under the paper's names, checkable without a model (no torch).

Three named forms: `printed` (the text taken literally), `derived` (the sign and the output that
its own derivation needs) and the default (the recommended form of docs/method.md).
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from saflex.errors import SettingError

__all__ = ["CHOICES", "SaflexSettings"]

#: The admissible values of every setting that is a name.
CHOICES: dict[str, tuple[str, ...]] = {
    "prior": ("entropic", "label"),
    "rule": ("algorithm-1", "theorem-1", "soft", "uniform"),
    "output": ("log-probabilities", "logits", "probabilities"),
    "sign": ("descent", "printed"),
    "estimator": ("forward-mode", "finite-difference", "last-layer"),
    "layout": ("samples", "tokens", "pixels", "stack"),
}
SCALES = ("batch-std", "cosine")


@dataclass(frozen=True, kw_only=True)
class SaflexSettings:
    """Every choice of Algorithm 1, and those the paper leaves open.

    Attributes
    ----------
    beta : float >= 0
        Weight of the upstream label, added to Pi (Section 3, "retention of the original label").
    tau : float >= 0
        Temperature of the label; 0 is the limit, one-hot at the arg max (Theorem 1).
    gumbel : bool
        Add Gumbel(0, 1) noise (Algorithm 1, line 4). Only with ``prior="label"``.
    prior : "entropic" or "label"
        ``softmax(log q + (Pi + beta y_aug) / tau)`` with ``q = (1 - eps) y_aug + eps p``, or the
        paper's ``softmax((Pi + beta y_aug + G) / tau)``.
    eps : float in [0, 1]
        Share of the model's own prediction in q (entropic prior).
    scale : None, "batch-std", "cosine" or float > 0
        What Pi is divided by before labels are made.
    rule : "algorithm-1", "theorem-1", "soft" or "uniform"
        Sample weights, see `saflex.sample_weights`.
    output : "log-probabilities", "logits" or "probabilities"
        Which of the paper's three readings of f is differentiated.
    sign : "descent" or "printed"
        "descent": large Pi lowers the validation loss. "printed": the opposite, as in Eq. 9.
    relabel : bool
        False keeps the upstream labels: only weights are learned (Ren et al., 2018, with "soft").
    estimator : "forward-mode", "finite-difference" or "last-layer"
    classifier : str or None
        Name of the last layer for ``estimator="last-layer"``; found automatically if None.
    fd_step : float > 0 or None
        Size of the finite-difference step relative to the norm of the parameters. None: where
        halving it changes least, searched for once on the first validation batch.
    memory : float in (0, 1] or None
        Average the scaled Pi of each training row over its visits before it decides label and
        weight: the share of a row's past that is kept at a visit, 1 for the plain average. None is
        off. Needs ``index=`` at every call.
    refresh_every : int >= 1
        Steps between two validation gradients.
    ema : float in [0, 1)
        Decay of the (bias-corrected) exponential average of the validation gradient; 0 is off.
    precondition : bool
        Divide the validation gradient by the second-moment root of ``optimizer=``.
    validation_batch : int >= 1 or None
        Rows drawn per refresh from a pair of tensors or a data set; None takes all of a pair and
        128 of a data set.
    cosine_every : int >= 0
        Steps between two measurements of the cosine between the validation gradient and the
        refined batch's own; each costs one backward pass. 0 is never.
    """

    beta: float = 0.0
    tau: float = 1.0
    gumbel: bool = False
    prior: str = "entropic"
    eps: float = 0.5
    scale: str | float | None = "batch-std"
    rule: str = "algorithm-1"
    output: str = "log-probabilities"
    sign: str = "descent"
    relabel: bool = True
    estimator: str = "forward-mode"
    classifier: str | None = None
    fd_step: float | None = None
    layout: str = "samples"
    memory: float | None = None
    refresh_every: int = 1
    ema: float = 0.0
    precondition: bool = False
    validation_batch: int | None = None
    cosine_every: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _as_plain(getattr(self, field.name)))
        for name, allowed in CHOICES.items():
            require_choice(name, getattr(self, name), allowed)
        _require_number("beta", self.beta, low=0)
        _require_number("tau", self.tau, low=0)
        _require_number("eps", self.eps, low=0, high=1)
        if self.fd_step is not None:
            _require_number("fd_step", self.fd_step, low=0, low_open=True)
        _require_number("ema", self.ema, low=0, high=1, high_open=True)
        if self.memory is not None:
            _require_number("memory", self.memory, low=0, high=1, low_open=True)
        _require_integer("refresh_every", self.refresh_every, low=1)
        _require_integer("cosine_every", self.cosine_every, low=0)
        if self.validation_batch is not None:
            _require_integer("validation_batch", self.validation_batch, low=1)
        for name in ("gumbel", "relabel", "precondition"):
            if not isinstance(getattr(self, name), bool):
                raise SettingError(f"{name}={getattr(self, name)!r}: expected True or False.")
        if self.classifier is not None and not isinstance(self.classifier, str):
            raise SettingError(f"classifier={self.classifier!r}: expected a module's name or None.")
        require_scale(self.scale)
        self._require_consistency()

    def _require_consistency(self) -> None:
        if self.gumbel and self.prior == "entropic":
            raise SettingError(
                "gumbel=True needs prior='label': the entropic prior has a closed form without "
                "noise. Set one or the other."
            )
        if self.memory is not None and (self.gumbel or self.sign == "printed"):
            raise SettingError(
                f"memory={self.memory} with gumbel={self.gumbel}, sign={self.sign!r}: a memory "
                "averages measurements of the gain, so it needs gumbel=False and sign='descent'."
            )
        if self.memory is not None and self.layout in ("tokens", "pixels"):
            raise SettingError(
                f"memory={self.memory} with layout={self.layout!r}: a memory averages one row for "
                "each training sample. Set memory=None."
            )
        if self.scale == "cosine" and self.output != "log-probabilities":
            raise SettingError(
                f"scale='cosine' needs output='log-probabilities', not {self.output!r}: it is the "
                "cosine of gradients of the cross-entropy."
            )
        if self.classifier is not None and self.estimator != "last-layer":
            raise SettingError(
                f"classifier={self.classifier!r} is read by estimator='last-layer' only, and "
                f"estimator={self.estimator!r}. Change the estimator or drop the name."
            )

    @classmethod
    def printed(cls, **changes: Any) -> "SaflexSettings":
        """Algorithm 1 as the paper prints it: ``+J_softmax g``, Gumbel noise, tau = 0.01."""
        return cls.from_mapping({**_PRINTED, **changes})

    @classmethod
    def derived(cls, **changes: Any) -> "SaflexSettings":
        """Algorithm 1 with the sign and output its derivation needs, ``Pi = -dlogp``."""
        return cls.from_mapping({**_PRINTED, **_DERIVED, **changes})

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "SaflexSettings":
        """Settings from a dict (a YAML block), naming the nearest setting for unknown keys.

        Raises
        ------
        SettingError
            Unknown names, values out of range, contradictions.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise SettingError(f"unknown setting {name!r}.{hint} Known: {', '.join(known)}.")
        return cls(**values)

    def changed(self, **changes: Any) -> "SaflexSettings":
        """A copy with some settings replaced (and everything checked again)."""
        return self.from_mapping({**asdict(self), **changes}) if changes else replace(self)

    def as_dict(self) -> dict[str, Any]:
        """All settings as plain values, ready for JSON."""
        return asdict(self)


_PRINTED = dict(
    beta=0.0, tau=0.01, gumbel=True, prior="label", scale=None, rule="algorithm-1",
    output="probabilities", sign="printed",
)  # fmt: skip
_DERIVED = dict(output="log-probabilities", sign="descent")


def _as_plain(value: Any) -> Any:
    """A NumPy scalar, or an array or tensor of no dimension, as the number it holds."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def require_scale(scale: str | float | None) -> None:
    """Accept None, a known name or a positive number; raise `SettingError` otherwise."""
    if scale is None or (isinstance(scale, str) and scale in SCALES):
        return
    if isinstance(scale, (str, bool)) or not isinstance(scale, (int, float)):
        raise SettingError(f"scale={scale!r}: expected None, a number > 0 or one of {SCALES}.")
    _require_number("scale", scale, low=0, low_open=True)


def require_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise SettingError(f"{name}={value!r}: expected one of {', '.join(allowed)}.{hint}")


def _require_number(
    name: str,
    value: Any,
    *,
    low: float,
    high: float = math.inf,
    low_open: bool = False,
    high_open: bool = False,
) -> None:
    interval = f"{'(' if low_open else '['}{low}, {high}{')' if high_open else ']'}"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise SettingError(f"{name}={value!r}: expected a finite number in {interval}.")
    below = value <= low if low_open else value < low
    above = value >= high if high_open else value > high
    if below or above:
        raise SettingError(f"{name}={value!r} is out of range: expected {interval}.")


def _require_integer(name: str, value: Any, *, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise SettingError(f"{name}={value!r}: expected an integer >= {low}.")
