"""What is current: the one test that `plan`, `run`, `tables` and the DAG ask. Imports no torch.

A record is current where its settings, protocol, source and data are the present ones. In a clone without
the data nothing speaks against the record's own hash of them.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import record as records
from benchmarks.errors import BenchmarkError
from benchmarks.record import OUT_OF_MEMORY, PROTOCOL, Record
from benchmarks.running.data_hash import DATA, IMAGES, data_hash
from benchmarks.running.source_hash import source_hash
from benchmarks.spec import RunSpec

# Why a record is not current; where several hold, the first is said.
SETTINGS, OLD_PROTOCOL, SOURCE, OTHER_DATA = (
    "other settings",
    "old protocol",
    "other source",
    "other data",
)


class Present:
    """What is here now; the source and data of every kind of run are looked up once in its life.

    Parameters
    ----------
    content : looks up the hashes of a run's data.
    """

    def __init__(self, content: Callable[[RunSpec], dict[str, str]] = data_hash):
        self._look_up = content
        self._contents: dict[str, dict[str, str]] = {}
        self._sources: dict[tuple, str] = {}

    def content(self, spec: RunSpec) -> dict[str, str]:
        read = json.dumps(
            [
                part.model_dump(mode="json")
                for part in (spec.settings.dataset, spec.settings.upstream)
            ]
        )
        if read not in self._contents:
            self._contents[read] = self._look_up(spec)
        return self._contents[read]

    def source(self, spec: RunSpec) -> str:
        parts = spec.settings
        key = (parts.dataset.name, parts.model.name, parts.upstream.name, parts.refiner.name)
        if (key := (*key, parts.replicas)) not in self._sources:
            self._sources[key] = source_hash(spec)
        return self._sources[key]

    def outdated(self, record: Record, spec: RunSpec) -> str:
        """Say why a record is not what its run would make now; empty where it is current.

        What it does not say, or what is not at hand, does not speak against it. The same is asked of a
        trial of `tune`, which says as much of itself.
        """
        if record.protocol != PROTOCOL:
            return OLD_PROTOCOL
        if record.key != spec.key:
            return SETTINGS
        if record.source and record.source != self.source(spec):
            return SOURCE
        if self.other_data(record.content, spec):
            return OTHER_DATA
        return OUT_OF_MEMORY if record.error.startswith(OUT_OF_MEMORY) else ""

    def other_data(self, recorded: dict[str, str], spec: RunSpec) -> bool:
        """Tell whether data at hand are not those of a record."""
        return any(recorded.get(name, here) != here for name, here in self.content(spec).items())


def up_to_date(spec: RunSpec, results: Path) -> Record | None:
    """Return the record of a run if there is a readable one and it is current."""
    path = records.path_of(results, spec)
    if not path.exists():
        return None
    try:
        record = records.read(path)
    except BenchmarkError:
        return None  # truncated: redone, and the new file takes its place
    return None if Present().outdated(record, spec) else record


@dataclass
class Chosen:
    """The records that tables are made of, and what is to be said about that.

    Attributes
    ----------
    outdated : by table and reason, records that are used though they are not current, since their
        cell has none that is.
    left_out : by table and reason, records that are not used.
    """

    records: list[Record] = field(default_factory=list)
    outdated: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    left_out: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))


def choose(
    found: Iterable[Record], plan: Iterable[RunSpec], present: Present | None = None
) -> Chosen:
    """Choose records: no table mixes two protocols, no cell two sources, no column compares two data.

    Nor are rows of one upstream compared on two generated sets of images.

    Of records that disagree the present ones are taken; where none is present, the newest that agree.
    """
    present, chosen = present or Present(), Chosen()
    plan = list(plan)
    planned, places = {spec.key: spec for spec in plan}, {spec.name: spec for spec in plan}

    def run_of(record: Record) -> RunSpec | None:
        # The new protocol changed settings as well: an old record stands for the run of its name.
        old = places.get(record.spec.name) if record.protocol != PROTOCOL else None
        return planned.get(record.key, old)

    def outdated(record: Record) -> str:
        return present.outdated(record, run_of(record))

    def agreeing(several: list[Record], what: str) -> list[Record]:
        def is_present(record: Record) -> bool:
            here = present.content(run_of(record)).get(what)
            return here in (None, record.content.get(what))

        return _agreeing(several, lambda r: r.content.get(what), is_present)

    found = list(found)
    newest: dict[str, int] = defaultdict(int)
    for record in filter(run_of, found):
        newest[record.spec.table] = max(newest[record.spec.table], record.protocol)
    columns: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in found:
        table = record.spec.table
        if run_of(record) is None:
            chosen.left_out[table][SETTINGS] += 1
        elif record.protocol < newest[table]:
            chosen.left_out[table][OLD_PROTOCOL] += 1
        else:
            columns[table, record.spec.settings.dataset.model_dump_json()].append(record)

    for (table, _), column in columns.items():
        by_upstream = _grouped(
            agreeing(column, DATA), lambda r: r.spec.settings.upstream.model_dump_json()
        ).values()
        same = [record for several in by_upstream for record in agreeing(several, IMAGES)]
        used = []
        for cell in _grouped(same, lambda r: r.spec.bundle).values():
            used += _agreeing(
                cell,
                lambda r: (r.protocol, r.source, json.dumps(r.content, sort_keys=True)),
                lambda r: not outdated(r),
            )
        chosen.records += used
        kept = set(map(id, used))
        for record in column:
            reason = outdated(record)
            if id(record) not in kept:
                chosen.left_out[table][reason or OTHER_DATA] += 1
            elif reason:
                chosen.outdated[table][reason] += 1
    return chosen


def _agreeing(
    found: list[Record],
    identity: Callable[[Record], Hashable],
    is_present: Callable[[Record], bool],
) -> list[Record]:
    """Keep the group of one identity that is present, or else the newest."""
    groups = _grouped(found, identity).values()
    return max(groups, key=lambda g: (any(map(is_present, g)), max(r.finished for r in g)))


def _grouped(
    found: list[Record], identity: Callable[[Record], Hashable]
) -> dict[Hashable, list[Record]]:
    groups: dict[Hashable, list[Record]] = defaultdict(list)
    for record in found:
        groups[identity(record)].append(record)
    return groups
