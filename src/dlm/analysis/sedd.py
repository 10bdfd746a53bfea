"""SEDD beside the model that the NELBO trained: the table of the stage `sedd`."""

from collections.abc import Sequence

from dlm.analysis.columns import COLUMNS, Row
from dlm.analysis.paper import SMALL, with_ours

VALUES = ("quality", "win_rate", "lc_win_rate", "perplexity", "repetition_4", "length", "nfe")
NAMES = {
    ("sft", "categorical"): "NELBO, `categorical`",
    ("sedd", "tweedie"): "score entropy, `tweedie`",
    ("sedd", "categorical"): "score entropy, `categorical`",
}


def to_markdown(rows: Sequence[Row], curve: Sequence[Row], steps: int) -> str:
    """Every cell at each number of steps; what the paper reports beside ours; and the loss on held-out data, before
    training and after.

    Args:
        rows: with checkpoint, decoder, steps and cell.summarise's figures.
        curve: of training.
        steps: the number of steps that stands beside the paper's.
    """
    columns = [COLUMNS[name] for name in VALUES]
    lines = _head(["model, decoder", "S", *(f"{column.heading}{column.arrow}" for column in columns)])
    for row in rows:
        values = [_value(row, column.name, column.digits) for column in columns]
        lines.append(_line([NAMES[row["checkpoint"], row["decoder"]], str(row["steps"]), *values]))
    table = SMALL[0]
    headings, beside = with_ours(table, [row for row in rows if row["steps"] == steps])
    lines += ["", f"{table.title} of the paper (MDLM and SEDD of 170M parameters), and ours at S = {steps}:", ""]
    lines += _head([*table.names, *headings])
    for line, figures in zip(table.lines, beside, strict=True):
        if line.ours is not None and line.ours in NAMES:
            lines.append(_line([*line.names, *("–" if figure is None else f"{figure:.2f}" for figure in figures)]))
    held_out = [row for row in curve if "eval_loss" in row]
    lines += ["", "Score entropy on held-out records, nats a token; and its two parts, all times alike:", ""]
    lines += _head(["step", "score entropy", "-log p", "penalty for sums T other than 1", "log T"])
    for row in (held_out[0], held_out[-1]):
        numbers = [row[f"eval_{name}"] for name in ("loss", "nll", "penalty", "log_total")]
        lines.append(_line([str(row["step"]), *(f"{number:.3f}" for number in numbers)]))
    return "\n".join(lines) + "\n"


def _head(names: Sequence[str]) -> list[str]:
    return [_line(names), "|" + " --- |" * len(names)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _value(row: Row, name: str, digits: int) -> str:
    if row[name] is None:
        return "–"
    interval = row[f"{name}_ci"]
    bounds = f" [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]" if interval else ""
    return f"{row[name]:.{digits}f}{bounds}"
