"""Quality over forward passes as one number: weights by hand; an interval that keeps a prompt's budgets together."""

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dlm.evaluation.area import area_weights, quality_area
from dlm.evaluation.bootstrap import bootstrap_ci

Row = dict[str, Any]


@pytest.mark.parametrize(
    ("steps", "nfe", "expected"),
    [
        ([16, 64], [16.0, 64.0], [1 / 2, 1 / 2]),
        ([4, 16, 64], [4.0, 16.0, 64.0], [1 / 4, 1 / 2, 1 / 4]),
        # Of the three doublings from 8 to 64 passes the line takes the first two, and the third is level at its end.
        ([8, 64], [8.0, 32.0], [1 / 3, 2 / 3]),
        # It begins a doubling late: level from 8 to 16, then two doublings of line.
        ([8, 64], [16.0, 64.0], [2 / 3, 1 / 3]),
        # From 2 to 32 passes it rises by a quarter each doubling: 1/4 at 4, 3/4 at 16, 1/2 between them.
        ([4, 16], [2.0, 32.0], [1 / 2, 1 / 2]),
        # From 2 to 16 the mean of 1/3 at 4 and 1 at 16.
        ([4, 16], [2.0, 16.0], [1 / 3, 2 / 3]),
        # All passes below the range: the last quality holds from its beginning to its end.
        ([16, 64], [4.0, 8.0], [0.0, 1.0]),
        ([16, 64], [70.0, 80.0], [1.0, 0.0]),
    ],
)
def test_weights_by_hand(steps: list[int], nfe: list[float], expected: list[float]) -> None:
    assert area_weights(steps, nfe) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("steps", "nfe"), [([16], [16.0]), ([], []), ([16, 64], [20.0, 20.0]), ([16, 64], [20.0, 12.0])]
)
def test_no_curve(steps: list[int], nfe: list[float]) -> None:
    """A single budget, or more steps that took no more passes."""
    assert area_weights(steps, nfe) is None


curves = st.lists(st.tuples(st.integers(1, 2000), st.floats(0.5, 3000.0)), min_size=2, max_size=6)


@given(curves)
def test_weights_are_shares(curve: list[tuple[int, float]]) -> None:
    """None below 0, all of them 1: the area lies between the lowest and the highest quality."""
    steps, nfe = sorted({s for s, _ in curve}), sorted({n for _, n in curve})
    assume(len(steps) == len(nfe) == len(curve) and all(after - before > 1e-6 for before, after in pairwise(nfe)))
    weights = area_weights(steps, nfe)
    assert weights is not None and min(weights) >= 0
    assert sum(weights) == pytest.approx(1)


@given(curves, st.floats(-2, 2), st.floats(-1, 1))
def test_a_straight_line_has_the_height_of_its_middle(
    curve: list[tuple[int, float]], base: float, slope: float
) -> None:
    """Budgets met exactly, quality straight over the logarithm of the passes: the mean is half of both ends."""
    steps = sorted({s for s, _ in curve})
    assume(len(steps) >= 2)
    quality = [base + slope * math.log(s) for s in steps]
    weights = area_weights(steps, [float(s) for s in steps])
    assert weights is not None
    mean = sum(weight * value for weight, value in zip(weights, quality, strict=True))
    assert mean == pytest.approx((quality[0] + quality[-1]) / 2, abs=1e-9)


def answers(nfe: float, quality: dict[int, list[float]]) -> list[Row]:
    """Rows as score_answers gives them: prompt -> its quality by seed."""
    return [
        {"id": prompt, "seed": seed, "nfe": nfe, "quality": value}
        for prompt, values in quality.items()
        for seed, value in enumerate(values)
    ]


def test_area_by_hand() -> None:
    """Both budgets weigh a half: prompt 3 has (0.2 + 0.6) / 2 = 0.4, prompt 5 (0.4 + 1.0) / 2 = 0.7."""
    found = quality_area({16: answers(16, {3: [0.2], 5: [0.4]}), 64: answers(64, {3: [0.6], 5: [1.0]})}, 200)
    assert found["area"] == pytest.approx(0.55)
    low, high = found["area_ci"]
    assert (low, high) == pytest.approx((0.4, 0.7))  # of two prompts one may be drawn twice


def test_budgets_of_a_prompt_stay_together() -> None:
    """What a prompt loses with few steps it gains with many: each has the same area, and the interval no width.

    Drawn apart the budgets would differ from draw to draw. With seeds too, of which a prompt's stay together.
    """
    few = {prompt: [prompt / 10, 1 - prompt / 10] for prompt in range(8)}
    many = {prompt: [1 - value for value in values] for prompt, values in few.items()}
    found = quality_area({16: answers(16, few), 64: answers(64, many)}, 100)
    assert found["area"] == pytest.approx(0.5) and found["area_ci"] == pytest.approx([0.5, 0.5])
    rows = answers(16, {prompt: [prompt / 10, 0.5] for prompt in range(8)})
    apart = bootstrap_ci([row["quality"] for row in rows], [row["id"] for row in rows], samples=100)
    alike = quality_area({16: rows, 64: answers(64, {prompt: [prompt / 10, 0.5] for prompt in range(8)})}, 100)
    assert alike["area_ci"] == pytest.approx(apart)  # clusters are prompts, not answers


def test_without_a_curve_there_is_no_area() -> None:
    """One budget; passes that do not grow; no answers of a diffusion decoder at all (the reference's)."""
    one = answers(16, {3: [0.2], 5: [0.4]})
    for budgets in ({16: one}, {16: one, 64: one}, {}):
        assert quality_area(budgets, 100) == {"area": None, "area_ci": None}
