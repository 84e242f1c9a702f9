"""A laid-out table as LaTeX with booktabs: one `table*` for each block, \\input-ready."""

from __future__ import annotations

from benchmarks.tables.layout import Block, Entry, Sheet

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "`": r"\textasciigrave{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
    "·": r"$\cdot$",
    "∞": r"$\infty$",
    "Δ": r"$\Delta$",
    "<": r"$<$",
    ">": r"$>$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "×": r"$\times$",
}


def render(sheet: Sheet) -> str:
    """LaTeX text of a table; needs the packages booktabs and graphicx (for \\resizebox)."""
    header = (
        "% Made from the records by `python -m benchmarks tables`; needs booktabs and graphicx."
    )
    header += f"\n% {sheet.warning}" if sheet.warning else ""
    return "\n\n".join([header, *(_block(sheet, block) for block in sheet.blocks)]) + "\n"


def escape(text: str) -> str:
    """Escape a text for LaTeX."""
    return "".join(_SPECIAL.get(character, character) for character in " ".join(text.split()))


def _block(sheet: Sheet, block: Block) -> str:
    columns = len(block.headings)
    notes = _Notes(sheet, block)
    body = []
    for number, group in enumerate(block.groups):
        if number:
            body.append(r"\addlinespace")
        body.append(rf"\multicolumn{{{columns + 1}}}{{l}}{{\textit{{{escape(group.title)}}}}} \\")
        for line in group.lines:
            body.append(_row(line.label, [notes.ours(entry) for entry in line.entries]))
            papers = [_paper(entry) for entry in line.entries]
            if any(papers):
                body.append(_row("", papers))
    headings = [
        escape(heading) + notes.marks(marks)
        for heading, marks in zip(block.headings, block.heading_marks, strict=True)
    ]
    return "\n".join(
        [
            r"\begin{table*}[t]",
            r"\centering",
            rf"\caption{{{escape(' '.join([f'{sheet.title}: {block.title}.', sheet.warning]))}}}",
            r"\resizebox{\textwidth}{!}{%",
            rf"\begin{{tabular}}{{l{'r' * columns}}}",
            r"\toprule",
            _row("", headings),
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            *notes.paragraph(),
            r"\end{table*}",
        ]
    )


class _Notes:
    """Footnotes of one LaTeX table: the sheet's own that it uses, and reasons too long for a cell."""

    def __init__(self, sheet: Sheet, block: Block):
        self.sheet, self.used, self.reasons = sheet, set(), {}

    def ours(self, entry: Entry) -> str:
        if not entry.missing:
            return escape(entry.ours) + self.marks(entry.marks)
        letter = self.reasons.setdefault(entry.ours, _letter(len(self.reasons)))
        kind = escape(entry.ours.split(":")[0])
        return rf"{kind}$^{{{letter}}}$" + self.marks(entry.marks)

    def marks(self, marks: tuple[int, ...]) -> str:
        self.used.update(marks)
        return f"$^{{{','.join(map(str, marks))}}}$" if marks else ""

    def paragraph(self) -> list[str]:
        lines = [rf"$^{{{x}}}$\,{escape(text.rstrip('.'))}." for text, x in self.reasons.items()]
        for n in sorted(self.used):
            lines.append(rf"$^{{{n}}}$\,{escape(self.sheet.footnotes[n - 1].rstrip('.'))}.")
        return [r"\par\smallskip{\footnotesize\raggedright", *lines, r"\par}"] if lines else []


def _row(label: str, cells: list[str]) -> str:
    return " & ".join([escape(label), *cells]) + r" \\"


def _paper(entry: Entry) -> str:
    if not entry.paper:
        return ""
    difference = f", {entry.difference}" if entry.difference else ""
    return rf"{{\footnotesize paper {escape(entry.paper + difference)}}}"


def _letter(index: int) -> str:
    return chr(ord("a") + index % 26) * (index // 26 + 1)
