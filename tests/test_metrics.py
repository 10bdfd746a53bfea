"""Metrics on token ids: numbers derived by hand, ranges and invariances, equality with naive counting."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm.errors import UserError
from dlm.evaluation import metrics

tokens = st.lists(st.integers(0, 5), max_size=20)
nothing: frozenset[int] = frozenset()


def test_repetition_by_hand() -> None:
    """1 2 1 2 1 has the bigrams 12 21 12 21: 2 unique of 4, so half of them occurred before."""
    assert metrics.repetition([1, 2, 1, 2, 1], n=2) == 0.5


def test_repetition_default_counts_4_grams() -> None:
    """7 x 6 has three 4-grams, all the same: two of three are repetitions."""
    assert metrics.repetition([7] * 6) == pytest.approx(2 / 3)


def test_repetition_needs_n_tokens() -> None:
    assert metrics.repetition([1, 2, 3], n=4) is None
    assert metrics.repetition([1, 2, 3, 4], n=4) == 0.0


@settings(deadline=None)
@given(tokens, st.integers(1, 5))
def test_repetition_equals_counting_seen_before(response: list[int], n: int) -> None:
    grams = [tuple(response[i : i + n]) for i in range(len(response) - n + 1)]
    before = [gram in grams[:i] for i, gram in enumerate(grams)]
    expected = sum(before) / len(before) if before else None
    assert metrics.repetition(response, n) == (None if expected is None else pytest.approx(expected))


def test_distinct_by_hand() -> None:
    """Bigrams 12 23 | 12 | (none): 2 unique of 3. The pair 3|1 across responses is not a bigram."""
    assert metrics.distinct([[1, 2, 3], [1, 2], [9]], n=2) == pytest.approx(2 / 3)


def test_distinct_without_any_ngram() -> None:
    assert metrics.distinct([], n=2) is None
    assert metrics.distinct([[1], []], n=2) is None


@settings(deadline=None)
@given(st.lists(tokens, max_size=6), st.integers(1, 3), st.randoms())
def test_distinct_ignores_the_order_of_responses(responses: list[list[int]], n: int, rng) -> None:
    shuffled = rng.sample(responses, len(responses))
    value = metrics.distinct(responses, n)
    assert value == metrics.distinct(shuffled, n)
    assert value is None or 0 < value <= 1


@settings(deadline=None)
@given(tokens, st.integers(1, 5))
def test_distinct_of_one_response_is_the_complement_of_repetition(response: list[int], n: int) -> None:
    repeated = metrics.repetition(response, n)
    assert metrics.distinct([response], n) == (None if repeated is None else pytest.approx(1 - repeated))


def test_prompt_repetition_by_hand() -> None:
    """Response 1 1 4 5 9, prompt 1 4 9, 9 ignored: of 1 1 4 5 the first three stand in the prompt."""
    assert metrics.prompt_repetition([1, 1, 4, 5, 9], [1, 4, 9], frozenset({9})) == 0.75


def test_prompt_repetition_without_countable_tokens() -> None:
    assert metrics.prompt_repetition([], [1], nothing) is None
    assert metrics.prompt_repetition([9, 9], [9], frozenset({9})) is None
    assert metrics.prompt_repetition([9], [], nothing) == 0.0


@settings(deadline=None)
@given(tokens.filter(bool))
def test_an_echo_repeats_everything(response: list[int]) -> None:
    assert metrics.prompt_repetition(response, response, nothing) == 1.0


def test_high_prior_share_by_hand() -> None:
    """0 and 1 are high-prior: three of the four tokens."""
    assert metrics.high_prior_share([0, 1, 1, 7], frozenset({0, 1})) == 0.75
    assert metrics.high_prior_share([], frozenset({0, 1})) is None


def test_mean_log_prior_by_hand() -> None:
    """Priors 1/2, 1/4: (log 1/2 + log 1/2 + log 1/4) / 3 = -4/3 log 2."""
    log_prior = [math.log(0.5), math.log(0.25)]
    assert metrics.mean_log_prior([0, 0, 1], log_prior) == pytest.approx(-4 / 3 * math.log(2))
    assert metrics.mean_log_prior([0, 0, 1], np.array(log_prior)) == metrics.mean_log_prior([0, 0, 1], log_prior)
    assert metrics.mean_log_prior([], log_prior) is None


def test_inlier_bounds_by_hand() -> None:
    """2 4 4 4 5 5 7 9: mean 5, variance (9+1+1+1+0+0+4+16)/8 = 4, so 5 ± 2·2."""
    bounds = metrics.inlier_bounds([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0])
    assert bounds == (1.0, 9.0)
    assert [metrics.is_inlier(value, bounds) for value in (0.9, 1.0, 9.0, 9.1)] == [False, True, True, False]


def test_log_inlier_bounds_by_hand() -> None:
    """e e³ e³ e⁵: logs 1 3 3 5, mean 3, variance (4+0+0+4)/4 = 2, so e^(3 ± 2√2)."""
    found = metrics.log_inlier_bounds([math.exp(value) for value in (1, 3, 3, 5)])
    assert found == pytest.approx((math.exp(3 - 2 * math.sqrt(2)), math.exp(3 + 2 * math.sqrt(2))))


def test_a_few_enormous_perplexities() -> None:
    """62 of most and 40,000 of 4 in 500: by their values everything above 0 lies within, by their logarithms 21 to 207.

    Mean 62 + .008·39,938 = 381.504, deviation 39,938·√(.008·.992) = 3557.8; the logarithms' mean is
    log 62 + .008·log(40,000/62) = 4.1789, their deviation log(40,000/62)·√(.008·.992) = .5763.
    """
    perplexities = [62.0] * 496 + [40_000.0] * 4
    assert metrics.inlier_bounds(perplexities) == pytest.approx((381.504 - 2 * 3557.8, 381.504 + 2 * 3557.8), rel=1e-3)
    low, high = metrics.log_inlier_bounds(perplexities)
    assert (low, high) == pytest.approx((math.exp(4.1789 - 2 * 0.5763), math.exp(4.1789 + 2 * 0.5763)), rel=1e-3)


def test_empty_and_undefined_responses_are_outliers() -> None:
    assert not metrics.is_inlier(None, (0.0, 10.0))
    assert not metrics.is_inlier(float("nan"), (0.0, 10.0))


@pytest.mark.parametrize("perplexities", [[], [1.0, float("nan")], [1.0, float("inf")]])
def test_inlier_bounds_refuse_what_would_make_everything_an_outlier(perplexities: list[float]) -> None:
    for bounds in (metrics.inlier_bounds, metrics.log_inlier_bounds):
        with pytest.raises(UserError, match="finite perplexities"):
            bounds(perplexities)


@settings(deadline=None)
@given(st.lists(st.floats(1, 1000), min_size=1), st.floats(0.5, 4))
def test_inlier_bounds_scale_with_the_perplexities(perplexities: list[float], scale: float) -> None:
    low, high = metrics.inlier_bounds(perplexities)
    assert low <= high
    scaled = metrics.inlier_bounds([scale * value for value in perplexities])
    assert scaled == pytest.approx((scale * low, scale * high), abs=1e-6)


def test_tokens_per_step_by_hand() -> None:
    """L* = (10+30)/2 = 20, S* = (8+16)/2 = 12: 20/12; with L*_norm = 24 it is 24/12."""
    assert metrics.tokens_per_step([10, 30], [8, 16]) == pytest.approx(20 / 12)
    assert metrics.tokens_per_step([10, 30], [8, 16], norm_length=24.0) == 2.0


def test_tokens_per_step_undefined() -> None:
    assert metrics.tokens_per_step([], []) is None
    assert metrics.tokens_per_step([5], [0]) is None
    assert metrics.tokens_per_step([0, 0], [8, 8]) == 0.0


def test_with_a_common_length_a_longer_answer_is_not_faster() -> None:
    assert metrics.tokens_per_step([10], [8], norm_length=20.0) == metrics.tokens_per_step([90], [8], norm_length=20.0)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2 boats carry 3 each: 2*3 = 6.", "6"),
        ("It costs $1,234.50 in all", "1234.5"),
        ("#### 6,000", "6000"),
        ("from 10 to -4", "-4"),
        ("7.00 pounds", "7"),
        ("100", "100"),
        ("no number", None),
        ("", None),
    ],
)
def test_last_number(text: str, number: str | None) -> None:
    assert metrics.last_number(text) == number
