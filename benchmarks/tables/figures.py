"""Figures of a table: claims as a forest plot, NLL curves, the refiner's diagnostics.

The same records give the same bytes: matplotlib's Agg canvas without a display, no dates in the files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from benchmarks.record import PROTOCOL, replacing
from benchmarks.tables.cells import Row, Table
from benchmarks.tables.progress import shown
from benchmarks.tables.protocols import OLD_PROTOCOL
from benchmarks.tables.verdicts import Graded

COLORS = {
    "none": "#6e7781",
    "upstream": "#1b1f24",
    "clean+aug": "#bf8700",
    "train+val": "#1a7f37",
    "none-train+val": "#8fce9f",
    "weights-only": "#8250df",
    "soft-augmentation": "#0a9396",
    "lp-a3": "#ca6702",
    "saflex-printed": "#cf222e",
    "saflex-derived": "#fb8f44",
    "saflex": "#0969da",
    "saflex-memory": "#0a9396",
    "confidence-filter": "#bf3989",
    "zero-shot": "#6e7781",
    "lp-ft": "#bf3989",
    "flyp": "#0a9396",
    "flyp-ties-shared": "#2da44e",
}
OTHERS = ("#9a6700", "#bf3989", "#57606a", "#2da44e", "#218bff", "#a475f9")
DIAGNOSTICS = {
    "weight_mean": "mean sample weight",
    "accepted": "share with weight > 0",
    "label_unchanged": "share of labels kept",
    "label_entropy": "label entropy, nats",
}
WIDEST = 20.0  # percentage points; beyond, the axis is linear near 0 and logarithmic outside
RC = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "saflex",
}


def draw(collected: list[Table], graded: list[Graded], folder: Path) -> list[Path]:
    """Draw every figure of a suite's tables; a figure without data is not drawn.

    Parameters
    ----------
    graded : the claims in the selection to be shown.
    folder : where the PNG files go.
    """
    import matplotlib

    waiting = [
        (folder / f"table{table.id}-{name}.png", make)
        for table in collected
        for name, make in _figures(table, graded)
    ]
    written = []
    with matplotlib.rc_context(RC):
        for target, make in shown(waiting, "drawing figures"):
            if figure := make():
                save(figure, target)
                written.append(target)
    return written


def _figures(
    table: Table, graded: list[Graded]
) -> Iterator[tuple[str, Callable[[], Figure | None]]]:
    """Name every figure of a table, and how to make it."""
    lines = [g for g in graded if g.table == table.id and g.is_run and g.claim.kind == "metric"]
    for name in dict.fromkeys(line.name for line in lines):
        of_claim = [line for line in lines if line.name == name]
        yield f"claims-{_slug(name)}", partial(forest, of_claim, order=list(table.metric_of))
    for backbone, upstream in dict.fromkeys((r.backbone, r.upstream) for r in table.rows):
        rows = [
            r for r in table.rows if r.backbone == backbone and r.upstream in (upstream, "none")
        ]
        if upstream == "none" and any(
            r.backbone == backbone and r.upstream != "none" for r in table.rows
        ):
            continue  # rows without augmentation are drawn with each upstream's
        place = f"{backbone}-{upstream}".replace("+", "-")
        heading = f"Table {table.id}, {backbone}, {upstream}{_mark(table.protocol)}"
        panels = {"nll": {"val/nll": "validation NLL", "test/nll": "test NLL"}}
        panels["diagnostics"] = _diagnostic_panels(table, rows)
        for kind, series in panels.items():
            yield f"{kind}-{place}", partial(curves, table, rows, series, heading=heading)


def forest(lines: list[Graded], *, order: Sequence[str]) -> Figure:
    """Paired differences of one claim with their intervals, by data set and row, beside the paper's."""
    refiners = list(dict.fromkeys(line.row.refiner for line in lines))
    datasets = sorted({line.column.dataset for line in lines}, key=order.index)
    height = 1.5 + 0.22 * len(datasets) * (len(refiners) + 1) + 0.18 * len(refiners)
    figure = blank(7.2, max(3.0, height))
    axes = figure.subplots()
    for line in lines:
        d = datasets.index(line.column.dataset)
        y = d + (refiners.index(line.row.refiner) + 1) / (len(refiners) + 1) - 0.5
        result, color = line.result, _color(line.row.refiner, refiners)
        if math.isfinite(result.low):
            axes.plot([result.low, result.high], [y, y], color=color, lw=1.6, solid_capstyle="butt")
        shape = "o" if math.isfinite(result.low) else "x"
        axes.plot([result.difference], [y], shape, color=color, ms=4.5)
    _paper_marks(axes, lines, datasets)
    for position in range(1, len(datasets)):
        axes.axhline(position - 0.5, color="#d0d7de", lw=0.6)
    axes.axvline(0, color="#1b1f24", lw=0.8)
    axes.set_ylim(len(datasets) - 0.5, -0.5)
    axes.set_yticks(range(len(datasets)), datasets)
    axes.tick_params(axis="y", length=0)
    _widen(axes, lines)
    first = lines[0]
    baseline = f"{first.baseline.refiner}, {first.baseline.upstream}".removesuffix(", none")
    axes.set_xlabel(
        f"difference to {baseline}, percentage points (95 % interval, n = {_counts(lines)})"
    )
    where = f"Table {first.table}, {first.row.backbone}, {first.row.upstream}"
    title = f"{where}: {first.claim.id}{_mark(first.protocol)}"
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")  # the axes are narrower than a long one
    handles = [
        axes.plot([], [], "o-", color=_color(r, refiners), ms=4.5, label=r)[0] for r in refiners
    ]
    if any(not math.isnan(line.paper_difference) for line in lines):
        handles += axes.plot([], [], "D", mfc="none", color="#1b1f24", ms=5, label="paper")
    if any(not math.isfinite(line.result.low) for line in lines):
        handles += axes.plot([], [], "x", color="#1b1f24", ms=4.5, label="no interval")
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
    return figure


