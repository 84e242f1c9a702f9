"""Rows of docs/field.md: each is a test of this folder, marked with what was reported, tried and seen."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TypeVar

Test = TypeVar("Test", bound=Callable)
HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "field.md"
HEAD = """# What the field throws at it

{count} situations: {reported} from public reports of this field's tools, the others bad input tried by hand.
Each is a test (`tests/field`) that sees the outcome named here. `make field` writes the page anew.

| reported at | tried | outcome |
|---|---|---|
"""
BY_HAND = "by hand"


def report(source: str, tried: str, outcome: str) -> Callable[[Test], Test]:
    """Mark a test as a row of the page.

    Parameters
    ----------
    source : project and number of the public report, such as "MedMNIST 39", or `BY_HAND`.
    tried : what was given to the product, in a few words.
    outcome : what it does, in a few words; the test asserts just that.
    """

    def mark(test: Test) -> Test:
        test.report = (source, tried, outcome)  # type: ignore[attr-defined]
        return test

    return mark


def rows() -> list[tuple[str, str, str]]:
    """Collect the marks of every test file here, public reports first."""
    sys.path.insert(0, str(HERE))
    modules = [import_module(path.stem) for path in sorted(HERE.glob("test_field_*.py"))]
    found = [each.report for m in modules for each in vars(m).values() if hasattr(each, "report")]
    return sorted(found, key=lambda row: (row[0] == BY_HAND, row[0].lower()))


def page() -> str:
    found = rows()
    reported = sum(source != BY_HAND for source, _, _ in found)
    lines = "".join(f"| {' | '.join(row)} |\n" for row in found)
    return HEAD.format(count=len(found), reported=reported) + lines


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
