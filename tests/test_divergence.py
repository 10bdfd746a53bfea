"""MAUVE by hand, and against an independent sum over the frontier."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny import tiny_model

from dlm.evaluation.divergence import buckets, mauve, response_features


def test_equal_distributions_are_1() -> None:
    assert mauve([0, 1, 2, 2], [0, 1, 2, 2], 3) == pytest.approx(1.0)


def test_it_is_symmetric_and_falls_with_the_distance() -> None:
    even, near, far = [0, 1] * 50, [0] * 60 + [1] * 40, [0] * 100
    values = [mauve(side, even, 2) for side in (even, near, far)]
    assert values == sorted(values, reverse=True) and 0 < values[-1] < 0.6 < values[1] < 1
    assert mauve(near, far, 2) == pytest.approx(mauve(far, near, 2))


def test_against_the_definition() -> None:
    """Two clusters, 3 against 1 and 1 against 3 of 4 with half a count each: P = (0.7, 0.3), Q = (0.3, 0.7).

    The area between neighbouring points of the frontier, by the shoelace formula around the origin.
    """
    p, q = np.array([0.7, 0.3]), np.array([0.3, 0.7])
    points = [(1.0, 0.0)]
    for weight in np.linspace(0.01, 0.99, 25):
        r = weight * p + (1 - weight) * q
        to_q, to_p = (side[0] * np.log(side[0] / r[0]) + side[1] * np.log(side[1] / r[1]) for side in (q, p))
        points.append((np.exp(-5 * to_q), np.exp(-5 * to_p)))
    points.append((0.0, 1.0))
    area = sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in pairwise(points)) / 2
    assert mauve([0, 0, 0, 1], [0, 1, 1, 1], 2) == pytest.approx(abs(area))


def test_buckets_tell_far_groups_apart_and_repeat() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.normal(-5, 0.1, (20, 4)), rng.normal(5, 0.1, (30, 4))
    ours, real, count = buckets(left, right, seed=0)
    assert count == 2 and set(ours) | set(real) == {0, 1} and len(set(ours)) == len(set(real)) == 1
    again, _, _ = buckets(left, right, seed=0)
    assert np.array_equal(ours, again)
    assert mauve(ours, real, count) < 0.1


def test_features_are_the_mean_state_whatever_the_batch() -> None:
    model = tiny_model(causal=True)
    prompts, responses = [[5, 6], [7, 8, 9], [5]], [[10, 11, 12, 0, 4], [13], [0]]
    together = response_features(model, prompts, responses, eos_id=0, batch_size=3)
    alone = response_features(model, prompts, responses, eos_id=0, batch_size=1)
    assert np.allclose(together, alone, atol=1e-5)
    with torch.no_grad():
        states = model.model(torch.tensor([[5, 6, 10, 11, 12]])).last_hidden_state[0]
    assert np.allclose(together[0], states[2:].mean(0).numpy(), atol=1e-5)
    assert not together[2].any()
