"""How a model is called and where in its output the logits are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from saflex.errors import SettingError, ShapeError

__all__ = ["Adapted", "Calling"]


@dataclass(frozen=True)
class Calling:
    """``x -> logits`` for one model.

    Attributes
    ----------
    logits_from : str, int, callable or None
        Key or attribute, position in a tuple, or a function of the output. None: the output itself,
        or what it has under the name "logits".
    unpack : bool or None
        True: ``model(*x)`` for a tuple, ``model(**x)`` for a mapping. False: ``model(x)``. None: a
        mapping is unpacked, a tuple is not.
    """

    logits_from: str | int | Callable[[Any], Tensor] | None = None
    unpack: bool | None = None

    def __post_init__(self) -> None:
        known = isinstance(self.logits_from, (str, int)) or callable(self.logits_from)
        if not known and self.logits_from is not None:
            raise SettingError(
                f"logits_from={self.logits_from!r}: expected a name, a position in a tuple, or a "
                "function of the model's output."
            )

    def __call__(self, model: Callable[..., Any], x: Any) -> Tensor:
        """Logits of x.

        Raises
        ------
        ShapeError
            If the output has nothing with a class dimension where they should be.
        """
        if isinstance(x, Mapping) and self.unpack is not False:
            return self.read(model(**x))
        if isinstance(x, (tuple, list)) and self.unpack:
            return self.read(model(*x))
        return self.read(model(x))

    def read(self, out: Any) -> Tensor:
        """The logits in what a model returned."""
        found = self._find(out)
        if not isinstance(found, Tensor) or found.ndim < 2:
            got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else _described(found)
            raise ShapeError(
                f"the model returned {got}, expected logits of shape (..., B, K), or an object with "
                "such a .logits. Say where they are with logits_from=, a name, a position or a "
                "function of the output; a binary model needs two outputs."
            )
        return found

    def _find(self, out: Any) -> Any:
        where = self.logits_from
        if where is None:
            named = out.get("logits", out) if isinstance(out, Mapping) else out
            return getattr(named, "logits", named)
        if callable(where):
            return where(out)
        try:
            if isinstance(out, Mapping) or isinstance(where, int):
                return out[where]
            return getattr(out, where)
        except (KeyError, IndexError, TypeError, AttributeError):
            raise ShapeError(
                f"logits_from={where!r}, and the model returned {_described(out)}."
            ) from None


class Adapted(nn.Module):
    """A model whose forward is ``x -> logits`` by its `Calling`: the same modules under the same names."""

    def __init__(self, model: nn.Module, calling: Calling) -> None:
        super().__init__()
        # Not a submodule: no name of a parameter changes.
        object.__setattr__(self, "adapted", model)
        self.calling = calling

    def forward(self, x: Any) -> Tensor:
        return self.calling(self.adapted, x)

    def named_modules(self, *args: Any, **kwargs: Any) -> Any:
        return self.adapted.named_modules(*args, **kwargs)

    def get_submodule(self, target: str) -> nn.Module:
        return self.adapted.get_submodule(target)


def _described(out: Any) -> str:
    kind = type(out).__name__
    if isinstance(out, Mapping):
        return f"a {kind} with {list(out)}"
    return f"a {kind} of {len(out)}" if isinstance(out, (tuple, list)) else f"a {kind}"
