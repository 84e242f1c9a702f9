"""`merge`: records of several machines into one results folder; the same run must agree everywhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import record as records
from benchmarks.errors import BenchmarkError
from benchmarks.record import Record


@dataclass(frozen=True)
class Merged:
    """How many records a merge brought in, and how many were there already."""

    new: int
    known: int


def merge(sources: Iterable[Path], into: Path) -> Merged:
    """Bring the records of results folders together; all of them or, on an error, none.

    Two records of one key agree when they differ in nothing but time, machine and versions
    (`record.canonical`); of another source or other data they differ. A run that failed on one machine
    and not on another differs.

    Raises
    ------
    BenchmarkError
        A folder has no records, a record is damaged, or two records of one run differ; every such
        pair is named.
    """
    sources = list(sources)
    found: dict[Path, tuple[Path, Record]] = {}
    problems: list[str] = []
    arriving: set[Path] = set()
    for folder in [into, *sources]:
        paths = sorted((folder / "records").rglob("seed*.json"))
        if not paths and folder != into:
            problems.append(
                f"{folder} holds no records: give a results folder, such as results/cpu"
            )
        for path in paths:
            try:
                record = records.read(path)
            except BenchmarkError as error:
                problems.append(str(error))
                continue
            target = records.path_of(into, record.spec)
            if target not in found:
                found[target] = (path, record)
                if folder != into:
                    arriving.add(target)
            elif problem := _disagreement(found[target], (path, record)):
                problems.append(problem)
    if problems:
        raise BenchmarkError("\n".join(problems))
    for target in sorted(arriving):
        records.write(into, found[target][1])
    merged = Merged(new=len(arriving), known=len(found) - len(arriving))
    print(f"{into}: {merged.new} new records, {merged.known} were there already")
    if mixed := _mixed(record for _, record in found.values()):
        print(
            f"{mixed} cells hold records of several protocols, sources or data: tables average no two "
            "of them, `plan` says which are current and `run` makes the others anew"
        )
    return merged


def _mixed(found: Iterable[Record]) -> int:
    """Count the cells whose records were not all made from the same."""
    made_from: dict[str, set] = defaultdict(set)
    for record in found:
        content = tuple(sorted(record.content.items()))
        made_from[record.spec.bundle].add((record.protocol, record.source, content))
    return sum(len(several) > 1 for several in made_from.values())


def _disagreement(one: tuple[Path, Record], other: tuple[Path, Record]) -> str:
    """Say how two records of one run differ; empty where they agree."""
    (first, a), (second, b) = one, other
    if records.canonical(a) == records.canonical(b):
        return ""
    differing = [
        name
        for name in type(a).model_fields
        if records.canonical(a.model_copy(update={name: getattr(b, name)})) != records.canonical(a)
    ]
    return (
        f"{first} and {second} are records of the same run and differ in {', '.join(differing)}: "
        "keep one of them"
    )
