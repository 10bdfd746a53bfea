"""Which of the open positions commit at a step."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from dlm.decoding.propose import Candidates


@dataclass(frozen=True)
class Rates:
    """Where time stands in a phase: from t to s = t - dt (log-linear schedule, dt = 1 / steps)."""

    step: int
    steps: int

    @property
    def move(self) -> float:
        """t - s, in units of dt."""
        return 1.0

    @property
    def stay(self) -> float:
        """s, in units of dt."""
        return float(self.steps - self.step - 1)

    @property
    def steps_left(self) -> int:
        return self.steps - self.step


@dataclass(frozen=True)
class Open:
    """The open positions of a step, flat: n of them over `batch` rows.

    Attributes:
        row, position: where each one stands on the canvas.
        log_weight: the window's log s_i.
        quota_base: masked positions of each row that this phase may fill, open at this step or not.
    """

    batch: int
    row: Int[Tensor, " n"]
    position: Int[Tensor, " n"]
    log_weight: Float[Tensor, " n"]
    quota_base: Int[Tensor, " batch"]


Commit = Callable[[Open, Candidates, Rates, Float64[Tensor, " n"]], Bool[Tensor, " n"]]


def ancestral(open_: Open, candidates: Candidates, rates: Rates, uniform: Float64[Tensor, " n"]) -> Tensor:
    """Commit with probability w / (w + s), w_i = mass_i·s_i·s_norm·(t - s) (paper §4.1, §A.3; Eq. 4 when flat).

    s_norm = Σ_i Σ_V p_ij / Σ_i Σ_k p_ij·s_i over the masked i of a row: the mean rate is the schedule's, but confident
    positions, and those near context, go first. With the whole vocabulary and no window it is 1.
    """
    weight = (candidates.log_mass.double() + open_.log_weight.double()).exp()
    total = weight.new_zeros(open_.batch).index_add_(0, open_.row, weight)
    norm = open_.quota_base.double() / total
    scaled = weight * norm[open_.row] * rates.move
    return uniform * (scaled + rates.stay) < scaled


def fixed_count(open_: Open, candidates: Candidates, rates: Rates, uniform: Float64[Tensor, " n"]) -> Tensor:
    """Commit ceil(masks left / steps left) positions a row, the highest confidence·s_i first (LLaDA's low confidence).

    Ties go to the left. Positions of weight 0 never commit.
    """
    score = candidates.log_confidence + open_.log_weight
    quota = -(-open_.quota_base // rates.steps_left)
    # Stable sorts from the last key to the first: position (as given), score, row.
    order = torch.argsort(score, descending=True, stable=True)
    order = order[torch.argsort(open_.row[order], stable=True)]
    counts = torch.bincount(open_.row, minlength=open_.batch)
    starts = counts.cumsum(0) - counts
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - starts[open_.row[order]]
    return rank < quota[open_.row]
