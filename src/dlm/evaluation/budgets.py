"""Answers and figures of one number of steps, out of what holds those of several (decode.steps)."""

from collections.abc import Iterable
from typing import Any


def at_budget(rows: Iterable[dict[str, Any]], steps: int) -> list[dict[str, Any]]:
    """Answers, results or rows of the table with so many steps, and the reference's, which have none."""
    return [row for row in rows if row.get("steps") in (None, steps)]
