"""What an error inside a pass through somebody's model means, in one line with the mend."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from saflex.errors import EstimatorError, SaflexError, SettingError, ShapeError
from saflex.structures import tensors_of

__all__ = ["explained"]


@contextmanager
def explained(view: Any, x: Any) -> Iterator[None]:
    """Name the cause of a RuntimeError where it is one of those that people meet.

    Parameters
    ----------
    view : saflex.forward.ModelView
        Of the model that is called inside.
    x
        Its inputs.

    Raises
    ------
    SettingError, ShapeError, EstimatorError
        From the error itself; errors of other kinds pass unchanged.
    """
    try:
        yield
    except RuntimeError as error:
        cause = None if isinstance(error, SaflexError) else _cause(str(error), view, x)
        if cause is None:
            raise
        raise cause from error


def _cause(said: str, view: Any, x: Any) -> SaflexError | None:
    inputs = [t for t in tensors_of(x) if t.is_floating_point()]
    dtypes = {p.dtype for p in view.trainable.values()}
    model = type(view.model).__name__
    if "dtype" in said or "type" in said.lower():
        strange = {t.dtype for t in inputs} - dtypes
        if strange:
            return ShapeError(
                f"{model} has parameters of {_named(dtypes)} and was given inputs of "
                f"{_named(strange)}. Convert one of them, such as x.to({_named(dtypes)})."
            )
    devices = {t.device for t in tensors_of(x)}
    if "same device" in said and devices - view.devices:
        return SettingError(
            f"{model} is on {_named(view.devices)} and its inputs are on {_named(devices)}: move "
            "them before refining."
        )
    if "Inference tensors" in said:
        return SettingError(
            "an input or a parameter was made inside torch.inference_mode() and cannot be "
            "differentiated. Make it outside, or use its .clone() made outside."
        )
    if "heckpoint" in said:
        return EstimatorError(
            f"{model} uses activation checkpointing of a kind that gradients of chosen tensors "
            "cannot pass. Use torch.utils.checkpoint with use_reentrant=False."
        )
    return None


def _named(things: set[Any]) -> str:
    return " and ".join(sorted(str(thing) for thing in things)) or "none"


def mixed_precision_inside(said: str) -> bool:
    """Whether an error of forward mode comes from a forward that switches autocast on itself."""
    return "dtype" in said and ("BFloat16" in said or "Half" in said)
