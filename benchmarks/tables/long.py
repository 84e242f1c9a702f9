"""Tables, claims and overheads as long CSV files: one line per cell, full precision."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable

from benchmarks.tables import cells, efficiency, verdicts
from benchmarks.tables.cells import Table
from benchmarks.tables.efficiency import Overhead
from benchmarks.tables.verdicts import Graded


def table_csv(table: Table) -> str:
    """CSV of a table: per cent, nats for NLL; empty where there is no number, the note says why."""
    lines = [[getattr(cell, name) for name in cells.CSV_COLUMNS] for cell in table.cells]
    return _csv(cells.CSV_COLUMNS, lines)


def claims_csv(graded: Iterable[Graded]) -> str:
    """CSV of graded claims: differences in percentage points, row minus baseline."""
    return _csv(verdicts.CSV_COLUMNS, [_claim(line) for line in graded])


def efficiency_csv(lines: Iterable[Overhead]) -> str:
    """CSV of overheads in training time, per cent of the baseline's."""
    rows = [
        (x.table, x.dataset, *x.row, x.baseline.refiner, x.n, x.mean, x.std, x.paper) for x in lines
    ]
    return _csv(efficiency.CSV_COLUMNS, rows)


def _claim(line: Graded) -> list:
    result = line.result
    numbers = [result.n, result.difference, result.low, result.high, result.p, line.p_holm]
    return [
        line.table,
        line.name,
        line.column.dataset,
        line.row.refiner,
        line.baseline.refiner,
        *numbers,
        line.verdict,
        line.protocol,
    ]


def _csv(columns: Iterable[str], lines: Iterable[Iterable]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_field(value) for value in line] for line in lines)
    return stream.getvalue()


def _field(value: object) -> object:
    """Twelve significant digits: more than any seed count supports, few enough to be equal everywhere."""
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.12g}"
