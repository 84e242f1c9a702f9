"""What the parts of a planned run say of themselves: do its settings exist, and do the parts go together?

All is read from the source, nothing imported, so that a plan which cannot run is refused without torch.
A setting is a keyword of what is registered, of its annotation's type. A module may declare more:

    LIMITS = {"power": {"gt": 0}, "drop": ("both", "unchanged")}   bounds (as pydantic's Field) or choices
    OFFERS = ("image", "extra")                                    what it has that others may need
    NEEDS = {"upstream": "visibility"}                             what another part of the run must offer
    REFUSES = {"model": "pairs"}                                   what another part must not offer
    PASSES_ON = "Clip"                                             where its **keywords go

A module with several names may give one value for each name. A part that does not say what it offers is
not asked: then the run finds out.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StrictFloat, StrictInt, TypeAdapter, ValidationError

from benchmarks import registry
from benchmarks.errors import BenchmarkError, suggestion
from benchmarks.spec import Settings
from saflex.errors import SaflexError
from saflex.settings import SaflexSettings

FAMILY_OF = {
    "dataset": "datasets",
    "model": "models",
    "upstream": "upstream",
    "refiner": "refiners",
}
# What the loop itself gives; the first argument of all, a data set's name or what is worked on, as well.
GIVEN = {"datasets": {"seed"}}
# Words that mean the same in whatever file they stand.
COMMON = {
    "label_noise": {"ge": 0, "le": 1},
    "limit": {"ge": 1},
    "validation_limit": {"ge": 1},
    "validation_batch": {"ge": 1},
    "evaluation_batch": {"ge": 1},
    "dropout": {"ge": 0, "lt": 1},
    "eps": {"ge": 0, "le": 1},
}
Bound = Literal["gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length"]
FIT = TypeAdapter(dict[Literal["dataset", "model", "upstream", "refiner"], str | tuple[str, ...]])
# What a declaration must be, for pydantic and in words.
SHAPES = {
    "LIMITS": (
        TypeAdapter(dict[str, dict[Bound, StrictInt | StrictFloat] | tuple[Any, ...]]),
        'bounds or choices by setting, such as {"power": {"gt": 0}, "drop": ("both", "unchanged")}',
    ),
    "OFFERS": (TypeAdapter(tuple[str, ...]), 'words, such as ("image",)'),
    "NEEDS": (FIT, 'words by part of a run, such as {"model": "pairs"}'),
    "REFUSES": (FIT, 'words by part of a run, such as {"model": "pairs"}'),
    "PASSES_ON": (TypeAdapter(str), "the name of a class or function of the module"),
}
TYPES = {"Any": Any, "Sequence": Sequence, "Literal": Literal, "__builtins__": __builtins__}


def problems(settings: Settings) -> Iterator[str]:
    """Say what keeps a run of these settings from starting, one line each."""
    parts = {part: getattr(settings, part) for part in FAMILY_OF}
    for part, component in parts.items():
        family = FAMILY_OF[part]
        try:
            content = json.dumps(component.settings)
        except (TypeError, ValueError):
            yield (
                f"settings of {registry.SINGULAR[family]} {component.name!r}: {component.settings}: "
                "expected numbers, texts, true or false, lists and mappings with texts as keys"
            )
            continue
        yield from _of_settings(family, component.name, content)
    yield from _of_fit(tuple((part, component.name) for part, component in parts.items()))


@cache
def _of_settings(family: str, name: str, content: str) -> tuple[str, ...]:
    """Hold settings, as JSON, against the keywords of what is registered."""
    given = json.loads(content)
    what = f"{registry.SINGULAR[family]} {name!r}"
    known, required, others = _keywords(family, name)
    found = []
    form = _saflex_form(family, name)
    if form is not None:
        own = {key: value for key, value in given.items() if key not in known}
        try:
            if "layout" in own:
                raise SaflexError("setting 'layout' is decided by what is trained: leave it out.")
            form.changed(**own)
        except SaflexError as error:
            found.append(f"{what}: {error}")
    elif not others:
        found += [
            f"{what} has no setting {key!r}: "
            + (suggestion(key, known) if known else "it takes no settings")
            for key in given
            if key not in known
        ]
    found += [f"{what} needs the setting {key!r}" for key in required if key not in given]
    for key in known.keys() & given.keys():
        value = json.dumps(given[key])
        try:
            known[key].validate_json(value, strict=True)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            found.append(f"{what}: {key}: {reason[0].lower()}{reason[1:]} (given {value})")
        except TypeError as error:  # such as "gt" for a text
            raise BenchmarkError(
                f"{registry.file_of(family, name)}: LIMITS: {key!r} has a bound that does not go with its "
                f"annotation: {error}"
            ) from error
    return tuple(found)


@cache
def _keywords(family: str, name: str) -> tuple[dict[str, TypeAdapter], tuple[str, ...], bool]:
    """Give the settings of what is registered with their types, those it needs, and if it takes others."""
    tree, node = registry.source(family, name), registry.definition(family, name)
    function, known, required = _signature(tree, node), {}, []
    limits = COMMON | (_declared(family, name, "LIMITS") or {})
    others = function is None
    first = True
    while function is not None:
        arguments = function.args
        plain = arguments.posonlyargs + arguments.args
        lacking = [None] * (len(plain) - len(arguments.defaults))
        taken = list(zip(plain, [*lacking, *arguments.defaults], strict=True))
        if plain[:1] and plain[0].arg == "self":
            taken = taken[1:]
        if first:
            taken = taken[1:]
        taken += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        for argument, default in taken:
            # Where keywords are passed on, what has no default is the caller's business.
            if argument.arg in GIVEN.get(family, ()) or (default is None and not first):
                continue
            known[argument.arg] = _type(argument.annotation, limits.get(argument.arg))
            if default is None:
                required.append(argument.arg)
        others = arguments.kwarg is not None
        target = _declared(family, name, "PASSES_ON") if others and first else None
        function = _signature(tree, _named(tree, target)) if target else None
        first = False
    return known, tuple(required), others


def _signature(tree: ast.Module, node: ast.stmt | None) -> ast.FunctionDef | None:
    """Find the function whose keywords are the settings: itself, or the class's or its base's `__init__`."""
    seen: list[ast.stmt] = []
    while isinstance(node, ast.ClassDef) and node not in seen:  # `class L(L)` extends another L
        seen.append(node)
        own = [s for s in node.body if isinstance(s, ast.FunctionDef) and s.name == "__init__"]
        if own:
            return own[0]
        base = getattr(node.bases[0], "id", "elsewhere") if node.bases else ""
        if base in ("", "Refiner", "Upstream"):  # they take no settings
            return ast.parse("def __init__(self, subject): ...").body[0]
        node = _named(tree, base)
    return None if isinstance(node, ast.ClassDef) else node


def _named(tree: ast.Module, name: str) -> ast.stmt | None:
    defined = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef))
    return next((node for node in defined if node.name == name), None)


def _type(annotation: ast.expr | None, limits: Any) -> TypeAdapter:
    """Make a checker of values of an annotation; one of names that are not known here takes anything."""
    try:
        kind = eval(ast.unparse(annotation), TYPES) if annotation else Any
        if isinstance(limits, tuple):
            kind = Literal[limits]
        elif limits:
            kind = Annotated[kind, Field(**limits)]
        return TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False))
    except Exception:
        return TypeAdapter(Any)


def _saflex_form(family: str, name: str) -> SaflexSettings | None:
    """Give the form of the library's settings that a SAFLEX row starts from; None for other refiners."""
    node = registry.definition(family, name)
    for statement in node.body if family == "refiners" else ():
        call = getattr(statement, "value", None)
        called = getattr(call, "func", None)  # `SaflexSettings(...)` or `SaflexSettings.printed()`
        if registry.assigned(statement) == "form" and "SaflexSettings" in (
            getattr(called, "id", ""),
            getattr(getattr(called, "value", None), "id", ""),
        ):
            try:
                return eval(ast.unparse(call), {"SaflexSettings": SaflexSettings})
            except Exception as error:
                raise BenchmarkError(
                    f"{registry.file_of(family, name)}, line {statement.lineno}: form: {error}"
                ) from error
    return None


