"""`Times`: what the rows of a cell cost, measured apart from their runs. The record that the tables read.

`benchmarks.studies.timing` measures and writes them. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from benchmarks.errors import BenchmarkError
from benchmarks.spec import Frozen, RunSpec


class Times(Frozen):
    """Training times of the rows of one data set, network and upstream.

    Attributes
    ----------
    seconds : of one training epoch, by row, one value a round; evaluation is not in them.
    keys : of each row's run with the first seed; times of another recipe do not enter a table.
    clock : ``processor`` on a CPU, ``wall`` on a GPU, which works while the processor waits.
    steps : that each row takes in each round.
    """

    table: str
    dataset: str
    backbone: str
    upstream: str
    keys: dict[str, str]
    seconds: dict[str, list[float]]
    clock: Literal["processor", "wall"]
    steps: int
    device: str = ""
    finished: str = ""
    commit: str = ""

    def of(self, planned: set[str]) -> Times:
        """Keep the rows whose runs are planned as they were when measured."""
        kept = {row: values for row, values in self.seconds.items() if self.keys[row] in planned}
        return self.model_copy(update={"seconds": kept})

    @property
    def how(self) -> str:
        """How it was measured, for a note under the table."""
        rounds = len(next(iter(self.seconds.values())))
        return f"{rounds} rounds of {self.steps} steps, {self.clock} time, {self.device}"


def path_of(results: Path, spec: RunSpec) -> Path:
    """Place of a file of times: ``times/table2/qsar/mlp/cutmix.json``."""
    folder = (results / "times" / spec.bundle).parent
    return folder.with_name(f"{folder.name}.json")  # not with_suffix: cutmix-0.3 has a dot


def read(path: Path) -> Times:
    """Read one file; a truncated or foreign one is a `BenchmarkError` naming it."""
    try:
        return Times.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise BenchmarkError(
            f"{path} holds no times ({str(error).splitlines()[0]}): delete it and measure again"
        ) from error


def load_all(results: Path) -> Iterator[Times]:
    """Yield what was measured for a results folder, in path order."""
    for path in sorted((results / "times").rglob("*.json")):
        yield read(path)
