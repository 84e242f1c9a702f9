"""The registry behind docs/robustness.md: situations that were tried, each a function that checks itself.

A situation returns what shows that it is right ("Pi as by K x B backward passes"), or the error that
refused it (`refused`). Whatever else happens is a failure. Files `situations_*.py` beside this one are
found by name. Regenerate the page with ``python tests/saflex/situations.py``.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "robustness.md"

_FOUND: dict[tuple[str, str], Situation] = {}


@dataclass(frozen=True)
class Situation:
    """One row of the page.

    Attributes
    ----------
    part : heading it stands under.
    name : what was tried.
    outcome : what came out, checked: the text of the last column.
    """

    part: str
    name: str
    run: Callable[[], str]

    def row(self) -> str:
        return f"| {self.name} | {self.run()} |"


def situation(part: str, name: str) -> Callable:
    """Register a function that tries something and returns its outcome."""

    def register(run: Callable[[], str]) -> Callable[[], str]:
        if (part, name) in _FOUND:
            raise ValueError(f"two situations are called {name!r} in {part!r}")
        run = functools.cache(run)
        _FOUND[part, name] = Situation(part, name, run)
        return run

    return register


def refused(kind: type[Exception], attempt: Callable[[], object], *, naming: str) -> str:
    """The outcome of an attempt that must end in one error, which names the matter."""
    try:
        attempt()
    except kind as error:
        said = " ".join(str(error).split())
        if naming not in said:
            raise AssertionError(f"{naming!r} is not in {said!r}") from error
        return f"refused: {kind.__name__}, “{said}”".replace("|", "\\|")
    raise AssertionError(f"{kind.__name__} was expected, and nothing was raised")


def all_situations() -> list[Situation]:
    """Every situation of every file, in the order of files and lines."""
    for file in sorted(HERE.glob("situations_*.py")):
        importlib.import_module(file.stem)
    return list(_FOUND.values())


def page(rows: Callable[[Situation], str] = Situation.row) -> str:
    """docs/robustness.md, made by trying everything."""
    found = all_situations()
    refusals = 0
    parts: dict[str, list[str]] = {}
    for each in found:
        line = rows(each)
        refusals += "| refused: " in line
        parts.setdefault(each.part, ["| tried | outcome |", "|---|---|"]).append(line)
    tables = [f"## {part}\n\n" + "\n".join(lines) + "\n" for part, lines in parts.items()]
    return _HEAD.format(
        count=len(found), right=len(found) - refusals, refused=refusals
    ) + "\n".join(tables)


_HEAD = """# What was tried

{count} situations: {right} right, {refused} refused by an error that names the matter. There is no third
kind: every row is a test (`tests/saflex/test_robustness.py`), which tries it, checks what came out against
brute force, against torch's own loss or against the same thing done plainly, and compares its row with this
page. `make robustness` writes the page anew.

"""

if __name__ == "__main__":
    # Under its own name, so that the files found register here.
    sys.modules["situations"] = sys.modules["__main__"]
    sys.path.insert(0, str(HERE))
    PAGE.write_text(page(), encoding="utf-8")
