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
    nfe = [float(np.mean([row["nfe"] for row in rows])) for rows in budgets.values()]
    weights = area_weights(list(budgets), nfe)
    if weights is None:
        return {"area": None, "area_ci": None}
    parts: dict[tuple[int, int], float] = {}
    for weight, rows in zip(weights, budgets.values(), strict=True):
        for row in rows:
            place = row["id"], row["seed"]
            parts[place] = parts.get(place, 0.0) + weight * row["quality"]
    mean, interval = mean_with_ci(list(parts.values()), [prompt for prompt, _ in parts], samples)
    return {"area": mean, "area_ci": interval}
