"""Data sets, upstream augmentations, refiners and models by name: one file each, found by discovery.

A file in ``benchmarks/<family>/`` registers what it holds with ``@register("name", ...)``. Names are
read from the source without importing it, so that planning a suite needs no torch; the module is
imported when somebody asks for the thing itself. A file that cannot be read is named and skipped: it
stops nobody who does not ask for what it holds.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.errors import BenchmarkError, UnknownName, fault

FAMILIES = ("datasets", "upstream", "refiners", "models")
SINGULAR = {
    "datasets": "data set",
    "upstream": "upstream",
    "refiners": "refiner",
    "models": "model",
}

# Constants that modules give to who plans a run and does not import them (`benchmarks.check`).
DECLARATIONS = {"LIMITS", "OFFERS", "NEEDS", "REFUSES", "PASSES_ON"}
TOO_DEEP = "is nested too deeply for Python to read: split its longest expression"
NAME = r"[a-z0-9][a-z0-9+._-]*"  # as suites spell them

_registered: dict[tuple[str, str], Callable] = {}


def register(*names: str) -> Callable[[Callable], Callable]:
    """Register a function or class of a family's module under one or several literal names."""

    def decorate(thing: Callable) -> Callable:
        family = thing.__module__.split(".")[-2]
        for name in names:
            _registered[family, name] = thing
        return thing

    return decorate


def modules(family: str) -> dict[str, str]:
    """Map each registered name of a family to the module that holds it, importing none."""
    return _scanned(family)[0]


@cache
def _scanned(family: str) -> tuple[dict[str, str], dict[str, str]]:
    """Give the names of a family with their modules, and why other names cannot be used."""
    places: dict[str, list[Path]] = defaultdict(list)
    for path in sorted((Path(__file__).parent / family).glob("*.py")):
        try:
            for name in _literal_names(path):
                places[name].append(path)
        except BenchmarkError as problem:
            _to_stderr(f"{problem}; the file is skipped")
    found = {name: f"benchmarks.{family}.{where[0].stem}" for name, where in places.items()}
    clashes = {}
    for name in [name for name, where in places.items() if len(where) > 1]:
        # Whose is meant nobody can tell: a guess would train on other data without a word.
        del found[name]
        files = " and ".join(map(str, dict.fromkeys(places[name])))
        clashes[name] = f"{SINGULAR[family]} {name!r} is registered twice, by {files}: rename one"
        _to_stderr(f"{clashes[name]}; until then the name is skipped")
    return found, clashes


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
    with _named(str(path)):
        spec.loader.exec_module(loaded)
    known.update(dict.fromkeys(names, module))
    return names


def check(family: str, name: str) -> None:
    """Raise `UnknownName`, with the nearest known name, unless the name is registered."""
    found, clashes = _scanned(family)
    if name in clashes:
        raise BenchmarkError(clashes[name])
    if name not in found:
        raise UnknownName(SINGULAR[family], name, found)


def module_name(family: str, name: str) -> str:
    """Name of the module that registers a name, not imported."""
    check(family, name)
    return modules(family)[name]


def module(family: str, name: str) -> ModuleType:
    """Import the module that registers a name.

    Raises
    ------
    BenchmarkError
        It cannot be imported; the line says where it stumbled.
    """
    wanted = module_name(family, name)
    with _named(f"{SINGULAR[family]} {name!r}: {wanted}"):
        return importlib.import_module(wanted)


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Say in a line what somebody's file, of whatever kind, stumbles over when it is run."""
    try:
        yield
    except BenchmarkError:
        raise
    except (Exception, SystemExit) as error:
        raise BenchmarkError(f"{what} cannot be imported: {fault(error)}") from error


def load(family: str, name: str) -> Callable:
    """Import the module that registers the name and return what it registered."""
    holder = module(family, name)
    if (family, name) not in _registered:
        raise BenchmarkError(f"{holder.__file__} did not register {name!r} when it was imported")
    return _registered[family, name]


@cache
def source(family: str, name: str) -> ast.Module:
    """Give the syntax tree of the module that registers a name, not imported."""
    return parsed(file_of(family, name))


def declared(family: str, name: str, constant: str) -> ast.expr | None:
    """Read what a name's module assigns to a constant, without importing it; None if it does not."""
    for node in source(family, name).body:
        if assigned(node) == constant:
            return node.value
    return None


def assigned(node: ast.stmt) -> str:
    """Name that a statement assigns to, with an annotation or without; '' if it is none."""
    target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
    return getattr(target, "id", "")


def file_of(family: str, name: str) -> Path:
    """Place of the module that registers a name, not imported."""
    holder = module_name(family, name)
    # Not by `find_spec`, which imports the package around the module, and torch with it.
    here = Path(__file__).parent / family / f"{holder.rpartition('.')[2]}.py"
    return Path(sys.modules[holder].__file__) if holder in sys.modules else here


def parsed(path: Path) -> ast.Module:
    """Parse a source file as Python reads it: a byte order mark or a coding line is no error.

    Raises
    ------
    BenchmarkError
        The file is no Python, nested too deeply for it, or cannot be read.
    """
    if path.exists() and not path.is_file():  # to read a pipe would be to wait for ever
        raise BenchmarkError(f"{path} is no regular file")
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except (SyntaxError, ValueError) as error:  # null bytes are a ValueError in Python 3.11
        line = f", line {error.lineno}" if getattr(error, "lineno", None) else ""
        reason = getattr(error, "msg", None) or error
        raise BenchmarkError(f"{path} is no Python{line}: {reason}") from error
    except (RecursionError, MemoryError) as error:
        raise BenchmarkError(f"{path} {TOO_DEEP}") from error
    except OSError as error:
        raise BenchmarkError(f"{path} cannot be read: {error.strerror}") from error


def definition(family: str, name: str) -> ast.FunctionDef | ast.ClassDef:
    """Give the statement that defines what is registered under a name."""
    return dict(_registrations(source(family, name)))[name]


def _literal_names(path: Path) -> list[str]:
    """List the names that a file registers, as often as it does."""
    if not path.stem.isidentifier():  # such as ._x.py, which macOS leaves beside x.py
        raise BenchmarkError(f"{path}: no module can have this name")
    names = [name for name, _ in _registrations(parsed(path))]
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(NAME, name):
            raise BenchmarkError(
                f"{path} registers {name!r}: expected a name in quotes, of lower-case letters, digits "
                "and + . _ -"
            )
    return names


def _registrations(tree: ast.Module) -> list[tuple[Any, ast.FunctionDef | ast.ClassDef]]:
    """Pair every argument of `register` with what it decorates; what is no literal stands as None."""
    direct, holders = {"register"}, {"registry"}
    for node in tree.body:
        for alias in getattr(node, "names", []):
            if getattr(node, "module", "") == "benchmarks.registry" and alias.name == "register":
                direct.add(alias.asname or alias.name)
            elif alias.asname and alias.name in ("registry", "benchmarks.registry"):
                holders.add(alias.asname)

    def registers(call: ast.expr) -> bool:
        if not isinstance(call, ast.Call):
            return False
        holder = getattr(call.func, "value", None)
        of = getattr(holder, "id", getattr(holder, "attr", None))
        return getattr(call.func, "id", None) in direct or (
            getattr(call.func, "attr", None) == "register" and of in holders
        )

    return [
        (getattr(argument, "value", None), node)
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        for decorator in node.decorator_list
        if registers(decorator)
        for argument in decorator.args
    ]


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
