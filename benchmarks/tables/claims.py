"""Graded claims as Markdown: counts by claim, then every line with the paper's own difference."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

from benchmarks.paper import Claim, claims
from benchmarks.tables import markdown, protocols
from benchmarks.tables.cells import SELECTIONS, Table
from benchmarks.tables.layout import DASH, SELECTION_NAMES
from benchmarks.tables.verdicts import Graded, applies

RULES = """\
* Row minus baseline, paired by seed, in percentage points of the primary metric; for time, the measured
  overhead less the paper's, in per cent. 95 % t-interval, two-sided paired t-test.
* **reproduced**: the whole interval lies on the claim's side of 0. **contradicted**: the whole interval
  lies on the other side. **undecided**: it crosses 0, or there is none (fewer than two paired seeds, or
  the same difference in every seed). A claim of "at least as good" (>=) also counts as reproduced where
  the interval begins exactly at 0; an interval around 0 leaves it undecided.
* A claim about time compares a row with what trains on as many samples: a row with the clean batch in its
  loss with clean+aug, an -aug-only row with upstream. The tables' time blocks show both.
* The verdict follows the interval; p (Holm) is corrected over the paper's claims of one table, and
  separately over the controls of one table. Counts "after Holm" keep verdicts with p (Holm) < 0.05.
* The paper has one SAFLEX row; each of ours is graded alone. "Paper" is the same difference between the
  paper's own two cells: where it has the other sign, the paper's own numbers do not support its sentence."""
VERDICTS = ("reproduced", "contradicted", "undecided", "not run")


def kind(line: Graded) -> str:
    """Verdict of a line without its reason."""
    return next(v for v in VERDICTS if line.verdict.startswith(v))


def render(by_selection: dict[str, list[Graded]], tables: list[Table]) -> str:
    """Markdown of the claims about a suite's tables: counts in each selection, lines in the primary one."""
    parts = ["# Claims"]
    if old := [table for table in tables if table.runs and protocols.warning(table.protocol)]:
        names = ", ".join(f"table {table.id}" for table in old)
        parts.append(f"**{markdown.escape(f'{names}: {protocols.warning(old[0].protocol)}')}**")
    parts.append(RULES)
    for selection, lines in by_selection.items():
        parts.append(f"## Counts, {SELECTION_NAMES[selection]}\n\n{_counts(lines)}")
    primary = by_selection[SELECTIONS[0]]
    for claim in dict.fromkeys(_identity(line) for line in primary):
        parts.append(_section([line for line in primary if _identity(line) == claim]))
    if ungraded := [c for c in claims() if c.ungraded and any(applies(c, t) for t in tables)]:
        lines = [
            f"* Table {c.table}, `{c.id}`: {_quote(c)}. Not graded: {c.ungraded}." for c in ungraded
        ]
        parts.append("## Claims that no line grades\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _identity(line: Graded) -> tuple[str, str, str]:
    return (line.table, line.claim.id, line.claim.quote)


def _counts(lines: list[Graded]) -> str:
    """Counts by table, claim and row."""
    grouped: dict[tuple[str, ...], list[Graded]] = defaultdict(list)
    for x in lines:
        grouped[x.table, x.claim.source, x.name, x.row.refiner].append(x)
    rows = []
    for key, mine in grouped.items():
        count = Counter(kind(line) for line in mine)
        firm = Counter(kind(line) for line in mine if line.p_holm < 0.05)
        cells = [
            f"{count[v]}" + (f" ({firm[v]} after Holm)" if firm[v] != count[v] else "")
            if v in VERDICTS[:2] and count[v]
            else f"{count[v]}"
            for v in VERDICTS
        ]
        table, source, name, refiner = key
        rows.append([table, source, _code(name), refiner, *cells])
    return markdown.grid(["table", "source", "claim", "row", *VERDICTS], rows)


def _section(lines: list[Graded]) -> str:
    claim, table = lines[0].claim, lines[0].table
    shown = [line for line in lines if line.is_run]
    rows = [_row(line) for line in shown]
    text = [
        f"## Table {table}, `{claim.id}`, {SELECTION_NAMES[lines[0].selection]}",
        f"{_quote(claim)}{' Implied.' if claim.stated == 'implied' else ''}",
    ]
    if rows:
        headings = ["claim", "data set", "row", "baseline", "n", "difference", "95 % interval"]
        text.append(markdown.grid([*headings, "p", "p (Holm)", "paper", "verdict"], rows))
    reasons = Counter(line.verdict for line in lines if not line.is_run)
    if reasons:
        text.append("\n".join(_reason(lines, reason) for reason in reasons))
    return "\n\n".join(text)


def _reason(lines: list[Graded], reason: str) -> str:
    """One line for all columns and rows that were not run for the same reason."""
    mine = [line for line in lines if line.verdict == reason]
    datasets = ", ".join(dict.fromkeys(line.column.dataset for line in mine))
    return (
        f"* {markdown.escape(reason)}: {datasets} ({len(mine)} line{'s' if len(mine) > 1 else ''})"
    )


def _row(line: Graded) -> list[str]:
    result, unit = line.result, "%" if line.claim.kind == "time" else ""
    interval = DASH
    if not math.isnan(result.low):
        interval = f"{_signed(result.low)}{unit} to {_signed(result.high)}{unit}"
    elsewhere = f" (table {line.baseline_table})" if line.baseline_table != line.table else ""
    return [
        _code(line.name),
        line.column.dataset,
        line.row.refiner,
        line.baseline.refiner + elsewhere,
        str(result.n),
        _signed(result.difference) + unit,
        interval,
        _p(result.p),
        _p(line.p_holm),
        _paper(line),
        line.verdict,
    ]


def _paper(line: Graded) -> str:
    if line.claim.expected is not None:
        return f"{line.claim.expected:g}{'%' if line.claim.kind == 'time' else ''}"
    return _signed(line.paper_difference)


def _quote(claim: Claim) -> str:
    if claim.source == "control":
        return f"{claim.section}: {claim.quote}."
    return f"{claim.section}: “{claim.quote}”"


def _code(text: str) -> str:
    return f"`{text}`"


def _signed(value: float) -> str:
    return DASH if math.isnan(value) else f"{value:+.2f}".replace("-", "−")


def _p(value: float) -> str:
    if math.isnan(value):
        return DASH
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
