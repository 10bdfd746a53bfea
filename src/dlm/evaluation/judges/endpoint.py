"""A model behind a chat endpoint as pairwise judge, and as the one who grades."""

from collections.abc import Sequence
from dataclasses import asdict

from dlm.evaluation.judges.chat import ChatEndpoint
from dlm.evaluation.judges.grades import expected
from dlm.evaluation.judges.pairs import Pair, Verdict, model_first
from dlm.evaluation.judges.prompts import GRADES, LETTERS, grade_prompt, pairwise_prompt
from dlm.evaluation.judges.replies import Reply, label_alone, label_shares


class EndpointJudge:
    """Shows both answers in one order, drawn by `seed` and the pair's texts, and asks for the letter of the better.

    The preference is the letters' share of the probability where the server gives log-probabilities, else 0 or 1 by
    the letter written. Equal answers tie without being asked about.
    """

    def __init__(self, endpoint: ChatEndpoint, seed: int = 0) -> None:
        self._endpoint, self._seed = endpoint, seed

    def costs(self) -> dict[str, int]:
        """Requests, tokens and failures so far (client.Usage)."""
        return asdict(self._endpoint.usage)

    def prefer(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """One verdict for each pair; None where the endpoint gave no letter in several tries.

        Raises:
            UserError: as `ChatEndpoint.ask`.
        """
        first = [model_first(pair, self._seed) for pair in pairs]
        asked = [place for place, pair in enumerate(pairs) if pair.answer != pair.baseline]
        prompts = [_prompt(pairs[place], first[place]) for place in asked]
        shares: list[float | None] = [0.5] * len(pairs)
        for place, share in zip(asked, self._endpoint.ask(prompts, first_share), strict=True):
            shares[place] = share if share is None or first[place] else 1 - share
        return [Verdict(share) for share in shares]


class EndpointGrader:
    """Asks for a grade of each answer."""

    def __init__(self, endpoint: ChatEndpoint) -> None:
        self._endpoint = endpoint

    def costs(self) -> dict[str, int]:
        """Requests, tokens and failures so far (client.Usage)."""
        return asdict(self._endpoint.usage)

    def grade(self, answers: Sequence[tuple[str, str]]) -> list[float | None]:
        """The grade of each (instruction, answer), in [1, 5]; None where the endpoint gave none in several tries.

        Raises:
            UserError: as `ChatEndpoint.ask`.
        """
        return self._endpoint.ask([grade_prompt(*answer) for answer in answers], expected_grade)


def _prompt(pair: Pair, model_is_first: bool) -> str:
    ordered = (pair.answer, pair.baseline) if model_is_first else (pair.baseline, pair.answer)
    return pairwise_prompt(pair.instruction, *ordered)


def first_share(reply: Reply) -> float | None:
    """How far the candidate shown first is preferred, in [0, 1]; None for a malformed reply."""
    if shares := label_shares(reply, LETTERS):
        return shares[0]
    letter = label_alone(reply, LETTERS)
    return None if letter is None else float(letter == LETTERS[0])


def expected_grade(reply: Reply) -> float | None:
    """The expected grade where there are log-probabilities, else the digit written; None for a malformed reply."""
    if shares := label_shares(reply, GRADES):
        return expected(shares)
    grade = label_alone(reply, GRADES)
    return None if grade is None else float(grade)
