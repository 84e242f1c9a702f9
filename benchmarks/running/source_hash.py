"""Hash of the source a run's result depends on, so that an edit re-runs exactly what it touches.

Snakemake does not see edits of a package called by ``python -m`` (its issue 3028); this hash,
handed to a bundle's job as a parameter, makes it see them. Imports are followed statically, so
planning needs no torch. Comments, docstrings and formatting do not count.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from benchmarks import registry
from benchmarks.errors import BenchmarkError
from benchmarks.spec import RunSpec

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("benchmarks", "saflex")

# Where every run starts; what it needs of its own is added by name, from the registry.
ENTRY = "benchmarks.train"

# They carry or store a result without computing it. What `spec` and `suite` decide is in the run's
# key already, and data files are checked against their checksum.
NEUTRAL = frozenset(
    {
        "benchmarks.running.checkpoint",
        "benchmarks.errors",
        "benchmarks.fetch",
        "benchmarks.running.locks",
        "benchmarks.paths",
        "benchmarks.record",
        "benchmarks.registry",
        "benchmarks.running.source_hash",
        "benchmarks.sources",
        "benchmarks.spec",
        "benchmarks.suite",
        "benchmarks.weights",
        "saflex.errors",
    }
)


def source_hash(spec: RunSpec) -> str:
    """Hash the modules that the result of a run depends on, 16 hexadecimal digits.

    They are the modules that register its data set, model, upstream and refiner, the training loop,
    and everything those import within this repository.
    """
    return module_hash(ENTRY, *_components(spec))


def module_hash(*names: str) -> str:
    """Hash modules and everything they import within this repository."""
    digest = hashlib.sha256()
    for name in sorted(dependencies(names)):
        with _shallow(name):
            digest.update(f"{name}\x1f{_fingerprint(name)}\x1e".encode())
    return digest.hexdigest()[:16]


def dependencies(names: Iterable[str]) -> set[str]:
    """List modules and, transitively, those they import here, neutral ones left out."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found and name not in NEUTRAL:
            found.add(name)
            with _shallow(name):
                waiting += _imports(name)
    return found


@contextmanager
def _shallow(name: str) -> Iterator[None]:
    """Name a module whose tree is deeper than the walks below can go; Python may parse it all the same."""
    try:
        yield
    except RecursionError as error:
        raise BenchmarkError(f"{_path(name)} {registry.TOO_DEEP}") from error


def _components(spec: RunSpec) -> list[str]:
    parts = spec.settings
    named = {
        "datasets": parts.dataset,
        "models": parts.model,
        "upstream": parts.upstream,
        "refiners": parts.refiner,
    }
    modules = [registry.module_name(family, part.name) for family, part in named.items()]
    return [*modules, "benchmarks.running.replicas"] if parts.replicas else modules


def _path(name: str) -> Path | None:
    """File of a module or package of this repository, None for anything else."""
    if name.split(".")[0] not in PACKAGES:
        return None
    base = ROOT.joinpath(*name.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


@cache
def _tree(name: str) -> ast.Module:
    path = _path(name)
    if path is None:
        raise FileNotFoundError(f"module {name} is not in {ROOT}")
    return registry.parsed(path)


@cache
def _fingerprint(name: str) -> str:
    """Dump of a module's syntax tree without docstrings: what the interpreter acts on."""
    tree = ast.parse(ast.unparse(_tree(name)))
    # What planning alone reads decides no result (`benchmarks.check`).
    tree.body = [n for n in tree.body if registry.assigned(n) not in registry.DECLARATIONS]
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return ast.dump(tree)


@cache
def _imports(name: str) -> tuple[str, ...]:
    """Modules of this repository that a module imports, wherever in it the statement stands."""
    found: list[str] = []
    for node in _running_nodes(_tree(name)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if _path(alias.name)]
        elif isinstance(node, ast.ImportFrom):
            source = _absolute(name, node)
            for alias in node.names:
                found += _origin(source, alias.name)
    return tuple(found)


def _running_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk a tree, leaving out what stands under ``if TYPE_CHECKING:``, which never runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for other in node.orelse:
                yield other
                yield from _running_nodes(other)
            continue
        yield node
        yield from _running_nodes(node)


def _absolute(name: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    path = _path(name)
    package = name if path and path.name == "__init__.py" else name.rpartition(".")[0]
    parts = package.split(".")
    parts = parts[: len(parts) - node.level + 1]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _origin(source: str, attribute: str) -> list[str]:
    """Find the module an imported name comes from, through a package's re-exports.

    ``from saflex import Batch`` depends on `saflex.batch`, not on everything `saflex` exports.
    """
    if _path(f"{source}.{attribute}"):
        return [f"{source}.{attribute}"]
    path = _path(source)
    if path is None:
        return []
    if path.name == "__init__.py":
        # Under TYPE_CHECKING too: that is where a package that loads its names lazily lists them.
        for node in ast.walk(_tree(source)):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == attribute:
                        return _origin(_absolute(source, node), alias.name)
    return [source]
