"""The results table: a row for each cell (checkpoint x decoder) and budget, every value with its 95% interval."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import Any

from dlm.analysis.columns import (
    AREA,
    BOLD,
    BOUND_COLUMNS,
    BOUND_TITLE,
    COLUMNS,
    GROUPS,
    LONG_COLUMNS,
    LONG_RUNS,
    LONG_TITLE,
    OVER_PASSES_TITLE,
    PLUS_MINUS,
    STEPS,
    Column,
    Row,
)


def build_table(cells: Sequence[Row], settings: Mapping[tuple[str, int], Mapping[str, Any]] | None = None) -> list[Row]:
    """The rows of the table: the reference first, then by checkpoint, by budget, and by decoder, in the order they
    come in.

    Args:
        cells: the evaluate stage's results.
        settings: what was chosen for a decoder and number of steps, for the row's `setting`.
    """
    shared_length = {steps: _mean_length(cells, steps) for steps in dict.fromkeys(cell["steps"] for cell in cells)}
    checkpoints = list(dict.fromkeys(cell["checkpoint"] for cell in cells))
    decoders = list(dict.fromkeys(cell["decoder"] for cell in cells))
    ordered = sorted(
        cells,
        key=lambda cell: (
            not is_reference(cell),
            checkpoints.index(cell["checkpoint"]),
            cell["steps"] or 0,
            decoders.index(cell["decoder"]),
        ),
    )
    return [
        {**_row(cell, shared_length[cell["steps"]]), "setting": setting_text(settings, cell["decoder"], cell["steps"])}
        for cell in ordered
    ]


def _mean_length(cells: Sequence[Row], steps: int | None) -> float | None:
    lengths = [
        cell["length"]
        for cell in cells
        if not is_reference(cell) and cell["steps"] == steps and cell["length"] is not None
    ]
    return sum(lengths) / len(lengths) if lengths else None


def setting_text(settings: Mapping[tuple[str, int], Mapping[str, Any]] | None, decoder: str, steps: int | None) -> str:
    """'kernel_size 9, rule top_k', empty where nothing was chosen."""
    chosen = (settings or {}).get((decoder, steps), {}) if steps is not None else {}
    return ", ".join(f"{option} {value}" for option, value in chosen.items())


def _row(cell: Row, shared_length: float | None) -> Row:
    row = {name: cell[name] for name in ("checkpoint", "decoder", "steps", "gen_length", "n")}
    row |= {name: cell.get(name) for name in ("area", "area_ci")}
    speed = _tokens_per_step(cell, shared_length)
    for name in COLUMNS:
        source = speed if name == "tokens_per_step" else cell
        row[name] = source.get(name)
        row[f"{name}_ci"] = source.get(f"{name}_ci")
    return row


def headline(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Cell -> what `dvc metrics` and `dvc exp show` list: quality and NFE at each budget, and the area over them. The
    reference, which has no steps, stands at every budget."""
    cells: dict[str, dict[str, float]] = {}
    for row in rows:
        found = {"area": row["area"]}
        for steps in budgets_of(rows) if is_reference(row) else [row["steps"]]:
            found |= {f"{name}_{steps}": row[name] for name in ("quality", "nfe")}
        cell = cells.setdefault(f"{row['checkpoint']}-{row['decoder']}", {})
        cell |= {name: round(value, 4) for name, value in found.items() if value is not None}
    return cells


def at_budget(rows: Iterable[dict[str, Any]], steps: int) -> list[dict[str, Any]]:
    """Answers, results or rows of the table with so many steps, and the reference's, which have none."""
    return [row for row in rows if row.get("steps") in (None, steps)]


def budgets_of(rows: Sequence[Row]) -> list[int]:
    """The numbers of steps, ascending."""
    return sorted({row["steps"] for row in rows if row["steps"] is not None})


def over_passes(rows: Sequence[Row]) -> tuple[list[Row], list[Column]]:
    """A row for each cell, its quality and forward passes at every budget side by side and the area under them, and
    the columns; none with a single budget."""
    budgets = budgets_of(rows)
    if len(budgets) < 2:
        return [], []
    cells: dict[tuple[str, str], Row] = {}
    for row in rows:
        cell = {"checkpoint": row["checkpoint"], "decoder": row["decoder"], "steps": None, "setting": ""}
        wide_row = cells.setdefault((row["checkpoint"], row["decoder"]), cell)
        for steps in budgets if is_reference(row) else [row["steps"]]:
            for name in ("quality", "nfe"):
                wide_row |= {f"{name}_{steps}": row[name], f"{name}_{steps}_ci": row[f"{name}_ci"]}
        wide_row |= {name: row[name] for name in ("area", "area_ci")}
    columns = [
        replace(COLUMNS[name], name=f"{name}_{steps}", heading=f"{COLUMNS[name].heading}, S = {steps}")
        for steps in budgets
        for name in ("quality", "nfe")
    ]
    return list(cells.values()), [*columns, AREA]