def curves(
    table: Table, rows: Sequence[Row], series: dict[str, str], *, heading: str
) -> Figure | None:
    """Mean ± standard deviation over seeds of named curves, data sets as rows of panels.

    Returns
    -------
    None where no record of these rows has any of the curves.
    """
    drawn = {
        (dataset, name, row): points
        for dataset in table.metric_of
        for name in series
        for row in rows
        if (points := _mean_curve(table, row, dataset, name)) is not None
    }
    if not drawn:
        return None
    datasets = list(dict.fromkeys(dataset for dataset, _, _ in drawn))
    names = [name for name in series if any(n == name for _, n, _ in drawn)]
    present = [row for row in rows if any(r == row for _, _, r in drawn)]
    figure = blank(2.2 + 3.2 * len(names), 1.0 + 2.1 * len(datasets))
    panels = figure.subplots(len(datasets), len(names), squeeze=False)
    refiners = [row.refiner for row in present]
    for i, dataset in enumerate(datasets):
        for j, name in enumerate(names):
            axes = panels[i, j]
            for row in present:
                if (points := drawn.get((dataset, name, row))) is not None:
                    _band(axes, points, _color(row.refiner, refiners))
            epochs = sorted({x for line in axes.lines for x in line.get_xdata()})
            # Around an only epoch the other locator would put fractions of one.
            only = len(epochs) == 1
            axes.xaxis.set_major_locator(
                FixedLocator(epochs) if only else MaxNLocator("auto", integer=True)
            )
            axes.set_title(f"{dataset}: {series[name]}", fontsize=9, loc="left")
            if i == len(datasets) - 1:
                axes.set_xlabel("epoch")
        if all(name.endswith("/nll") for name in names):
            fair = [
                points
                for (d, name, row), points in drawn.items()
                if d == dataset and not (name.startswith("val/") and _saw_validation(table, row))
            ]
            _share_scale(panels[i], fair)
    handles = [
        panels[0, 0].plot([], [], "-", color=_color(r, refiners), label=r)[0] for r in refiners
    ]
    figure.suptitle(heading, fontsize=10, x=0.01, ha="left")
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
    return figure


def _diagnostic_panels(table: Table, rows: Sequence[Row]) -> dict[str, str]:
    """The refiner's curves to show: weights and labels where it reports them, else its first four."""
    found = {
        name
        for (row, _), runs in table.runs.items()
        if row in rows
        for record in runs.values()
        for name in record.curves
        if name.startswith("refiner/")
    }
    known = {f"refiner/{name}": title for name, title in DIAGNOSTICS.items()}
    if reported := {name: title for name, title in known.items() if name in found}:
        return reported
    return {name: name.removeprefix("refiner/").replace("_", " ") for name in sorted(found)[:4]}


