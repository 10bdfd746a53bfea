"""Confidence intervals: the vectorised mean against the slow path, clusters, missing values, coverage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm.evaluation.bootstrap import bootstrap_ci, jackknife_ci
from dlm.evaluation.metrics import distinct

rows = st.lists(st.tuples(st.one_of(st.none(), st.floats(-10, 10)), st.integers(0, 4)), min_size=1, max_size=20)


@settings(max_examples=40, deadline=None)
@given(rows, st.integers(0, 3))
def test_vectorised_mean_equals_the_callable_path(pairs: list[tuple[float | None, int]], seed: int) -> None:
    values, clusters = zip(*pairs, strict=True)
    numbers = np.array(values, dtype=float)
    fast = bootstrap_ci(values, clusters, samples=50, seed=seed)
    slow = bootstrap_ci(values, clusters, statistic=lambda drawn: float(numbers[drawn].mean()), samples=50, seed=seed)
    assert fast == (None if slow is None else pytest.approx(slow))


def test_two_clusters_by_hand() -> None:
    """Clusters {0, 0} and {3}: the draws are aa, ab or ba, bb with means 0, (0+0+3)/3 = 1, 3 at 1/4, 1/2, 1/4.

    The mean weighs rows, not clusters (1, not 1.5). The 2.5% and 97.5% quantiles are 0 and 3; those of the middle 40%
    are both 1.
    """
    values, clusters = [0.0, 0.0, 3.0], [7, 7, 9]
    assert bootstrap_ci(values, clusters) == (0.0, 3.0)
    assert bootstrap_ci(values, clusters, level=0.4) == (1.0, 1.0)


def test_seeds_of_one_prompt_do_not_narrow_the_interval() -> None:
    """Ten identical copies of each row carry no new information: the interval must stay what it was."""
    values = np.random.default_rng(0).normal(size=30)
    once = bootstrap_ci(values, np.arange(30))
    assert bootstrap_ci(np.repeat(values, 10), np.repeat(np.arange(30), 10)) == pytest.approx(once)
    as_if_independent = bootstrap_ci(np.repeat(values, 10), np.arange(300))
    assert once is not None and as_if_independent is not None
    assert np.ptp(as_if_independent) < np.ptp(once) / 2


def test_missing_values_are_dropped_with_their_rows() -> None:
    full = bootstrap_ci([1.0, 2.0, 4.0], [0, 1, 2], samples=100)
    assert bootstrap_ci([1.0, None, 2.0, float("nan"), 4.0], [0, 0, 1, 3, 2], samples=100) == full


def test_fewer_than_two_clusters_have_no_interval() -> None:
    assert bootstrap_ci([], []) is None
    assert bootstrap_ci([1.0, 2.0], [5, 5]) is None
    assert bootstrap_ci([1.0, None], [0, 1]) is None
    assert jackknife_ci([5, 5], lambda drawn: 1.0) is None


def test_a_statistic_that_is_never_defined_has_no_interval() -> None:
    assert bootstrap_ci([1.0, 2.0], [0, 1], statistic=lambda drawn: None, samples=5) is None
    assert jackknife_ci([0, 1], lambda drawn: None) is None


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="2 values but 3 clusters"):
        bootstrap_ci([1.0, 2.0], [0, 1, 2])


def test_deterministic_in_the_seed_and_blind_to_cluster_names() -> None:
    values = np.random.default_rng(1).normal(size=40)
    clusters = np.arange(40) // 4
    assert bootstrap_ci(values, clusters, seed=3) == bootstrap_ci(values, clusters * 10 - 5, seed=3)
    assert bootstrap_ci(values, clusters, seed=3) != bootstrap_ci(values, clusters, seed=4)


def test_coverage_with_correlated_rows() -> None:
    """Prompt effects of standard deviation 1, seeds of 0.5: about 95% of the intervals hold the true mean 0.

    Of 200 trials 190 ± 3.1 are expected at the nominal level; 30 clusters cost a percent or two.
    """
    rng = np.random.default_rng(2)
    clusters = np.repeat(np.arange(30), 3)
    hits = 0
    for trial in range(200):
        values = rng.normal(size=30)[clusters] + 0.5 * rng.normal(size=90)
        low, high = bootstrap_ci(values, clusters, samples=300, seed=trial) or (1.0, -1.0)
        hits += low <= 0 <= high
    assert 176 <= hits <= 199


def test_jackknife_of_the_mean_by_hand() -> None:
    """One row a cluster: the jackknife error of a mean is s/√n. Values 1 2 3: s = 1, so 2 ± 1.95996/√3."""
    values = np.array([1.0, 2.0, 3.0])
    reach = 1.959964 / np.sqrt(3)
    interval = jackknife_ci([0, 1, 2], lambda drawn: float(values[drawn].mean()))
    assert interval == pytest.approx((2 - reach, 2 + reach), rel=1e-5)


def test_distinct_n_needs_the_jackknife() -> None:
    """Drawing a response twice repeats all its bigrams: the percentile interval misses the value it should surround."""
    rng = np.random.default_rng(3)
    responses = [rng.zipf(1.5, size=30).tolist() for _ in range(40)]
    clusters = np.arange(40) // 2
    value = distinct(responses)

    def statistic(drawn: np.ndarray) -> float | None:
        return distinct([responses[row] for row in drawn])

    percentile = bootstrap_ci(np.zeros(40), clusters, statistic=statistic, samples=100)
    jackknife = jackknife_ci(clusters, statistic)
    assert value is not None and percentile is not None and jackknife is not None
    assert percentile[1] < value
    assert jackknife[0] < value < jackknife[1]
    assert np.ptp(jackknife) < 0.2
