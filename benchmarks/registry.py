"""Data sets, upstream augmentations, refiners and models by name: one file each, found by discovery.

A file in ``benchmarks/<family>/`` registers what it holds with ``@register("name", ...)``. Names are
read from the source without importing it, so that planning a suite needs no torch; the module is
imported when somebody asks for the thing itself.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

from benchmarks.errors import BenchmarkError, UnknownName

FAMILIES = ("datasets", "upstream", "refiners", "models")
SINGULAR = {
    "datasets": "data set",
    "upstream": "upstream",
    "refiners": "refiner",
    "models": "model",
}

_registered: dict[tuple[str, str], Callable] = {}


def register(*names: str) -> Callable[[Callable], Callable]:
    """Register a function or class of a family's module under one or several literal names."""

    def decorate(thing: Callable) -> Callable:
        family = thing.__module__.split(".")[-2]
        for name in names:
            _registered[family, name] = thing
        return thing

    return decorate


@cache
def modules(family: str) -> dict[str, str]:
    """Map each registered name of a family to the module that holds it, importing none."""
    found: dict[str, str] = {}
    for path in sorted((Path(__file__).parent / family).glob("*.py")):
        for name in _literal_names(path):
            module = f"benchmarks.{family}.{path.stem}"
            if name in found:
                raise ValueError(
                    f"{family} name {name!r} is registered by {found[name]} and {module}"
                )
            found[name] = module
    return found


def add(family: str, path: Path) -> list[str]:
    """Import a file from anywhere as if it lay in ``benchmarks/<family>/``; give the names it registers.

    Raises
    ------
    BenchmarkError
        The family or the file is none, it registers nothing, or a name that is taken.
    """
    if family not in FAMILIES:
        raise UnknownName("family", family, FAMILIES)
    if not path.is_file():
        raise BenchmarkError(f"{path} is no file: give the path of your {SINGULAR[family]}'s file")
    names, known = _literal_names(path), modules(family)
    if not names:
        raise BenchmarkError(f'{path} registers nothing: put @register("name") before its class')
    module = f"benchmarks.{family}.{path.stem}"
    if taken := [name for name in names if name in known] or module in known.values():
        raise BenchmarkError(
            f"{path}: {taken or module} is registered already: choose another name"
        )
    spec = importlib.util.spec_from_file_location(module, path)
    sys.modules[module] = loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    known.update(dict.fromkeys(names, module))
    return names


def check(family: str, name: str) -> None:
    """Raise `UnknownName`, with the nearest known name, unless the name is registered."""
    if name not in modules(family):
        raise UnknownName(SINGULAR[family], name, modules(family))


def module_name(family: str, name: str) -> str:
    """Name of the module that registers a name, not imported."""
    check(family, name)
    return modules(family)[name]


def module(family: str, name: str) -> ModuleType:
    """Import the module that registers a name."""
    return importlib.import_module(module_name(family, name))


def load(family: str, name: str) -> Callable:
    """Import the module that registers the name and return what it registered."""
    module(family, name)
    return _registered[family, name]


def declared(family: str, name: str, constant: str) -> ast.expr | None:
    """Read what a name's module assigns to a constant, without importing it; None if it does not."""
    for node in _tree(importlib.util.find_spec(module_name(family, name)).origin).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == constant:
            return node.value
    return None


@cache
def _tree(path: str) -> ast.Module:
    return ast.parse(Path(path).read_text(encoding="utf-8"))


def _literal_names(path: Path) -> list[str]:
    decorators = [
        d
        for node in _tree(str(path)).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        for d in node.decorator_list
        if isinstance(d, ast.Call) and getattr(d.func, "id", None) == "register"
    ]
    return [ast.literal_eval(argument) for d in decorators for argument in d.args]
