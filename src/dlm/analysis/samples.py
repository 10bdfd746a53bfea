"""Answers to look at, picked by a rule instead of by hand, and text of a model's inside markdown."""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from dlm.analysis.escape import one_line

MARKUP = frozenset("\\`*_[]|<>&~$#!:@")


def good_and_bad(
    answers: Mapping[str, Sequence[dict[str, Any]]], perplexities: Mapping[str, Sequence[float | None]]
) -> list[dict[str, Any]]:
    """Two answers of each cell: the nearest to the median of the first cell that has one, and the farthest from it.

    The distance is that of the logarithms: too easy, which is what repetitions are, counts like too hard.

    Args:
        answers: the answers of each cell.
        perplexities: of each answer; None where it is empty.

    Returns:
        Rows {**answer, answers: the cell's name, perplexity}, the good one first; of a cell with one answer it twice.
    """
    scored = {
        cell: [(value, row) for value, row in zip(perplexities[cell], rows, strict=True) if value is not None]
        for cell, rows in answers.items()
    }
    scored = {cell: pairs for cell, pairs in scored.items() if pairs}
    if not scored:
        return []
    middle = math.log(median(value for value, _ in next(iter(scored.values()))))
    picked = []
    for cell, pairs in scored.items():
        ordered = sorted(pairs, key=lambda pair: abs(math.log(pair[0]) - middle))
        picked += [{**row, "answers": cell, "perplexity": value} for value, row in (ordered[0], ordered[-1])]
    return picked


def as_text(text: str, width: int) -> str:
    """A cell of a markdown table, cut to a width, in which nothing is markup."""
    return "".join(f"&#{ord(c)};" if c in MARKUP else c for c in one_line(text, width))
