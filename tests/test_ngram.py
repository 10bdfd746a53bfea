"""The n-gram scorer against numbers from its formula."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlm.errors import UserError
from dlm.evaluation.ngram import NgramScorer

TEXT = [[1, 2, 1, 2, 3], [1, 2, 1]]


def witten_bell(texts: Sequence[Sequence[int]], context: tuple[int, ...], word: int, size: int) -> float:
    """(c(context, word) + T(context)·p(word | shorter context)) / (c(context) + T(context)), uniform at the bottom."""
    follows = [
        text[i + len(context)]
        for text in texts
        for i in range(len(text) - len(context))
        if tuple(text[i : i + len(context)]) == context
    ]
    lower = witten_bell(texts, context[1:], word, size) if context else 1 / size
    kinds = len(set(follows))
    return (follows.count(word) + kinds * lower) / (len(follows) + kinds) if follows else lower


def test_by_hand() -> None:
    """Single tokens: 1 four times, 2 three, 3 once, of 8; three kinds. After 1: 2 thrice. Vocabulary of 10."""
    alone = {word: (count + 3 * 0.1) / (8 + 3) for word, count in ((1, 4), (2, 3), (3, 1), (9, 0))}
    scorer = NgramScorer(TEXT, 2, 10)
    assert scorer.perplexity([], [1]) == pytest.approx(1 / alone[1])
    after_1 = (3 + 1 * alone[2]) / (3 + 1)
    assert scorer.perplexity([1], [2]) == pytest.approx(1 / after_1)
    assert scorer.perplexity([9], [9]) == pytest.approx(1 / alone[9])  # nothing is known after 9
    both = math.exp(-(math.log(alone[1]) + math.log(after_1)) / 2)
    assert scorer.perplexity([], [1, 2]) == pytest.approx(both)
    assert scorer.perplexity([1], []) is None


texts = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=8), min_size=1, max_size=5)


@given(texts, st.lists(st.integers(0, 5), max_size=4), st.integers(0, 5), st.integers(1, 4))
def test_against_the_formula(text: list[list[int]], prompt: list[int], word: int, order: int) -> None:
    found = NgramScorer(text, order, 6).perplexity(prompt, [word])
    context = tuple(prompt[max(0, len(prompt) - order + 1) :]) if order > 1 else ()
    assert found == pytest.approx(1 / witten_bell(text, context, word, 6))


@given(texts, st.lists(st.integers(0, 5), max_size=4), st.integers(1, 4))
def test_probabilities_sum_to_one(text: list[list[int]], prompt: list[int], order: int) -> None:
    scorer = NgramScorer(text, order, 6)
    scores = [scorer.perplexity(prompt, [word]) for word in range(6)]
    assert sum(1 / score for score in scores if score) == pytest.approx(1)


def test_real_order_costs_less_than_a_shuffled_one() -> None:
    rng = np.random.default_rng(0)
    text = [[(start + i) % 50 for i in range(40)] for start in rng.integers(0, 50, 30).tolist()]
    scorer = NgramScorer(text, 3, 50)
    ordered = [(7 + i) % 50 for i in range(30)]
    mixed = rng.permutation(ordered).tolist()
    assert (scorer.perplexity([5, 6], ordered) or 0) < 2 < (scorer.perplexity([5, 6], mixed) or 0)


def test_no_text() -> None:
    with pytest.raises(UserError, match="no held-out text"):
        NgramScorer([[]], 3, 10)
