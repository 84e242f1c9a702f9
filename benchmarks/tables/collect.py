"""Records, the plan and the published cells -> `Table`, for every table of a suite."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from benchmarks.paper import Published, names, paper_row, published
from benchmarks.record import PROTOCOL, Record
from benchmarks.running import current
from benchmarks.running.data_hash import DATA
from benchmarks.spec import RunSpec
from benchmarks.suite import Suite, TableSpec
from benchmarks.tables import cards, selection, variants
from benchmarks.tables.cells import SELECTIONS, Cell, Column, Row, Table, scale
from benchmarks.tables.statistics import mean_std
from benchmarks.tables.times import Times

DEFAULT_REASON = "not part of this suite"


def collect(
    suite: Suite,
    plan: list[RunSpec],
    records: Iterable[Record],
    times: Iterable[Times] = (),
    told: Mapping[str, cards.Card | None] = MappingProxyType({}),
) -> list[Table]:
    """Build every table of a suite.

    A record counts when its key is that of a planned run and no other of its cell is nearer to the
    present source and data (`benchmarks.running.current.choose`); a note under the table counts those left
    out. Times count by the key alone, row by row. `told` are the cards of data sets, for what their records
    do not say.
    """
    planned = {spec.key for spec in plan}
    chosen = current.choose(records, plan)
    used: dict[str, list[Record]] = defaultdict(list)
    for record in chosen.records:
        used[record.spec.table].append(record)
    timed: dict[str, list[Times]] = defaultdict(list)
    for one in times:
        timed[one.table].append(one)
    return [
        _Builder(
            identifier,
            spec,
            variants.planned(run for run in plan if run.table == identifier),
            variants.recorded(selection.at_partners_epoch(used[identifier])),
            _notes_on_records(chosen, identifier),
            [one.of(planned) for one in timed[identifier]],
            told,
        ).table()
        for identifier, spec in suite.tables.items()
    ]


class _Builder:
    """Everything one table is built from, indexed by (row, data set)."""

    def __init__(
        self,
        identifier: str,
        spec: TableSpec,
        plan: list[RunSpec],
        records: list[Record],
        on_records: list[str],
        times: list[Times],
        told: Mapping[str, cards.Card | None],
    ):
        self.id, self.spec, self.on_records, self.told = identifier, spec, on_records, told
        self.times = [one for one in times if one.seconds]
        self.protocol = max((record.protocol for record in records), default=PROTOCOL)
        self.paper = [cell for cell in published() if cell.table == identifier]
        self.paper_cell = {
            (c.dataset, c.split, c.backbone, c.upstream, c.refiner): c for c in self.paper
        }
        self.plan: dict[tuple[Row, str], list[RunSpec]] = defaultdict(list)
        for run in plan:
            self.plan[_row(run), run.dataset].append(run)
        self.complete: dict[tuple[Row, str], dict[int, Record]] = defaultdict(dict)
        self.failed: dict[tuple[Row, str], list[Record]] = defaultdict(list)
        for record in sorted(records, key=lambda r: r.spec.seed):
            place = (_row(record.spec), record.spec.dataset)
            if record.status == "complete":
                self.complete[place][record.spec.seed] = record
            else:
                self.failed[place].append(record)
        self.splits: dict[str, dict[str, None]] = defaultdict(dict)
        self.metrics: dict[str, set[str]] = defaultdict(set)
        for (_, dataset), runs in self.complete.items():
            for record in runs.values():
                measured = _test_metrics(record)
                self.splits[dataset] |= dict.fromkeys(split for split, _ in measured)
                self.metrics[dataset] |= {metric for _, metric in measured}

    def table(self) -> Table:
        metric_of = self._metric_of()
        columns, rows = self._columns(metric_of), self._rows()
        cells = [
            self._cell(row, column, metric, chosen)
            for column in columns
            for row in rows
            for metric in self._metrics(column.dataset, metric_of[column.dataset])
            for chosen in SELECTIONS
        ]
        notes = list(names().notes.get(self.id, []))
        notes += selection.notes(run for runs in self.plan.values() for run in runs)
        notes += self.on_records
        if self.times:
            how = "; ".join(sorted({one.how for one in self.times}))
            notes.append(
                "Training times were measured apart from the runs, the rows taking turns in one process "
                f"({how}). There n counts rounds, and the deviation is theirs."
            )
        elif self.spec.untimed:
            notes.append(f"Training times are left out: {self.spec.untimed}.")
        return Table(
            id=self.id,
            title=self.spec.title or names().titles.get(self.id, ""),
            metric_of=metric_of,
            columns=columns,
            rows=rows,
            cells=tuple(cells),
            runs=dict(self.complete),
            missing={
                (row, dataset): self._missing(row, dataset)
                for row in rows
                for dataset in metric_of
                if not self.complete.get((row, dataset))
            },
            dataset_notes=self._dataset_notes(),
            notes=tuple(notes),
            protocol=self.protocol,
            untimed=self.spec.untimed,
            times={
                (Row(one.backbone, one.upstream, refiner), one.dataset): dict(enumerate(seconds))
                for one in self.times
                for refiner, seconds in one.seconds.items()
            },
        )

    def _metric_of(self) -> dict[str, str]:
        """Primary metric by data set: the suite's data sets first, then those only the paper has."""
        metric_of = {
            name: entry.metric or self.spec.metric for name, entry in self.spec.datasets.items()
        }
        for cell in self.paper:
            metric_of.setdefault(cell.dataset, cell.metric)
        return metric_of

    def _columns(self, metric_of: dict[str, str]) -> tuple[Column, ...]:
        columns = []
        for dataset in metric_of:
            splits = {c.split: None for c in self.paper if c.dataset == dataset}
            splits |= self.splits[dataset]
            columns += [Column(dataset, split) for split in splits or ["test"]]
        return tuple(columns)

    def _rows(self) -> tuple[Row, ...]:
        """Rows in the suite's order, then published rows that none of them answers to."""
        rows = dict.fromkeys(row for row, _ in self.plan)
        backbones = list(dict.fromkeys([*self.spec.backbones, *(c.backbone for c in self.paper)]))
        answered = {row._replace(refiner=paper_row(row.refiner)) for row in rows}
        for cell in self.paper:
            row = Row(cell.backbone, cell.upstream, cell.refiner)
            if row not in answered:
                rows[row] = None
        upstreams = list(dict.fromkeys(["none", *self.spec.upstreams, *(r.upstream for r in rows)]))
        return tuple(
            sorted(
                rows,
                key=lambda r: (
                    backbones.index(variants.base(r.backbone)),
                    r.backbone,
                    upstreams.index(r.upstream),
                ),
            )
        )

    def _metrics(self, dataset: str, primary: str) -> list[str]:
        """Primary metric, NLL, calibration error, then whatever else the records of a data set carry."""
        return list(dict.fromkeys([primary, "nll", "ece", *sorted(self.metrics[dataset])]))

    def _cell(self, row: Row, column: Column, metric: str, chosen: str) -> Cell:
        runs = self.complete.get((row, column.dataset), {})
        values = [
            record.metrics.get(chosen, {}).get(f"{column.split}/{metric}", math.nan)
            for record in runs.values()
        ]
        shown = [value * scale(metric) for value in values if not math.isnan(value)]
        mean, std = mean_std(shown)
        paper = self._paper(row, column, metric)
        return Cell(
            table=self.id,
            dataset=column.dataset,
            split=column.split,
            backbone=row.backbone,
            refiner=row.refiner,
            upstream=row.upstream,
            metric=metric,
            selection=chosen,
            n=len(shown),
            planned=len(self.plan.get((row, column.dataset), [])),
            mean=mean,
            std=std,
            paper_mean=paper.mean if paper else math.nan,
            paper_std=paper.std if paper else math.nan,
            reduced=self._reduced(row, column.dataset),
            status=self._status(row, column, values, metric, chosen),
            blank=paper is None and bool(self._absent(row, column.dataset)),
            protocol=self.protocol,
        )

    def _paper(self, row: Row, column: Column, metric: str) -> Published | None:
        key = (*column, row.backbone, row.upstream, paper_row(row.refiner))
        cell = self.paper_cell.get(key)
        return cell if cell and cell.metric == metric else None

    def _reduced(self, row: Row, dataset: str) -> str:
        runs = self.plan.get((row, dataset), [])
        return "; ".join(dict.fromkeys(run.reduced for run in runs if run.reduced))

    def _status(
        self, row: Row, column: Column, values: list[float], metric: str, chosen: str
    ) -> str:
        """Say what is missing from a cell; empty where every planned seed is there and finite."""
        if not values:
            return self._missing(row, column.dataset)
        parts = []
        failed = self.failed.get((row, column.dataset), [])
        absent = len(self.plan[row, column.dataset]) - len(values) - len(failed)
        if failed:
            parts.append(f"{_seeds(len(failed))} failed: {_first_error(failed)}")
        if absent:
            parts.append(f"{_seeds(absent)} not run yet")
        unknown = sum(map(math.isnan, values))
        if chosen == "best_validation":
            runs = self.complete[row, column.dataset].values()
            for reason, count in Counter(filter(None, map(selection.obstacle, runs))).items():
                parts.append(f"no best validation epoch for {_seeds(count)}: {reason}")
                unknown -= count
        if unknown:
            parts.append(f"{metric} not available for {_seeds(unknown)}")
        if infinite := sum(map(math.isinf, values)):
            parts.append(f"{metric} infinite in {_seeds(infinite)}")
        return "; ".join(parts)

    def _missing(self, row: Row, dataset: str) -> str:
        """Say why a cell has no complete record at all."""
        if runs := self.plan.get((row, dataset)):
            if failed := self.failed.get((row, dataset)):
                absent = len(runs) - len(failed)
                yet = f"; {_seeds(absent)} not run yet" if absent else ""
                return f"failed: {_seeds(len(failed))}: {_first_error(failed)}{yet}"
            return f"not run: none of {_seeds(len(runs))} has a record yet"
        return f"not run: {self._reason(row, dataset)}"

    def _reason(self, row: Row, dataset: str) -> str:
        """Reason the suite gives for a cell it does not plan."""
        if reason := self._absent(row, dataset):
            return reason
        place = {
            "dataset": dataset,
            "backbone": row.backbone,
            "upstream": row.upstream,
            "row": row.refiner,
        }
        for change in self.spec.overrides:
            if change.skip and all(place[field] in known for field, known in change.match.items()):
                return change.skip
        return DEFAULT_REASON

    def _absent(self, row: Row, dataset: str) -> str:
        """Reasons the suite gives for running nothing of an upstream, network or data set at all."""
        entries = (
            self.spec.upstreams.get(row.upstream),
            self.spec.backbones.get(variants.base(row.backbone)),
            self.spec.datasets.get(dataset),
        )
        return ", ".join(entry.not_run for entry in entries if entry and entry.not_run)

    def _dataset_notes(self) -> dict[str, tuple[str, ...]]:
        notes: dict[str, dict[str, None]] = {}
        contents: dict[str, set[str]] = defaultdict(set)
        for (_, dataset), runs in self.complete.items():
            for record in runs.values():
                notes.setdefault(dataset, {}).update(dict.fromkeys(record.data.get("notes", [])))
                contents[dataset] |= {record.content[DATA]} if DATA in record.content else set()
        for dataset, own in notes.items():
            if card := self.told.get(dataset):
                notes[dataset] = dict.fromkeys(cards.notes(card, contents[dataset])) | own
        return {dataset: tuple(lines) for dataset, lines in sorted(notes.items()) if lines}


