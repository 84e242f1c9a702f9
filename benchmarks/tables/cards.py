"""Cards of data sets as readers meet them: lines under a table, and a page of all cards.

`benchmarks.studies.cards` counts them from the data; here they are read, without the data.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.record import atomic_write

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


def lines(card: Card) -> tuple[str, ...]:
    """What stands under a table that uses the data set: a line per form, then source and licence."""
    several = len(card["forms"]) > 1
    return (
        *(_sentence(form, named=several) for form in card["forms"]),
        f"source: {'; '.join(card['sources']) or 'ships with a package'}; licence: {card['licence']}",
    )


def notes(card: Card, contents: set[str]) -> tuple[str, ...]:
    """The lines of a card under results of data with these hashes; one line where it is of other data."""
    if contents <= {form.get("content") for form in card["forms"]}:
        return lines(card)
    return (
        f"the card of {card['dataset']} is left out: it was counted from other data than these results, or "
        "does not say from which; `python -m benchmarks cards` counts anew",
    )


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
