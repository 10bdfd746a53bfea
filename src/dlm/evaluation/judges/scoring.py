"""Grades from 1 to 5 for single answers, weighted by the judge's probabilities (after G-Eval, Liu et al. 2023)."""

from collections.abc import Sequence

from dlm.evaluation.judges.chat import ChatEndpoint
from dlm.evaluation.judges.client import Usage
from dlm.evaluation.judges.prompts import GRADES, grade_prompt
from dlm.evaluation.judges.replies import Reply, label_alone, label_shares


class EndpointScorer:
    """Asks a chat endpoint for a grade of each answer."""

    def __init__(self, endpoint: ChatEndpoint) -> None:
        self._endpoint = endpoint

    @property
    def usage(self) -> Usage:
        """What grading has cost so far."""
        return self._endpoint.usage

    def score(self, answers: Sequence[tuple[str, str]]) -> list[float | None]:
        """The grade of each (instruction, answer), in [1, 5]; None where the endpoint gave none in several tries.

        Raises:
            UserError: as `ChatEndpoint.ask`.
        """
        return self._endpoint.ask([grade_prompt(*answer) for answer in answers], expected_grade)


def expected_grade(reply: Reply) -> float | None:
    """Σ k p(k) over the grades, p their shares of the probability, or the digit written; None for a malformed reply."""
    if shares := label_shares(reply, GRADES):
        return sum(int(grade) * share for grade, share in zip(GRADES, shares, strict=True))
    grade = label_alone(reply, GRADES)
    return None if grade is None else float(grade)
