"""The builtin corpus's exact judge on pairs: what an answer states decides, nobody's opinion."""

from collections.abc import Sequence

from dlm.data.grammar import Grammar
from dlm.evaluation.judges.pairs import Pair, Verdict
from dlm.evaluation.slots import SlotJudge


class ExactJudge:
    """Fewer slot errors win, then the higher share of well-formed sentences; else it is a tie.

    Args:
        grammar: the builtin corpus's.
    """

    def __init__(self, grammar: Grammar) -> None:
        self._slots = SlotJudge(grammar)

    def prefer(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """1, 0.5 or 0 for each pair; None where its meta has no topic and slots to judge by."""
        return [Verdict(self._preference(pair)) for pair in pairs]

    def costs(self) -> dict[str, int]:
        return {}

    def _preference(self, pair: Pair) -> float | None:
        if pair.meta is None or "topic" not in pair.meta or not pair.meta.get("slots"):
            return None
        reports = [
            self._slots.judge(text, pair.meta["topic"], pair.meta["slots"]) for text in (pair.answer, pair.baseline)
        ]
        answer, baseline = ((-report.slot_error_rate, report.well_formed_share) for report in reports)
        return 0.5 if answer == baseline else float(answer > baseline)
