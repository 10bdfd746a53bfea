"""What every judge takes and gives: pairs of answers in, preferences out."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class Pair:
    """Two answers to one instruction.

    Attributes:
        answer: the model's.
        baseline: what it is compared with.
        meta: what the corpus knows of the instruction (topic and slots on the builtin corpus), for the exact judge.
    """

    instruction: str
    answer: str
    baseline: str
    meta: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Verdict:
    """`preference` in [0, 1]: 1 where the model's answer is better, 0.5 for a tie, None where the judge failed."""

    preference: float | None


@runtime_checkable
class Judge(Protocol):
    """Compares answers."""

    def prefer(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """One verdict for each pair, in the pairs' order."""
        ...

    def costs(self) -> dict[str, int]:
        """What judging has taken so far, by name; empty where it is free."""
        ...


def model_first(pair: Pair, seed: int) -> bool:
    """Whether the model's answer is shown first: a fair coin that the seed and the pair's texts alone decide."""
    content = json.dumps([seed, pair.instruction, pair.answer, pair.baseline])
    return hashlib.sha256(content.encode()).digest()[0] % 2 == 0
