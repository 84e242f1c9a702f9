"""The rooms of `benchmarks/` and the arrows between them: few at the top, and none both ways."""

from __future__ import annotations

from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from benchmarks.running import source_hash

ROOT = Path(source_hash.ROOT) / "benchmarks"
AT_THE_TOP = 15


def modules() -> list[str]:
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def room(module: str) -> str:
    """Folder of a module; a module at the top is a room of its own."""
    return module.split(".")[1]


def arrows(names: list[str]) -> dict[str, dict[str, set[str]]]:
    """Imports between rooms, wherever they stand in a module: room -> room -> modules that import."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in names:
        for target in source_hash._imports(name):
            if target.startswith("benchmarks.") and "." in name and room(name) != room(target):
                found[room(name)][room(target)].add(name)
    return {one: dict(others) for one, others in found.items()}


def test_few_modules_stand_at_the_top():
    top = [path.stem for path in ROOT.glob("*.py") if path.stem != "__init__"]
    assert len(top) <= AT_THE_TOP, sorted(top)


def test_no_two_rooms_import_each_other():
    found = arrows(modules())
    both = {
        (one, other)
        for one in found
        for other in found[one]
        if one < other and one in found.get(other, {})
    }
    assert not both, {pair: (found[pair[0]][pair[1]], found[pair[1]][pair[0]]) for pair in both}


def test_rooms_stand_in_one_order():
    found = arrows(modules())
    try:
        order = list(TopologicalSorter(found).static_order())
    except CycleError as error:
        pytest.fail(f"rooms import in a circle: {' -> '.join(error.args[1])}")
    assert order.index("spec") < order.index("tables") < order.index("tracking")
    assert order[-1] == "__main__"


def test_an_import_anywhere_in_a_module_is_an_arrow_and_a_type_hint_is_none():
    """`table5` imports `datasets` inside a function, `datasets.cub` imports `Data` for type checkers only."""
    assert "datasets" in arrows(["benchmarks.tables.table5"])["tables"]
    assert "data" not in arrows(["benchmarks.datasets.cub"])["datasets"]
