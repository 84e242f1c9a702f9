"""Options that several verbs take, and what they stand for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import sources

SuiteName = Annotated[
    str, typer.Option("--suite", "-s", help="demo, cpu, paper, or the path of a suite's YAML file")
]
Results = Annotated[
    Path | None,
    typer.Option(
        "--results",
        parser=sources.path_given,
        help="results folder; default: results/<suite> of the checkout",
    ),
]


def finite(value: float) -> float:
    """Refuse nan, which no bound of an option holds back, and infinity."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no length of time: give a finite number")
    return value


def folder_of(suite: str, results: Path | None) -> Path:
    """Give the results folder of a suite: the one named, or its own in the checkout."""
    from benchmarks import record

    return results or record.folder(suite)