def _mean_curve(
    table: Table, row: Row, dataset: str, name: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Epochs, mean and deviation over the seeds that share the most common epochs."""
    runs = [
        (tuple(record.curves["epoch"]), record.curves[name])
        for _, record in sorted(table.runs.get((row, dataset), {}).items())
        if len(record.curves.get(name, [])) == len(record.curves.get("epoch", [])) > 0
    ]
    if not runs:
        return None
    epochs = max((epochs for epochs, _ in runs), key=lambda e: (len(e), e))
    values = np.array([v for e, v in runs if e == epochs], dtype=float)
    values[~np.isfinite(values)] = np.nan
    known = np.isfinite(values).any(axis=0)
    if not known.any():
        return None
    values = values[:, known]
    mean = np.nanmean(values, axis=0)
    count = np.isfinite(values).sum(axis=0)
    squares = np.nansum((values - mean) ** 2, axis=0)
    deviation = np.sqrt(squares / np.maximum(count - 1, 1))
    return np.array(epochs)[known], mean, deviation


def _band(axes, points: tuple[np.ndarray, np.ndarray, np.ndarray], color: str) -> None:
    x, mean, deviation = points
    axes.fill_between(x, mean - deviation, mean + deviation, color=color, alpha=0.15, lw=0)
    axes.plot(x, mean, color=color, lw=1.2, marker="o" if len(x) == 1 else "")


def _saw_validation(table: Table, row: Row) -> bool:
    """Whether a row trains on the validation data; its NLL there falls to 0 and would set the scale."""
    records = (r for (place, _), runs in table.runs.items() if place == row for r in runs.values())
    return any(record.spec.trains_on_validation for record in records)


def _share_scale(axes: Sequence, drawn: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
    """One scale for validation and test: the gap between them is what the figure is for."""
    means = np.concatenate([np.zeros(0), *(mean for _, mean, _ in drawn)])
    means = means[means > 0]
    low, high = (means.min(), means.max()) if len(means) else (0.1, 1.0)
    logarithmic = high > 8 * low
    for panel in axes:
        if logarithmic:
            panel.set_yscale("log")
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panel.yaxis.set_minor_formatter(NullFormatter())
            panel.set_ylim(low / 1.2, high * 1.2)
        else:
            margin = 0.08 * (high - low) or 0.05 * high
            panel.set_ylim(low - margin, high + margin)


def _paper_marks(axes, lines: list[Graded], datasets: list[str]) -> None:
    papers = {line.column.dataset: line.paper_difference for line in lines}
    for dataset, value in papers.items():
        if not math.isnan(value):
            y = datasets.index(dataset) - 0.42
            axes.plot([value], [y], "D", mfc="none", color="#1b1f24", ms=5)


def _widen(axes, lines: list[Graded]) -> None:
    """Set the x-axis; where a row collapses by tens of points the others stay readable."""
    values = [
        v for line in lines for v in (line.result.low, line.result.high, line.result.difference)
    ]
    values += [line.paper_difference for line in lines]
    values = [v for v in values if math.isfinite(v)] + [0.0]
    if max(map(abs, values)) > WIDEST:
        axes.set_xscale("symlog", linthresh=3, linscale=1.5)
        ticks = [-100, -30, -10, -3, -1, 0, 1, 3, 10, 30, 100]
        low, high = min(min(values) * 1.3, -1.0), max(max(values) * 1.3, 1.0)
        ticks = [t for t in ticks if low <= t <= high]
        axes.set_xticks(ticks, [f"{t:+d}".replace("-", "−") if t else "0" for t in ticks])
        axes.minorticks_off()
        axes.set_xlim(low, high)
    else:
        axes.margins(x=0.05)


def _mark(protocol: int) -> str:
    return "" if protocol == PROTOCOL else f" ({OLD_PROTOCOL})"


def _counts(lines: list[Graded]) -> str:
    counts = sorted({line.result.n for line in lines})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _color(refiner: str, refiners: Sequence[str]) -> str:
    """A row's own colour; -aug-only rows have their row's, lighter."""
    base = refiner.removesuffix("-aug-only")
    if base in COLORS:
        return COLORS[base] if base == refiner else _lighter(COLORS[base])
    unknown = [r for r in refiners if r.removesuffix("-aug-only") not in COLORS]
    return OTHERS[unknown.index(refiner) % len(OTHERS)]


def _lighter(color: str) -> str:
    channels = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(c + (255 - c) * 0.5):02x}" for c in channels)


def _slug(name: str) -> str:
    words = name.replace(">=", "-ge-").replace(">", "-gt-").replace("<", "-lt-")
    return words.replace("/", "-").replace("+", "-")


def blank(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, target: Path) -> None:
    """Write a PNG by atomic rename, without the software's version or a date in it."""
    with replacing(target) as fresh:
        # Not `savefig`, which draws everything twice.
        figure.canvas.print_png(fresh, metadata={"Software": None})
