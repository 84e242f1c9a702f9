"""A laid-out table, and graded claims, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.tables.layout import Block, Entry, Sheet


def render(sheet: Sheet) -> str:
    """Markdown text of a table."""
    parts = [f"# {_text(sheet.title)}"]
    parts += [f"**{_text(sheet.warning)}**"] if sheet.warning else []
    parts.append("\n".join(f"* {_text(note)}" for note in sheet.notes))
    detail = False
    for block in sheet.blocks:
        if block.detail and not detail:
            parts.append("## Further metrics")
        detail = detail or block.detail
        parts.append(f"{'###' if block.detail else '##'} {_text(block.title)}\n\n{_block(block)}")
    if sheet.footnotes:
        notes = (f"{n}. {_text(text)}" for n, text in enumerate(sheet.footnotes, 1))
        parts.append("## Footnotes\n\n" + "\n".join(notes))
    return "\n\n".join(parts) + "\n"


def grid(headings: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A plain Markdown table."""
    headings = list(headings)
    rows = [headings, ["---"] * len(headings), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _block(block: Block) -> str:
    headings = [
        _text(heading) + _marks(marks)
        for heading, marks in zip(block.headings, block.heading_marks, strict=True)
    ]
    lines = []
    for group in block.groups:
        lines.append([f"**{_text(group.title)}**", *[""] * len(headings)])
        for line in group.lines:
            cells = [_entry(entry) for entry in line.entries]
            lines.append([_text(line.label), *cells])
    return grid(["", *headings], lines)


def _entry(entry: Entry) -> str:
    ours = _text(entry.ours)
    text = f"*{ours}*" if entry.missing else ours
    text += _marks(entry.marks)
    if entry.paper:
        difference = f", Δ {entry.difference}" if entry.difference else ""
        text += f"<br>paper {entry.paper}{difference}"
    return text


def _marks(marks: tuple[int, ...]) -> str:
    return f" <sup>{','.join(map(str, marks))}</sup>" if marks else ""


def _text(text: str) -> str:
    """Escape what Markdown or a cell would take for its own."""
    for character in "\\|*_<`":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


escape = _text
