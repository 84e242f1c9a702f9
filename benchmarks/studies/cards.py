"""Cards: what a reader must know of a data set before believing a table, counted from the data as read.

Rows and classes, test rows that repeat a training row, missing values, levels that training lacks,
source, licence and checksums. ``python -m benchmarks cards`` counts; a card is a JSON file below the
results, which tables read without the data. Imports no torch unless it counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import registry, sources
from benchmarks.errors import BenchmarkError
from benchmarks.record import atomic_write
from benchmarks.spec import Component, RunSpec

if TYPE_CHECKING:
    import numpy as np

    from benchmarks.data import Data, Split

SEED = 0  # where seeds redraw a split, the first one's is described
NOT_STATED = "not stated"
Card = dict[str, Any]


def path_of(results: Path, dataset: str) -> Path:
    """Place of a card: ``cards/click.json``."""
    return results / "cards" / f"{dataset}.json"


def read(results: Path, dataset: str) -> Card | None:
    """Read a card, None where none was made."""
    path = path_of(results, dataset)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise BenchmarkError(
            f"{path} is no card ({error}): make it again, python -m benchmarks cards -d {dataset}"
        ) from error


def forms(specs: Iterable[RunSpec]) -> dict[str, list[Component]]:
    """List in which forms a plan loads each of its data sets: loader and settings, such as `limit`."""
    found: dict[str, list[Component]] = {}
    for spec in specs:
        known = found.setdefault(spec.dataset, [])
        if spec.settings.dataset not in known:
            known.append(spec.settings.dataset)
    return found


def make(wanted: dict[str, list[Component]], results: Path) -> list[Path]:
    """Count and write a card for each data set, then the page of all cards there are.

    Raises
    ------
    BenchmarkError
        One line per data set that is not at hand, after all others were counted.
    """
    from rich.progress import track

    written, failures = [], []
    steps = [(name, form) for name, several in wanted.items() for form in several]
    counted: dict[str, list[Card]] = {name: [] for name in wanted}
    for name, form in track(steps, description="cards", transient=True):
        try:
            counted[name].append(describe(form))
        except BenchmarkError as error:
            failures.append(f"{name}: {error}")
        if counted[name] and len(counted[name]) == len(wanted[name]):
            written.append(path_of(results, name))
            atomic_write(written[-1], json.dumps(_card(name, counted[name]), indent=1) + "\n")
    written.append(write_page(results))
    if failures:
        raise BenchmarkError("\n".join(dict.fromkeys(failures)))
    return written


def describe(form: Component) -> Card:
    """Count one form of a data set, as seed 0 sees it."""
    data = registry.load("datasets", form.name)(form.name, seed=SEED, **form.settings)
    held_out = {"validation" if n == "val" else n: split for n, split in data.evaluated.items()}
    parts = {"train": data.train, **held_out}
    return {
        "loader": form.name,
        "settings": form.settings,
        "seed": SEED,
        "rows": {name: len(split) for name, split in parts.items()},
        "classes": _classes(data, parts),
        "repeats": _repeats(data, held_out),
        "missing": _missing(data, form.name),
        "unseen": _holding(data, held_out, rows=0),
        "seen_once": _holding(data, held_out, rows=1),
        "notes": list(data.notes),
        "checksums": dict(data.provenance),
    }


def lines(card: Card) -> tuple[str, ...]:
    """What stands under a table that uses the data set: a line per form, then source and licence."""
    several = len(card["forms"]) > 1
    return (
        *(_sentence(form, named=several) for form in card["forms"]),
        f"source: {'; '.join(card['sources']) or 'ships with a package'}; licence: {card['licence']}",
    )


def notes(results: Path, dataset: str) -> tuple[str, ...]:
    """The lines of a data set's card, none where no card was made."""
    card = read(results, dataset)
    return lines(card) if card else ()


def write_page(results: Path) -> Path:
    """Write ``tables/cards.md`` from the cards below the results."""
    cards = [read(results, path.stem) for path in sorted((results / "cards").glob("*.json"))]
    target = results / "tables" / "cards.md"
    atomic_write(target, page([card for card in cards if card]))
    return target


def page(cards: Iterable[Card]) -> str:
    """Every card as one Markdown page."""
    parts = [
        "# Data sets",
        "Counted from the data as read, by `python -m benchmarks cards`. Where seeds redraw the split, "
        "it is that of seed 0. A test row repeats a training row if all its features agree, as the "
        "model sees them; it holds an unseen level if the training rows lack one of its categories.",
    ]
    for card in cards:
        checksums = {k: v for form in card["forms"] for k, v in form["checksums"].items()}
        told = dict.fromkeys(note for form in card["forms"] for note in form["notes"])
        text = [f"* {line}" for line in (*lines(card), *told)]
        text += [f"* `{name}`: `{found}`" for name, found in checksums.items()]
        parts += [f"## {card['dataset']}", "\n".join(text)]
        parts.append("\n".join(_class_table(card["forms"][0])))
    return "\n\n".join(parts) + "\n"