def _tokens_per_step(cell: Row, shared_length: float | None) -> Row:
    """L*_norm / S* (docs/method.md §6): one length for all decoders, so that a longer answer does not look faster.

    The reference makes one token a pass whatever the others' length (paper Table 5: AR = 1).
    """
    if is_reference(cell):
        return {"tokens_per_step": 1.0}
    if shared_length is None or not cell["nfe"]:
        return {}
    interval = cell["nfe_ci"]
    inverted = [shared_length / interval[1], shared_length / interval[0]] if interval and interval[0] > 0 else None
    return {"tokens_per_step": shared_length / cell["nfe"], "tokens_per_step_ci": inverted}


def long_runs(ablation: Sequence[Row]) -> list[Row]:
    """The ablation's rows, as rows of a table of their own."""
    return [
        {**row, "decoder": LONG_RUNS[row["variant"]].format_map(row), "steps_ci": None, "setting": ""}
        for row in ablation
    ]


def bound_rows(likelihoods: Sequence[Row]) -> list[Row]:
    """The likelihood stage's rows, as rows of a table of their own, with what they differ from the base's by."""
    base = next((row for row in likelihoods if row["checkpoint"] == "base"), None)
    return [
        {**row, "decoder": "bound", "steps": None, "setting": "", "nll_change": None, **_change(row, base)}
        for row in likelihoods
    ]


def _change(row: Row, base: Row | None) -> Row:
    """The difference of two ratios of sums over the same records, with its normal interval (delta method)."""
    if base is None or row is base:
        return {}
    tokens = base["record_tokens"]
    total, count = sum(tokens), len(tokens)
    differences = [ours - theirs for ours, theirs in zip(row["record_nll"], base["record_nll"], strict=True)]
    change = sum(differences) / total
    squares = sum((d - change * size) ** 2 for d, size in zip(differences, tokens, strict=True))
    reach = NormalDist().inv_cdf(0.975) * math.sqrt(squares * count / max(count - 1, 1)) / total
    return {"nll_change": change, "nll_change_ci": [change - reach, change + reach] if count > 1 else None}


def speed_rows(ablation: Sequence[Row]) -> list[Row]:
    """Tokens a step of the ablation's runs without and with EOS-fill, a variant in the decoder's place (Table 5)."""
    runs = [row for row in ablation if row["variant"] in ("plain", "eos_fill")]
    rows = []
    for row in runs:
        lengths = [other["length"] for other in runs if other["checkpoint"] == row["checkpoint"]]
        speed = _tokens_per_step(row, sum(lengths) / len(lengths))
        rows.append({"checkpoint": row["checkpoint"], "decoder": row["variant"], **speed})
    return rows


def is_reference(row: Row) -> bool:
    return bool(row["checkpoint"] == "reference")


def quality_axes(rows: Sequence[Row]) -> tuple[Column, Column]:
    """The two axes of quality: the exact judge's, where every diffusion row has them; else what the prompt adds to an
    answer, and perplexity.

    Of relevance the sum over an answer, not the mean over its tokens, which short answers win. Low perplexity is the
    good end, for want of better: repetition has it too and stands beside it.
    """
    exact = COLUMNS["well_formed"], COLUMNS["slot_error_rate"]
    if all(row[axis.name] is not None for row in rows if not is_reference(row) for axis in exact):
        return exact
    return replace(COLUMNS["relevance_total"], better="higher"), replace(COLUMNS["perplexity"], better="lower")


def used(rows: Sequence[Row], columns: Sequence[Column]) -> list[Column]:
    """The columns that hold a value in any row, and not 0 alone where that says little."""
    return [c for c in columns if any(row[c.name] is not None and (row[c.name] or not c.often_zero) for row in rows)]


