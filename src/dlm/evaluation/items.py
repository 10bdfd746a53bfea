"""The exact judge of the builtin corpus's lists: which towns an answer names, in which order, which parts are whole.

Nothing here is a model's opinion.
"""

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from dlm.evaluation.builtin.lists import COAST, LINKS
from dlm.evaluation.slots import SlotReport

_TOWN = re.compile(rf"\b(?:{'|'.join(COAST)})\b")
_FIRST = re.compile("|".join(COAST))
_NEXT = re.compile(rf" (?:(?:{'|'.join(LINKS)}) )?(?:{'|'.join(COAST)})")


class ListJudge:
    """Judges answers against the list that was asked for."""

    def report(self, answer: str, meta: Mapping[str, Any]) -> SlotReport | None:
        """`judge` for a record's meta; None where it asks for no list."""
        return self.judge(answer, meta["items"]) if "items" in meta else None

    def judge(self, answer: str, items: Sequence[str]) -> SlotReport:
        """Count items that are missing, wrong and named twice, and the parts that are well-formed.

        Wrong are mentions of towns not asked for, and items out of order: as few as must be struck out, of the first
        mentions, for the others to be in order. A part, the report's sentence, is what stands between two commas: a
        town and, but for the first, perhaps a link before it. The last must end with the answer's full stop.

        Args:
            answer: the decoded text.
            items: what is asked for, in order; all different, at least one.
        """
        if not items or len(set(items)) < len(items):
            raise ValueError(f"items must be different towns, at least one, got {list(items)}")
        place = {town: number for number, town in enumerate(items)}
        named = _TOWN.findall(answer)
        first = list(dict.fromkeys(place[town] for town in named if town in place))
        strangers = sum(town not in place for town in named)
        body, stop = answer.removesuffix("."), answer.endswith(".")
        parts = body.split(",") if answer else []
        whole = [bool((_NEXT if at else _FIRST).fullmatch(part)) for at, part in enumerate(parts)]
        if whole and not stop:
            whole[-1] = False
        return SlotReport(
            requested=len(items),
            missing=len(items) - len(first),
            wrong=strangers + len(first) - _longest_rise(first),
            repeated=len(named) - strangers - len(first),
            sentences=len(parts),
            well_formed=sum(whole),
        )


def _longest_rise(numbers: Sequence[int]) -> int:
    """Length of the longest strictly increasing subsequence."""
    ends: list[int] = []  # ends[k]: the smallest number that ends a rise of length k + 1
    for number in numbers:
        at = bisect_left(ends, number)
        ends[at : at + 1] = [number]
    return len(ends)