def _notes_on_records(chosen: current.Chosen, table: str) -> list[str]:
    """Say which records a table leaves out, and which it shows although they are not current."""
    notes, left_out = [], dict(chosen.left_out[table])
    if count := left_out.pop(current.SETTINGS, 0):
        notes.append(
            f"Left out: {_records(count)} on disk of settings that this suite does not plan."
        )
    if count := left_out.pop(current.OLD_PROTOCOL, 0):
        notes.append(f"Left out: {_records(count)} of the old protocol; no table mixes two.")
    if left_out:
        notes.append(
            f"Left out: {_listed(left_out)} than those shown; no cell averages two of them. `run` makes "
            "them anew."
        )
    outdated = dict(chosen.outdated[table])
    outdated.pop(current.OLD_PROTOCOL, None)  # the table's head says so
    if outdated:
        notes.append(
            f"Not up to date: of what is shown, {_listed(outdated)} than the present; `run` makes "
            "them anew."
        )
    return notes


def _listed(counted: dict[str, int]) -> str:
    """``3 records of other data, 1 record of other source``."""
    return ", ".join(f"{_records(count)} of {why}" for why, count in sorted(counted.items()))


def _records(count: int) -> str:
    return f"{count} record{'' if count == 1 else 's'}"


def _row(spec: RunSpec) -> Row:
    return Row(spec.backbone, spec.upstream, spec.row)


def _test_metrics(record: Record) -> list[tuple[str, str]]:
    """Test splits and metrics that a record has, such as ``("id_test", "macro_f1")``, in its own order."""
    named = (name.partition("/") for name in record.metrics.get("last", {}))
    return [(split, metric) for split, slash, metric in named if slash and split.endswith("test")]


def _seeds(count: int) -> str:
    return f"{count} seed{'' if count == 1 else 's'}"


def _first_error(failed: list[Record]) -> str:
    lines = failed[0].error.strip().splitlines()
    return lines[-1].strip() if lines else "no reason recorded"
