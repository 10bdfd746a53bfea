"""Win rates against numbers worked out by hand."""

import math

import numpy as np
import pytest

from dlm.evaluation import length_controlled_win_rate, win_rate
from dlm.evaluation.winrate import length_controlled


def test_win_rate_by_hand() -> None:
    """1, 0, 0.5, 1: mean 0.625; squared deviations 0.140625 x 2 + 0.390625 + 0.015625 = 0.6875; the standard error is
    sqrt(0.6875 / 3 / 4) = 0.239357."""
    rate = win_rate([1, 0, 0.5, 1])
    assert rate.percent == 62.5
    assert rate.standard_error == pytest.approx(23.9357, abs=1e-4)


def test_equal_lengths_control_nothing() -> None:
    p = [1, 0, 0.5, 1, 1]
    assert length_controlled_win_rate(p, [7] * 5, [7] * 5) == pytest.approx(win_rate(p).percent, abs=1e-6)


def test_a_length_bias_is_taken_out() -> None:
    """Longer by 10 in half of the prompts, where 4 of 5 win, shorter by 10 in the others, where half win.

    sd = 10, so the term is φ tanh(±1). Two groups, two parameters: θ + φ tanh 1 = logit 0.8 = ln 4 and
    θ - φ tanh 1 = logit 0.5 = 0. θ = ln 2, the score is σ(ln 2) = 2/3, where the plain rate is 0.65.
    """
    p = [1, 1, 1, 1, 0] * 2 + [1, 0] * 5
    lengths = [30] * 10 + [10] * 10
    assert win_rate(p).percent == 65
    assert length_controlled_win_rate(p, lengths, [20] * 20) == pytest.approx(200 / 3, abs=1e-3)


def test_ties_and_shares_count_as_parts_of_a_win() -> None:
    """The same two groups with their shares as preferences: the same likelihood, so the same score."""
    score = length_controlled_win_rate([0.8, 0.5], [30, 10], [20, 20])
    assert score == pytest.approx(200 / 3, abs=1e-3)


def test_difficulty_by_hand() -> None:
    """logit p = ln 2 ± ln 2 (length) ± ln 3 (difficulty), all four: without the length term the score is the mean of
    σ(ln 2 + ln 3) = 6/7 and σ(ln 2 - ln 3) = 2/5."""
    signs = [(1, 1), (1, -1), (-1, 1), (-1, -1)]
    p = [1 / (1 + math.exp(-(math.log(2) + a * math.log(2) + b * math.log(3)))) for a, b in signs]
    lengths = [20 + 10 * a for a, _ in signs]
    score = length_controlled_win_rate(p, lengths, [20] * 4, [b for _, b in signs])
    assert score == pytest.approx(100 * (6 / 7 + 2 / 5) / 2, abs=1e-3)


def test_swapping_model_and_baseline_turns_the_score_round() -> None:
    rng = np.random.default_rng(0)
    p, ours, theirs, hard = rng.random(80), rng.integers(1, 90, 80), rng.integers(1, 90, 80), rng.normal(size=80)
    there = length_controlled_win_rate(p, ours, theirs, hard)
    back = length_controlled_win_rate(1 - p, theirs, ours, hard)
    assert there + back == pytest.approx(100, abs=1e-3)


def test_the_standard_error_is_the_bootstraps() -> None:
    rng = np.random.default_rng(1)
    ours, theirs = rng.integers(5, 90, 400), rng.integers(5, 90, 400)
    p = (rng.random(400) < 1 / (1 + np.exp(-0.3 - (ours - theirs) / 40))).astype(float)
    rate = length_controlled(p, ours, theirs)
    draws = [rng.integers(0, 400, 400) for _ in range(300)]
    scores = [length_controlled_win_rate(p[d], ours[d], theirs[d]) for d in draws]
    assert rate.standard_error == pytest.approx(float(np.std(scores)), rel=0.15)


def test_one_sided_preferences() -> None:
    assert length_controlled_win_rate([1, 1, 1], [5, 6, 7], [1, 9, 3]) == 100
    assert length_controlled_win_rate([0, 0], [5, 6], [1, 9]) == 0


@pytest.mark.parametrize("p", [[], [0.5, 1.2], [float("nan")]])
def test_what_is_no_preference(p: list[float]) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        length_controlled_win_rate(p, [1] * len(p), [1] * len(p))


def test_lists_of_different_lengths() -> None:
    with pytest.raises(ValueError, match="equally many"):
        length_controlled_win_rate([1, 0], [1, 2, 3], [1, 2])
