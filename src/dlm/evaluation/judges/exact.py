"""The builtin corpus's exact judge on pairs: it compares the facts that the answers state."""

from collections.abc import Sequence

from dlm.evaluation.exact import CorpusJudge
from dlm.evaluation.judges.pairs import Pair, Verdict


class ExactJudge:
    """Fewer slot errors win, then the higher share of well-formed sentences; else it is a tie.

    Args:
        judge: of the corpus's task.
    """

    def __init__(self, judge: CorpusJudge) -> None:
        self._judge = judge

    def prefer(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """1, 0.5 or 0 for each pair; None where its meta gives nothing to judge by."""
        return [Verdict(self._preference(pair)) for pair in pairs]

    def costs(self) -> dict[str, int]:
        return {}

    def _preference(self, pair: Pair) -> float | None:
        reports = [self._judge.report(text, pair.meta or {}) for text in (pair.answer, pair.baseline)]
        known = [(-report.slot_error_rate, report.well_formed_share) for report in reports if report is not None]
        if not known:
            return None
        answer, baseline = known
        return 0.5 if answer == baseline else float(answer > baseline)
