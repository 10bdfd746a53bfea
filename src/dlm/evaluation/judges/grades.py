"""Grades from 1 to 5 for single answers, weighted by the judge's probabilities (after G-Eval, Liu et al. 2023)."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from dlm.evaluation.judges.prompts import GRADES


@runtime_checkable
class Grader(Protocol):
    """Grades single answers."""

    def grade(self, answers: Sequence[tuple[str, str]]) -> list[float | None]:
        """The grade of each (instruction, answer), in [1, 5]; None where the judge failed."""
        ...

    def costs(self) -> dict[str, int]:
        """What grading has taken so far, by name; empty where it is free."""
        ...


def expected(shares: Sequence[float]) -> float:
    """Σ k p(k) over the grades, p their shares of the probability."""
    return sum(int(grade) * share for grade, share in zip(GRADES, shares, strict=True))
