"""A sheet as Markdown, LaTeX, CSV, and on the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from sparsebench.sweep.kinds import KIND_HEAD, KIND_SOURCE
from sparsebench.sweep.results import Results
from sparsebench.sweep.sheet import CLAIM_HEAD, MARKED, Section, Sheet, Text

if TYPE_CHECKING:
    from rich.console import RenderableType

_LATEX = {
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    "×": r"$\times$",
}


def markdown(sheet: Sheet, picture: str | None = None) -> str:
    """The table for a README or an issue, with its picture and how it was made.

    Args:
        sheet: the table.
        picture: file name of the figure, beside the Markdown.
    """
    parts = [f"# {sheet.title}", sheet.about]
    for section in sheet.sections:
        if section.heading:
            parts.append(f"## {section.heading}")
        parts.append(_markdown_rows(sheet, section))
    parts.append(f"{sheet.legend[:1].upper()}{sheet.legend[1:]}." if sheet.legend else "")
    for heading, lines in (
        ("Published figures", sheet.sources),
        ("Differences from the published set-up", sheet.differences),
        ("Without a result", sheet.missing),
    ):
        if lines:
            items = "\n".join(f"- {_markdown_text(line)}" for line in lines)
            parts.append(f"**{heading}:**\n\n{items}")
    if sheet.claims:
        parts += ["## Claims", _markdown_table(CLAIM_HEAD, sheet.claims)]
    if sheet.kinds:
        head = (sheet.head[0], *KIND_HEAD)
        parts += ["## Kinds of method", KIND_SOURCE, _markdown_table(head, sheet.kinds)]
    if picture:
        parts.append(f"![{_markdown_text(sheet.title)}]({picture})")
    parts.append("```text\n" + "\n".join(sheet.made) + "\n```")
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_rows(sheet: Sheet, section: Section) -> str:
    rows = [
        [f"**{field.text}**" if field.bold and field.text.strip() else field.text for field in row]
        for row in section.rows
    ]
    return _markdown_table(sheet.head, rows, numbers=True)


def _markdown_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False
) -> str:
    """Lines of a table; of numbers all fields but the first stand to the right."""
    rule = [":--", *("--:" if numbers else ":--" for _ in head[1:])]
    lines = [[_markdown_text(text) for text in row] for row in (head, *rows)]
    lines.insert(1, rule)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _markdown_text(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ") or " "


def latex(sheet: Sheet) -> str:
    """A ``table`` environment for a paper; needs the package booktabs."""
    width = len(sheet.head)
    lines = [f"% {fact}" for fact in sheet.made]
    lines += [r"\begin{table}", r"  \centering", f"  \\caption{{{_latex_text(_caption(sheet))}}}"]
    lines += [f"  \\begin{{tabular}}{{l{'r' * (width - 1)}}}", r"    \toprule"]
    lines.append(_latex_row([Text(head) for head in sheet.head]))
    for section in sheet.sections:
        lines.append(r"    \midrule")
        if section.heading:
            heading = _latex_text(section.heading)
            lines += [f"    \\multicolumn{{{width}}}{{l}}{{\\emph{{{heading}}}}} \\\\"]
        lines += [_latex_row(list(row)) for row in section.rows]
    lines += [r"    \bottomrule", r"  \end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _caption(sheet: Sheet) -> str:
    missing = [f"Without a result: {'; '.join(sheet.missing)}."] if sheet.missing else []
    legend = [f"{sheet.legend[:1].upper()}{sheet.legend[1:]}."] if sheet.legend else []
    sources = [f"Published figures: {'; '.join(sheet.sources)}."] if sheet.sources else []
    differences = (
        [f"Differences from the published set-up: {'; '.join(sheet.differences)}."]
        if sheet.differences
        else []
    )
    about = [sheet.about] if sheet.about else []
    return " ".join([f"{sheet.title}.", *about, *legend, *sources, *differences, *missing])


def _latex_row(fields: list[Text]) -> str:
    texts = [
        f"\\textbf{{{_latex_text(field.text)}}}" if field.bold else _latex_text(field.text)
        for field in fields
    ]
    return f"    {' & '.join(texts)} \\\\"


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def comma_separated(results: Results) -> str:
    """One line for each row, column and figure, unrounded and in the units of the runs."""
    from sparsebench.sweep.statistics import estimate

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["row", "column", "metric", "asked", "n", "mean", "low", "high", "min", "max", "by_seed"]
    )
    for (i, j), entry in results.entries.items():
        for metric in results.metrics:
            values = entry.values(metric)
            found = estimate(values.values())
            numbers = (found.mean, found.low, found.high) if found else (None,) * 3
            ends = (min(values.values()), max(values.values())) if values else (None, None)
            by_seed = " ".join(f"{seed}:{value!r}" for seed, value in values.items())
            labels = (results.grid.rows[i].label, results.grid.columns[j].label)
            writer.writerow(
                [*labels, metric.key, entry.asked, len(values), *numbers, *ends, by_seed]
            )
    return out.getvalue()


def terminal(sheet: Sheet) -> RenderableType:
    """The table for a terminal."""
    from rich import box
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text as Line

    table = Table(box=box.SIMPLE_HEAD, title=Line(sheet.title, "bold"), title_justify="left")
    for i, head in enumerate(sheet.head):
        table.add_column(Line(head), justify="right" if i else "left", no_wrap=not i)
    for number, section in enumerate(sheet.sections):
        if section.heading:
            if number:
                table.add_section()
            table.add_row(Line(section.heading, "bold cyan"))
        for row in section.rows:
            indent = "  " if section.heading else ""
            first, *others = row
            fields = [
                Line(f"{field.text}{'*' if field.bold else ' '}", "bold" if field.bold else "")
                for field in others
            ]
            table.add_row(Line(indent + first.text), *fields)
    legend = sheet.legend.replace(f"{MARKED}:", "*:")
    notes = [Line(text, "dim") for text in (sheet.about, legend) if text]
    facts = Table.grid(padding=(0, 1))
    for fact in (*(f"published: {line}" for line in sheet.sources), *sheet.made):
        name, _, value = fact.partition(": ")
        facts.add_row(Line(f"{name}:", "dim"), Line(value, "dim"))
    claims = [_terminal_claims(sheet)] if sheet.claims else []
    return Group(
        table,
        *(Padding(note, (0, 0, 1, 2)) for note in notes),
        *claims,
        Padding(facts, (0, 0, 1, 2)),
    )


def _terminal_claims(sheet: Sheet) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text as Line

    table = Table(box=box.SIMPLE_HEAD, title=Line("Claims", "bold"), title_justify="left")
    for i, name in enumerate(CLAIM_HEAD):
        table.add_column(name, justify="right" if i == 3 else "left")
    colours = {"supported": "green", "refuted": "red"}
    for claim in sheet.claims:
        first, verdict, *others = claim
        style = colours.get(verdict.split(" (")[0], "yellow")
        table.add_row(Line(first), Line(verdict, style), *map(Line, others))
    return table