def zero_note(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """'0 in every row, and left out: win rate.' of measures that `used` leaves out; empty without any."""
    zeros = [c.heading for c in columns if c.often_zero and c.better and {row[c.name] for row in rows} - {None} == {0}]
    return f"0 in every row, and left out: {', '.join(zeros)}." if zeros else ""


def number(value: float | None, column: Column) -> str:
    return "–" if value is None else f"{value:.{column.digits}f}"


def interval(row: Row, column: Column) -> str:
    """'[low, high]', empty without an interval."""
    ci = row.get(f"{column.name}_ci")
    return f"[{number(ci[0], column)}, {number(ci[1], column)}]" if ci else ""


def half_width(row: Row, column: Column) -> str:
    """Half the interval's width, empty without an interval."""
    ci = row.get(f"{column.name}_ci")
    return number((ci[1] - ci[0]) / 2, column) if ci else ""


def is_best(row: Row, rows: Sequence[Row], column: Column) -> bool:
    """Whether the row's value is the best of the diffusion rows with as many steps; rows that print the same share the
    honour, and where all do there is none."""
    rivals = [r for r in rows if not is_reference(r) and r["steps"] == row["steps"]]
    values = [r[column.name] for r in rivals if r[column.name] is not None]
    if is_reference(row) or row[column.name] is None or column.better is None:
        return False
    printed = {number(value, column) for value in values}
    best = max(values) if column.better == "higher" else min(values)
    return len(printed) > 1 and number(row[column.name], column) == number(best, column)


def to_markdown(rows: Sequence[Row], long: Sequence[Row] = (), bounds: Sequence[Row] = ()) -> str:
    """The tables (`groups`) with the footnotes that define their columns."""
    parts = []
    for title, shown_rows, columns in groups(rows, long, bounds):
        parts += [f"**{title}**", _grid(shown_rows, columns)]
        if title in GROUPS:
            notes = [f"{c.heading}: {c.meaning}." for c in columns]
            notes += filter(None, [zero_note(shown_rows, GROUPS[title])])
            parts.append("\n".join(f"- {note}" for note in notes))
        elif title == OVER_PASSES_TITLE:
            parts.append(f"- {AREA.heading}: {AREA.meaning}.")
        elif title == BOUND_TITLE:
            parts.append("\n".join(f"- {c.heading}: {c.meaning}." for c in columns))
    return "\n\n".join([*parts, f"{counts(rows)} {PLUS_MINUS} {BOLD}"]) + "\n"


def counts(rows: Sequence[Row]) -> str:
    """'16 steps for 128 tokens, 120 answers a row.' of every budget."""
    settings = dict.fromkeys((r["steps"], r["gen_length"], r["n"]) for r in rows if not is_reference(r))
    return " ".join(f"{steps} steps for {length} tokens, {n} answers a row." for steps, length, n in settings)


def groups(
    rows: Sequence[Row], long: Sequence[Row], bounds: Sequence[Row] = ()
) -> list[tuple[str, Sequence[Row], list[Column]]]:
    """Title, rows and columns of every table: quality over passes, quality and speed, structure, the ablation's, and
    the checkpoints' likelihood."""
    several = len({row["steps"] for row in rows if not is_reference(row)}) > 1
    tables: list[tuple[str, Sequence[Row], list[Column]]] = [(OVER_PASSES_TITLE, *over_passes(rows))]
    tables += [
        (title, rows, [*([STEPS] if several else []), *used(rows, columns)]) for title, columns in GROUPS.items()
    ]
    tables += [(LONG_TITLE, long, used(long, LONG_COLUMNS)), (BOUND_TITLE, bounds, used(bounds, BOUND_COLUMNS))]
    return [group for group in tables if group[1]]


def name_of(row: Row) -> str:
    """What stands in the decoder's column: 'conv (kernel_size 9)'."""
    return f"{row['decoder']} ({row['setting']})" if row["setting"] else str(row["decoder"])


def _grid(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    lines = [["checkpoint", "decoder", *(column.heading + column.arrow for column in columns)]]
    lines += [[row["checkpoint"], name_of(row), *(_cell(row, rows, column) for column in columns)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    # Names to the left, numbers to the right.
    lines.insert(1, ["-" * width if i < 2 else "-" * (width - 1) + ":" for i, width in enumerate(widths)])
    return "\n".join("| " + " | ".join(_padded(line, widths)) + " |" for line in lines)


def _padded(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    pairs = enumerate(zip(line, widths, strict=True))
    return [text.ljust(width) if i < 2 else text.rjust(width) for i, (text, width) in pairs]


def _cell(row: Row, rows: Sequence[Row], column: Column) -> str:
    text = number(row[column.name], column)
    if is_best(row, rows, column):
        text = f"**{text}**"
    half = half_width(row, column)
    return f"{text} ± {half}" if half else text
