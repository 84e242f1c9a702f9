"""A laid-out table as HTML: `fragment` for a page that has its own style, `render` for one file alone."""

from __future__ import annotations

from html import escape

from benchmarks.tables.layout import Block, Entry, Sheet

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1b1f24; margin: 2rem; max-width: none; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
.scroll { overflow-x: auto; }
table.results { border-collapse: collapse; font-variant-numeric: tabular-nums; }
table.results th, table.results td { padding: .3rem .7rem; text-align: right; vertical-align: top; }
table.results th { font-weight: 600; white-space: nowrap; }
table.results thead th { white-space: normal; max-width: 11rem; vertical-align: bottom; }
table.results tbody th { text-align: left; font-weight: 400; position: sticky; left: 0;
  background: #fff; }
table.results thead { border-top: 2px solid #1b1f24; border-bottom: 1px solid #1b1f24; }
table.results { border-bottom: 2px solid #1b1f24; }
table.results tr.group th { font-style: italic; border-top: 1px solid #d0d7de; padding-top: .6rem; }
table.results td { white-space: nowrap; }
table.results td.missing { color: #656d76; font-style: italic; font-size: .82rem; white-space: normal;
  max-width: 11rem; }
.paper { color: #656d76; font-size: .82rem; font-style: normal; display: block; white-space: nowrap; }
sup { line-height: 0; font-size: .72em; margin-left: .1em; }
sup a { color: #0969da; text-decoration: none; }
.warning { font-weight: 600; max-width: 60rem; }
.notes { color: #424a53; font-size: .88rem; max-width: 60rem; }
""".strip()


def render(sheet: Sheet) -> str:
    """One standalone page, with nothing loaded from elsewhere."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(sheet.title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n"
        f"{fragment(sheet)}\n</body>\n</html>\n"
    )


def fragment(sheet: Sheet, *, level: int = 1) -> str:
    """The table without a page around it; its ids begin with the table's own.

    Parameters
    ----------
    level : of the table's heading; its blocks are one below.
    """
    notes = "".join(f"<li>{escape(note)}</li>" for note in sheet.notes)
    parts = [f"<h{level}>{escape(sheet.title)}</h{level}>"]
    if sheet.warning:
        parts.append(f'<p class="warning">{escape(sheet.warning)}</p>')
    parts.append(f'<ul class="notes">{notes}</ul>')
    parts += [_block(sheet, block, level + 1) for block in sheet.blocks if not block.detail]
    if details := [_block(sheet, block, level + 1) for block in sheet.blocks if block.detail]:
        parts += ["<details>", "<summary>Further metrics</summary>", *details, "</details>"]
    if sheet.footnotes:
        items = "".join(
            f'<li id="t{escape(sheet.id)}-note-{n}">{escape(text)}</li>'
            for n, text in enumerate(sheet.footnotes, 1)
        )
        parts.append(f'<ol class="notes">{items}</ol>')
    return "\n".join(parts)


def _block(sheet: Sheet, block: Block, level: int) -> str:
    head = "".join(
        f'<th scope="col">{escape(heading)}{_marks(sheet, marks)}</th>'
        for heading, marks in zip(block.headings, block.heading_marks, strict=True)
    )
    rows = []
    for group in block.groups:
        span = (
            f'<th scope="rowgroup" colspan="{len(block.headings) + 1}">{escape(group.title)}</th>'
        )
        rows.append(f'<tr class="group">{span}</tr>')
        for line in group.lines:
            cells = "".join(_entry(sheet, e) for e in line.entries)
            rows.append(f'<tr><th scope="row">{escape(line.label)}</th>{cells}</tr>')
    return (
        f'<h{level}>{escape(block.title)}</h{level}>\n<div class="scroll"><table class="results">\n'
        f"<thead><tr><th></th>{head}</tr></thead>\n<tbody>\n"
        + "\n".join(rows)
        + "\n</tbody>\n</table></div>"
    )


def _entry(sheet: Sheet, entry: Entry) -> str:
    paper = ""
    if entry.paper:
        difference = f", Δ {entry.difference}" if entry.difference else ""
        paper = f'<span class="paper">paper {escape(entry.paper + difference)}</span>'
    kind = ' class="missing"' if entry.missing else ""
    return f"<td{kind}>{escape(entry.ours)}{_marks(sheet, entry.marks)}{paper}</td>"


def _marks(sheet: Sheet, marks: tuple[int, ...]) -> str:
    links = (f'<a href="#t{escape(sheet.id)}-note-{n}">{n}</a>' for n in marks)
    return f"<sup>{','.join(links)}</sup>" if marks else ""
