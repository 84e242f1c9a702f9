"""Cards: what a reader must know of a data set before believing a table, counted from the data as read.

Rows and classes, test rows that repeat a training row, missing values, levels that training lacks,
source, licence and checksums. ``python -m benchmarks cards`` counts; a card is a JSON file below the
results, which `benchmarks.tables.cards` reads without the data. Imports no torch unless it counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import registry, sources
from benchmarks.errors import BenchmarkError
from benchmarks.record import atomic_write
from benchmarks.running.data_hash import of_data_set
from benchmarks.spec import Component, RunSpec
from benchmarks.tables.cards import Card, path_of, read, write_page

if TYPE_CHECKING:
    import numpy as np

    from benchmarks.data import Data, Split

SEED = 0  # where seeds redraw a split, the first one's is described
NOT_STATED = "not stated"


def forms(specs: Iterable[RunSpec]) -> dict[str, list[Component]]:
    """List in which forms a plan loads each of its data sets: loader and settings, such as `limit`."""
    found: dict[str, list[Component]] = {}
    for spec in specs:
        known = found.setdefault(spec.dataset, [])
        if spec.settings.dataset not in known:
            known.append(spec.settings.dataset)
    return found


def make(wanted: dict[str, list[Component]], results: Path, *, missing: bool = False) -> list[Path]:
    """Count and write a card for each data set, then the page of all cards there are.

    Parameters
    ----------
    missing : only the cards that are missing or of other data than those at hand.

    Raises
    ------
    BenchmarkError
        One line per data set that is not at hand, after all others were counted and written.
    """
    from rich.progress import track

    written, failures = [], []
    if missing:
        wanted = {n: several for n, several in wanted.items() if not _is_there(several, results, n)}
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
        "content": of_data_set(form),
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


def _is_there(several: list[Component], results: Path, name: str) -> bool:
    """Whether a card was counted from these forms, of the data at hand."""
    forms = (read(results, name) or {"forms": []})["forms"]
    counted = [(form["loader"], form["settings"], form.get("content")) for form in forms]
    return counted == [(form.name, form.settings, of_data_set(form)) for form in several]


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
