"""The table for other programs: CSV of every number, and LaTeX to paste into a paper."""

import csv
import io
import re
import textwrap
from collections.abc import Sequence

from dlm.analysis.columns import AREA, BOLD, COLUMNS, Column, Row
from dlm.analysis.table import counts, groups, interval, is_best, number

KEYS = ("checkpoint", "decoder", "setting", "steps", "gen_length", "n")
# What a page of 5.5 inches holds in footnotesize, the intervals below their values.
COLUMNS_A_TABLE = 5
HEADING = 11  # characters a line
ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": "--",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "\N{NO-BREAK SPACE}": "~",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
HEAD = "% \\usepackage{booktabs}; every table is a float of its own. Below each value stands its 95% interval."


def to_csv(rows: Sequence[Row]) -> str:
    """A line for each row of the table; behind every metric its interval's ends, `<metric>_low` and `<metric>_high`.
    Numbers in full, empty where not defined.
    """
    metrics = [*COLUMNS, AREA.name]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*KEYS, *(f"{name}{end}" for name in metrics for end in ("", "_low", "_high"))])
    for row in rows:
        values = [value for name in metrics for value in (row[name], *(row[f"{name}_ci"] or (None, None)))]
        writer.writerow([*(row[key] for key in KEYS), *values])
    return out.getvalue()


def to_latex(rows: Sequence[Row], long: Sequence[Row] = (), bounds: Sequence[Row] = ()) -> str:
    """The tables of `groups`, each as one or more floats of booktabs that need nothing else."""
    floats = []
    for title, shown_rows, columns in groups(rows, long, bounds):
        budgets = [column for column in columns if column.name == "steps"]
        others = [column for column in columns if column.name != "steps"]
        pieces = [others[start : start + COLUMNS_A_TABLE] for start in range(0, len(others), COLUMNS_A_TABLE)]
        for place, piece in enumerate(pieces, start=1):
            part = f" ({place} of {len(pieces)})" if len(pieces) > 1 else ""
            count = "" if shown_rows is long or shown_rows is bounds else counts(rows)
            floats.append(_float(title + part, shown_rows, [*budgets, *piece], count))
    return "\n".join([HEAD, *floats])


def _float(title: str, rows: Sequence[Row], columns: Sequence[Column], count: str) -> str:
    # Columns of several budgets share a meaning.
    meanings = {column.meaning: column.heading.partition(", S = ")[0] for column in reversed(columns)}
    notes = "; ".join(f"{heading}: {meaning}" for meaning, heading in reversed(meanings.items()))
    label = "".join(character if character.isalnum() else "-" for character in title.lower())
    lines = [
        r"\begin{table}[tbp]",
        r"\centering",
        r"\footnotesize",
        r"\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{escape(' '.join(filter(None, [f'{title}.', count, f'{notes}.', BOLD])))}}}",
        rf"\label{{tab:{label}}}",
        rf"\begin{{tabular}}{{ll{'r' * len(columns)}}}",
        r"\toprule",
        _line(["checkpoint", "decoder", *map(_heading, columns)]),
        r"\midrule",
    ]
    for place, row in enumerate(rows):
        if place and row["checkpoint"] != rows[place - 1]["checkpoint"]:
            lines.append(r"\addlinespace")
        values = [_value(row, rows, column) for column in columns]
        lines.append(_line([escape(row["checkpoint"]), escape(row["decoder"]), *values]))
        intervals = [_minus(interval(row, column)) for column in columns]
        if any(intervals):
            lines.append(_line(["", "", *(rf"{{\scriptsize {text}}}" if text else "" for text in intervals)]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _heading(column: Column) -> str:
    """The heading over as many lines as it needs; 'S = 16' and an arrow stay with what they belong to."""
    text = (column.heading + column.arrow).replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")
    text = re.sub(" (?=[↑↓])", "\N{NO-BREAK SPACE}", text)
    lines = textwrap.wrap(text, HEADING, break_long_words=False, break_on_hyphens=False)
    stacked = r" \\ ".join(map(escape, lines))
    return stacked if len(lines) == 1 else rf"\shortstack[r]{{{stacked}}}"


def _minus(text: str) -> str:
    return escape(text).replace("-", "$-$") if text != "–" else "--"


def _value(row: Row, rows: Sequence[Row], column: Column) -> str:
    text = _minus(number(row[column.name], column))
    return rf"\textbf{{{text}}}" if is_best(row, rows, column) else text


def escape(text: str) -> str:
    """Text in which LaTeX finds no command of its own."""
    return "".join(ESCAPES.get(character, character) for character in text)
