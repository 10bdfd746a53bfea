"""The grid that decoders' settings were chosen from: every candidate with its quality, the chosen ones marked."""

from collections.abc import Mapping, Sequence
from typing import Any

from dlm.analysis.columns import COLUMNS, Row
from dlm.analysis.table import number

QUALITY = COLUMNS["quality"]


def selection_rows(grid: Sequence[Row], settings: Mapping[tuple[str, int], Mapping[str, Any]]) -> list[Row]:
    """{decoder, steps, candidate, quality, qualities, chosen} of every candidate and budget, in the grid's order.

    `quality` is the mean over the checkpoints, which chooses; `qualities` has each checkpoint's with its interval.

    Args:
        grid: the select stage's rows of all decoders.
        settings: what was chosen for a decoder and number of steps.
    """
    candidate_rows = []
    for decoder, steps in dict.fromkeys((row["decoder"], row["steps"]) for row in grid):
        tried: dict[str, list[Row]] = {}
        for row in grid:
            if (row["decoder"], row["steps"]) == (decoder, steps):
                tried.setdefault(_text(row["candidate"]), []).append(row)
        candidate_rows += [
            {
                "decoder": decoder,
                "steps": steps,
                "candidate": candidate,
                "quality": sum(row["quality"] for row in rows) / len(rows),
                "qualities": {row["checkpoint"]: _with_interval(row) for row in rows},
                "chosen": rows[0]["candidate"] == settings[decoder, steps],
            }
            for candidate, rows in tried.items()
        ]
    return candidate_rows


def selection_markdown(rows: Sequence[Row]) -> str:
    """The rows of selection_rows as a table, empty without any."""
    if not rows:
        return ""
    checkpoints = list(rows[0]["qualities"])
    lines = [["decoder", "S", "candidate", "quality", *checkpoints], ["---"] * (4 + len(checkpoints))]
    for row in rows:
        quality = number(row["quality"], QUALITY)
        cell = f"**{quality}**" if row["chosen"] else quality
        lines.append([row["decoder"], str(row["steps"]), row["candidate"], cell, *row["qualities"].values()])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    head = (
        "Settings chosen on validation prompts. Bold: the highest quality, of equals the first in params.yaml. "
        "Behind it each checkpoint's, ± half a 95% interval."
    )
    return f"{head}\n\n{table}\n"


def sizes(grid: Sequence[Row], decoder: str, size: str) -> list[Row]:
    """A decoder's rows over one option, from the smallest to the largest, the other options as in its first candidate.

    Args:
        grid: of one checkpoint and number of steps.
    """
    rows = [row for row in grid if row["decoder"] == decoder and size in row["candidate"]]
    others = [{key: value for key, value in row["candidate"].items() if key != size} for row in rows]
    alike = [row for row, other in zip(rows, others, strict=True) if other == others[0]]
    return sorted(alike, key=lambda row: int(row["candidate"][size]))


def _text(candidate: Mapping[str, Any]) -> str:
    return ", ".join(f"{option} {value}" for option, value in candidate.items())


def _with_interval(row: Row) -> str:
    text, ci = number(row["quality"], QUALITY), row["quality_ci"]
    return f"{text} ± {number((ci[1] - ci[0]) / 2, QUALITY)}" if ci else text