def _card(name: str, counted: list[Card]) -> Card:
    loader = counted[0]["loader"]
    module = registry.module("datasets", loader)
    published = [
        next((s for s in several if s.urls), several[0]) for several in sources.files(loader)
    ]
    return {
        "dataset": name,
        "licence": getattr(module, "LICENCE", NOT_STATED),
        "sources": [f"{s.name} ({s.urls[0]})" if s.urls else s.name for s in published],
        "forms": counted,
    }


def _classes(data: Data, parts: dict[str, Split]) -> dict[str, dict[str, int]]:
    """Rows of each class by split."""
    import torch

    names = data.class_names or tuple(map(str, range(data.num_classes)))
    counts = {k: torch.bincount(s.y, minlength=data.num_classes).tolist() for k, s in parts.items()}
    return {
        name: {k: count[number] for k, count in counts.items()} for number, name in enumerate(names)
    }


def _repeats(data: Data, held_out: dict[str, Split]) -> dict[str, float] | None:
    """Share of each split's rows whose features all agree with those of one training row."""
    import torch

    if not isinstance(data.train.x, torch.Tensor):
        return None  # image files that are read one by one
    known = set(_digests(data.train.x.numpy()))
    return {
        name: sum(digest in known for digest in _digests(split.x.numpy())) / max(len(split), 1)
        for name, split in held_out.items()
    }


def _digests(x: np.ndarray) -> Iterator[bytes]:
    """A digest of each row: 0 and -0 agree, and so do all forms of NaN."""
    import numpy as np

    if x.dtype.kind == "f":
        x = np.where(np.isnan(x), np.inf, x) + x.dtype.type(0)
    rows = np.ascontiguousarray(x.reshape(len(x), -1)).view(np.uint8)
    return (blake2b(row, digest_size=16).digest() for row in rows)


def _missing(data: Data, loader: str) -> dict[str, float] | None:
    """Share of missing cells in the published rows, and the columns that have some; None: images."""
    import numpy as np

    if data.kind == "image":
        return None
    module = registry.module("datasets", loader)
    values = module.raw(loader).values if hasattr(module, "raw") else data.train.x.numpy()
    absent = np.isnan(values)
    return {"cells": float(absent.mean()), "columns": int(absent.any(0).sum())}


def _holding(data: Data, held_out: dict[str, Split], *, rows: int) -> dict[str, float] | None:
    """Share of each split's rows with a level that 0 or 1 training rows hold; None: no categories."""
    import torch

    counts = {
        column: torch.bincount(data.train.x[:, column].long(), minlength=cardinality)
        for column, cardinality in enumerate(data.categories)
        if cardinality
    }
    if not counts:
        return None
    found = {}
    for name, split in held_out.items():
        hit = [count[split.x[:, column].long()] == rows for column, count in counts.items()]
        found[name] = torch.stack(hit).any(0).float().mean().item()
    return found


def _sentence(form: Card, *, named: bool) -> str:
    rows = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in form["rows"].items())
    first = next(name for name in form["rows"] if name.endswith("test"))
    test = {name: counts[first] / form["rows"][first] for name, counts in form["classes"].items()}
    parts = [f"{rows} rows; {len(test)} classes, {_percent(min(test.values()))} to "
             f"{_percent(max(test.values()))} of the test rows"]  # fmt: skip
    if form["repeats"] is not None:
        parts.append(f"{_percent(form['repeats'][first])} of the test rows repeat a training row")
    if form["missing"] and form["missing"]["columns"]:
        missing = form["missing"]
        parts.append(
            f"{_percent(missing['cells'])} of the values are missing, in {missing['columns']} columns"
        )
    elif form["missing"]:
        parts.append("no missing values")
    if form["unseen"]:
        parts.append(
            f"{_percent(form['unseen'][first])} of the test rows hold a level that the training rows "
            f"lack, {_percent(form['seen_once'][first])} one that a single training row holds"
        )
    settings = ", ".join(f"{name} {value}" for name, value in form["settings"].items())
    return (f"with {settings}: " if named and settings else "") + "; ".join(parts)


def _percent(share: float) -> str:
    """Two digits: 73 %, 4.2 %, 0.17 %; 0 and 100 only where they are exact."""
    if share in (0, 1):
        return f"{share:.0%}".replace("%", " %")
    value = min(max(100 * share, 0.01), 99.99)
    digits = 0 if 9.95 <= value < 99.5 else 1 if 0.995 <= value < 99.5 else 2
    return f"{value:.{digits}f} %"


def _class_table(form: Card) -> list[str]:
    splits = list(form["rows"])
    several = list(form["classes"].items())
    shown = several if len(several) <= 20 else several[:20]
    table = [f"| class | {' | '.join(splits)} |", "|---" * (len(splits) + 1) + "|"]
    for name, counts in shown:
        cells = " | ".join(f"{counts[split]:,}" for split in splits)
        table.append(f"| {name.replace('|', chr(92) + '|')} | {cells} |")
    if len(several) > len(shown):
        table.append(f"| and {len(several) - len(shown)} more |{' |' * len(splits)}")
    return table