@cache
def _of_fit(names: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """Hold what each part needs and refuses against what the others offer."""
    named, found = dict(names), []
    for part, name in names:
        me = f"{registry.SINGULAR[FAMILY_OF[part]]} {name!r}"
        for constant, verb in (("NEEDS", "needs"), ("REFUSES", "cannot work with")):
            for other, words in (_declared(FAMILY_OF[part], name, constant) or {}).items():
                words = (words,) if isinstance(words, str) else words
                offers = _declared(FAMILY_OF[other], named[other], "OFFERS")
                if offers is None or any(word in offers for word in words) == (verb == "needs"):
                    continue
                it = f"{registry.SINGULAR[FAMILY_OF[other]]} {named[other]!r}"
                found.append(
                    f"{me} {verb} {' or '.join(words)}, and {it} "
                    + ("has " if verb != "needs" else "has only ")
                    + (", ".join(offers) or "none")
                )
    return tuple(found)


@cache
def _declared(family: str, name: str, constant: str) -> Any:
    """Read a constant of a name's module; where it gives one value for each name, that of this one.

    Raises
    ------
    BenchmarkError
        It is no literal, or not of the shape that `SHAPES` wants.
    """
    written = registry.declared(family, name, constant)
    if written is None:
        return None
    at = f"{registry.file_of(family, name)}, line {written.lineno}: {constant}"
    try:
        value = ast.literal_eval(written)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise BenchmarkError(
            f"{at} is read without importing the module: expected a literal"
        ) from error
    if isinstance(value, dict) and value.keys() <= registry.modules(family).keys():
        value = value.get(name)
    if value is None:
        return None
    shape, expected = SHAPES[constant]
    try:
        return shape.validate_python(value)
    except ValidationError as error:
        raise BenchmarkError(f"{at}: expected {expected} (given {value!r})") from error
