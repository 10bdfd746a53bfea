"""The table for other programs: CSV that reads back as table.json, LaTeX that an independent reader accepts."""

import csv
import io
import re
from typing import Any

import pytest
from test_report import ORDERED, budgets, cell, cells, slow_runs

from dlm.analysis.export import COLUMNS_A_TABLE, escape, to_csv, to_latex
from dlm.analysis.table import AREA, COLUMNS, bound_rows, build_table, groups, long_runs

SPECIAL = r"\&%$#_{}~^"
# What the fragment may say: LaTeX's own and booktabs.
COMMANDS = {
    "begin", "end", "centering", "footnotesize", "setlength", "tabcolsep", "caption", "label", "toprule", "midrule",
    "bottomrule", "addlinespace", "shortstack", "scriptsize", "textbf", "pm", "uparrow", "downarrow", "textbackslash",
    "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar",
}  # fmt: skip


TEXTS = ("checkpoint", "decoder", "setting")


def rows(**changes: Any) -> list[dict[str, Any]]:
    """Two decoders at two budgets and a reference; a setting with a comma, and what the last cell lacks or has else."""
    last = cell("r2ft", "conv", quality=0.1, **changes)
    return build_table([*budgets(), last, {**last, "steps": 64}], {("conv", 16): {"rule": "a, b"}})


def test_csv_reads_back_as_the_table() -> None:
    """Every number to its last bit, every interval's ends, nothing where the table has nothing."""
    table = rows(mauve=None)
    read = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert len(read) == len(table) == 7
    for line, row in zip(read, table, strict=True):
        assert None not in line and set(line) == {
            *("checkpoint", "decoder", "setting", "steps", "gen_length", "n"),
            *(f"{name}{end}" for name in (*COLUMNS, AREA.name) for end in ("", "_low", "_high")),
        }
        back = {name: float(text) if text else None for name, text in line.items() if name not in TEXTS}
        texts_back = {name: line[name] for name in TEXTS}
        assert texts_back == {name: row[name] for name in TEXTS}
        for name, value in row.items():
            if name.endswith("_ci"):
                ends = [back[f"{name[:-3]}_low"], back[f"{name[:-3]}_high"]]
                assert ends == (value or [None, None])
            elif name not in TEXTS:
                assert back[name] == value


def latex_tables(text: str) -> list[tuple[str, list[list[str]]]]:
    """Column specification and cells of every table, read by rules of our own: what is not sound raises."""
    assert text.startswith("% ") and "%" not in text.replace(r"\%", "").partition("\n")[2]
    body = text.partition("\n")[2]
    assert set(re.findall(r"\\([A-Za-z]+)", body)) <= COMMANDS
    assert set(re.findall(r"\\([^A-Za-z])", body)) <= set("\\&%$#_{}") and not re.search(r"\\\\\s*\[", body)
    depth = 0
    for character in re.sub(r"\\[{}]", "", body):
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    open_: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", body):
        if kind == "begin":
            open_.append(name)
        else:
            assert open_.pop() == name
    assert not open_
    plain = re.sub(r"\\[&%$#_{}]", "", re.sub(r"\$(\\pm|\\uparrow|\\downarrow|-)\$", "", body))
    assert not set(plain) & set("$#_^<>|±↑↓–")
    found = []
    for specification, inside in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", body, re.S):
        inside = re.sub(r"\\(toprule|midrule|bottomrule|addlinespace)", "", inside)
        inside = re.sub(r"\\shortstack\[r\]\{(.*?)\}", lambda match: match[1].replace(r"\\", " "), inside)
        lines = [line for line in inside.split(r"\\") if line.strip()]
        found.append((specification, [[part.strip() for part in re.split(r"(?<!\\)&", line)] for line in lines]))
    return found


def test_latex_by_an_independent_reader() -> None:
    """As many cells a line as the table has columns; the values and intervals of the Markdown; no float too wide."""
    long = long_runs([*slow_runs(81.0, 40.0)])
    bounds = bound_rows([{"checkpoint": "sft", "nll": 0.5, "nll_ci": [0.4, 0.6]}])
    tables = latex_tables(to_latex(rows(log_prior=-5.25), long, bounds))
    assert len(tables) > len(groups(rows(), long, bounds)) == 5
    for specification, lines in tables:
        assert re.fullmatch(r"llr{1,6}", specification) and len(specification) <= 3 + COLUMNS_A_TABLE
        assert {len(line) for line in lines} == {len(specification)}
    _, first = tables[0]
    assert [" ".join(text.split()) for text in first[0]] == [
        "checkpoint", "decoder", r"quality, S~=~16~$\uparrow$", r"NFE, S~=~16~$\downarrow$",
        r"quality, S~=~64~$\uparrow$", r"NFE, S~=~64~$\downarrow$", r"area~$\uparrow$",
    ]  # fmt: skip
    place = next(i for i, line in enumerate(first) if line[:2] == ["sft", r"top\_k"])
    assert first[place][2:4] == [r"\textbf{0.50}", "16.0"]
    assert first[place + 1][:4] == ["", "", r"{\scriptsize [0.49, 0.51]}", r"{\scriptsize [16.0, 16.0]}"]
    cells_of_all = {text for _, lines in tables for line in lines for text in line}
    assert "$-$5.25" in cells_of_all and r"{\scriptsize [$-$5.26, $-$5.24]}" in cells_of_all and "--" in cells_of_all


def test_latex_of_names_full_of_commands() -> None:
    table = build_table([cell("sft", SPECIAL), cell("sft", 'a|b<c>"d" 50% [e]')])
    found = [lines for _, lines in latex_tables(to_latex(table))]
    assert all(len({len(line) for line in lines}) == 1 for lines in found)
    assert any(line[1] == escape(SPECIAL) for lines in found for line in lines)
    assert escape("50%_{x}~^\\") == r"50\%\_\{x\}\textasciitilde{}\textasciicircum{}\textbackslash{}"


@pytest.mark.parametrize("make", [to_csv, to_latex])
def test_twice_the_same(make: Any) -> None:
    assert make(build_table(cells(ORDERED))) == make(build_table(cells(ORDERED)))
