"""Quality over forward passes as one number: the area under the curve through a decoder's budgets."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from dlm.evaluation.bootstrap import mean_with_ci


def area_weights(steps: Sequence[int], nfe: Sequence[float]) -> list[float] | None:
    """How much each budget's quality counts in the area, summing to 1.

    The curve goes straight from point to point over the logarithm of the forward passes and stays level outside them:
    who needs fewer passes may stop. Its mean from steps[0] to steps[-1] passes is the area.

    Args:
        steps: the budgets S, rising.
        nfe: forward passes at each.

    Returns:
        None with fewer than two budgets, or where more steps took no more passes.
    """
    if len(steps) < 2 or any(after <= before for before, after in pairwise(nfe)):
        return None
    points = np.log(nfe)
    start, end = np.log(steps[0]), np.log(steps[-1])
    inner = points[(points > start) & (points < end)]
    places = np.concatenate([[start], inner, [end]])
    # The area of a curve that is 1 at one point and 0 at the others.
    return [
        float(np.trapezoid(np.interp(places, points, one), places) / (end - start)) for one in np.identity(len(points))
    ]


def quality_area(budgets: Mapping[int, Sequence[dict[str, Any]]], samples: int) -> dict[str, Any]:
    """{"area", "area_ci"} of a cell: bootstrap over prompts, whose budgets stay together; Nones without a curve.

    Args:
        budgets: steps, rising -> rows of score_answers, of the same prompts and seeds.
        samples: of the bootstrap.
    """
    weights = area_weights(list(budgets), [_passes(rows) for rows in budgets.values()])
    if weights is None:
        return {"area": None, "area_ci": None}
    mean, interval = mean_of_areas(_of_answers(weights, list(budgets.values())), samples)
    return {"area": mean, "area_ci": interval}


def answer_areas(points: Sequence[Sequence[dict[str, Any]]], passes: Sequence[int]) -> dict[tuple[int, int], float]:
    """(prompt id, seed) -> what it adds to the area of a curve from passes[0] to passes[1] forward passes.

    The curve goes through settings of any kind, such as thresholds, by their mean passes; of settings that take
    equally many the first counts.

    Args:
        points: for each setting the rows of score_answers, of the same prompts and seeds.
    """
    curve = {_passes(rows): rows for rows in reversed(points)}
    nfe = sorted(curve)
    weights = area_weights(passes, nfe)
    assert weights is not None  # no two are alike, and they rise
    return _of_answers(weights, [curve[place] for place in nfe])


def mean_of_areas(areas: Mapping[tuple[int, int], float], samples: int) -> tuple[float | None, list[float] | None]:
    """The mean and its interval, bootstrap over prompts. Also of differences between the areas of two curves."""
    return mean_with_ci(list(areas.values()), [prompt for prompt, _ in areas], samples)


def _passes(rows: Sequence[dict[str, Any]]) -> float:
    return float(np.mean([row["nfe"] for row in rows]))


def _of_answers(weights: Sequence[float], points: Sequence[Sequence[dict[str, Any]]]) -> dict[tuple[int, int], float]:
    parts: dict[tuple[int, int], float] = {}
    for weight, rows in zip(weights, points, strict=True):
        for row in rows:
            place = row["id"], row["seed"]
            parts[place] = parts.get(place, 0.0) + weight * row["quality"]
    return parts
