"""What a cell's answers must be before they are scored."""

from pathlib import Path

import numpy as np
import pytest
from torch import nn

from dlm.errors import UserError
from dlm.evaluation.cell import Corpus, check_complete
from dlm.evaluation.scoring.scorer import Scorer

CORPUS = Corpus(
    {4: {}, 7: {}},
    frozenset(),
    np.zeros(1),
    (0.0, 1.0),
    (0.5, 1.0),
    0,
    None,
    Scorer(nn.Identity(), 0),
    nn.Identity(),
    [],
)
WHOLE = [{"id": number, "seed": seed} for seed in (0, 1) for number in (4, 7)]


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        (WHOLE[:3], "a.jsonl: no answer to prompt 7 with seed 1 (1 such of 4); decode again"),
        ([], "a.jsonl: no answer to prompt 4 with seed 0 (2 such of 2); decode again"),
        ([*WHOLE, WHOLE[1]], "a.jsonl: several answers to prompt 7 with seed 0 (1 such of 4); decode again"),
    ],
)
def test_answers_that_are_missing_or_too_many(answers: list[dict[str, int]], told: str) -> None:
    check_complete(WHOLE, CORPUS, Path("a.jsonl"))
    with pytest.raises(UserError) as caught:
        check_complete(answers, CORPUS, Path("a.jsonl"))
    assert str(caught.value) == told
