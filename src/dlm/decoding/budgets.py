"""Budgets, the numbers of steps that are compared: a decoder's settings for each (stage select)."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlm.config.params import Params
from dlm.errors import UserError
from dlm.files import read_json

Candidate = dict[str, Any]


def choose(candidates: Sequence[Candidate], grid: Sequence[dict[str, Any]], steps: int) -> Candidate:
    """The candidate with the highest mean quality over the checkpoints at `steps`; of equals the first.

    Args:
        candidates: DecoderBlock.candidates, at least one.
        grid: a row for each candidate, number of steps and checkpoint; may be empty where there is one candidate.
    """

    def mean(candidate: Candidate) -> float:
        qualities = [row["quality"] for row in grid if row["steps"] == steps and row["candidate"] == candidate]
        return sum(qualities) / len(qualities)

    return candidates[0] if len(candidates) == 1 else max(candidates, key=mean)


def chosen(build: Path, params: Params, decoder: str, steps: int) -> Candidate:
    """The decoder's candidate for `steps`; for a number that is no budget, that of the nearest one by ratio.

    Raises:
        UserError: no choice was made, or it was made among other candidates.
    """
    path, candidates = build / "selection" / f"{decoder}.json", params.block(decoder).candidates
    if len(candidates) == 1:
        return candidates[0]
    if not path.is_file():
        raise UserError(f"{path}: no such file; run the select stage (`dvc repro select@{decoder}`)")
    nearest = min(read_json(path), key=lambda choice: abs(math.log(choice["steps"] / steps)))
    if nearest["options"] not in candidates:
        raise UserError(f"{path}: chosen among other candidates; run the select stage (`dvc repro select@{decoder}`)")
    return dict(nearest["options"])
