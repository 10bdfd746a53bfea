"""Confidence intervals that respect clusters: the several decoding seeds of one prompt are not independent draws."""

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Int

Rows = Int[np.ndarray, " _"]
Statistic = Callable[[Rows], float | None]


def bootstrap_ci(
    values: Sequence[float | int | None] | np.ndarray,
    clusters: Sequence[int] | np.ndarray,
    *,
    statistic: Statistic | None = None,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """Percentile interval of a statistic, resampling whole clusters with replacement.

    Args:
        values: one number a row; rows with None or NaN are dropped before anything is drawn.
        clusters: the cluster (prompt) of each row.
        statistic: None for the mean of `values`. Otherwise a function of the drawn rows' indices into `values` (a row
            comes as often as its cluster was drawn); draws for which it gives None or NaN are dropped. Repeated rows
            must not bias it: distinct-n falls with every repetition, so its percentile interval can miss its own
            point estimate. `jackknife_ci` is meant for such statistics.
        samples: bootstrap draws.
        seed: of the draws. The mean and a callable see the same draws.
        level: coverage.

    Returns:
        (low, high), or None when fewer than 2 clusters are left or no draw gives a number.
    """
    numbers = np.asarray(values, dtype=np.float64)
    rows, cluster = _kept(numbers, clusters)
    count = int(cluster.max()) + 1 if len(rows) else 0
    if count < 2:
        return None
    draws = np.random.default_rng(seed).integers(0, count, size=(samples, count))
    if statistic is None:
        sums = np.bincount(cluster, weights=numbers[rows], minlength=count)
        sizes = np.bincount(cluster, minlength=count)
        estimates = sums[draws].sum(axis=1) / sizes[draws].sum(axis=1)
    else:
        members = [rows[cluster == index] for index in range(count)]
        estimates = _evaluate(statistic, (np.concatenate([members[index] for index in draw]) for draw in draws))
    estimates = estimates[~np.isnan(estimates)]
    if not len(estimates):
        return None
    low, high = np.quantile(estimates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_with_ci(
    values: Sequence[float | int | None], clusters: Sequence[int], samples: int
) -> tuple[float | None, list[float] | None]:
    """The mean of what is not None, and its interval as a list (JSON-ready); None where there is none."""
    kept = [value for value in values if value is not None]
    if not kept:
        return None, None
    interval = bootstrap_ci(values, clusters, samples=samples)
    return float(np.mean(kept)), list(interval) if interval else None


def geometric_mean_with_ci(
    values: Sequence[float | None], clusters: Sequence[int], samples: int
) -> tuple[float | None, list[float] | None]:
    """As mean_with_ci, of positive values on their logarithmic scale: exp(mean log)."""
    logs = [None if value is None else math.log(value) for value in values]
    mean, interval = mean_with_ci(logs, clusters, samples)
    return None if mean is None else math.exp(mean), interval and [math.exp(bound) for bound in interval]


def jackknife_ci(
    clusters: Sequence[int] | np.ndarray, statistic: Statistic, *, level: float = 0.95
) -> tuple[float, float] | None:
    """Normal interval around the statistic of all rows; standard error by leaving out one cluster at a time.

    For statistics that resampling with replacement biases, such as distinct-n: no row ever occurs twice. Not for
    quantiles, whose jackknife error is wrong.

    Args:
        clusters: the cluster (prompt) of each row.
        statistic: a function of row indices, as in `bootstrap_ci`.
        level: coverage.

    Returns:
        (low, high), or None with fewer than 2 clusters or where the statistic of all rows, or of all rows but one
        cluster, is undefined.
    """
    rows, cluster = _kept(np.zeros(len(clusters)), clusters)
    count = int(cluster.max()) + 1 if len(rows) else 0
    if count < 2:
        return None
    estimates = _evaluate(statistic, [rows, *(rows[cluster != left_out] for left_out in range(count))])
    if np.isnan(estimates).any():
        return None
    whole, partial = estimates[0], estimates[1:]
    error = np.sqrt((count - 1) / count * np.sum((partial - partial.mean()) ** 2))
    reach = NormalDist().inv_cdf((1 + level) / 2) * error
    return float(whole - reach), float(whole + reach)


def _kept(
    numbers: Float[np.ndarray, " all"], clusters: Sequence[int] | np.ndarray
) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " rows"]]:
    """The rows that carry a number, and their clusters renumbered 0, 1, 2, ..."""
    if len(numbers) != len(clusters):
        raise ValueError(f"{len(numbers)} values but {len(clusters)} clusters; every row needs one of each")
    rows = np.flatnonzero(~np.isnan(numbers))
    _, cluster = np.unique(np.asarray(clusters)[rows], return_inverse=True)
    return rows, cluster


def _evaluate(statistic: Statistic, selections: Iterable[Rows]) -> Float[np.ndarray, " estimates"]:
    return np.array([statistic(selection) for selection in selections], dtype=np.float64)
