"""Which of the open positions commit at a step, and which committed ones are masked again."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from dlm.decoding.propose import Candidates
from dlm.decoding.schedules import Rates


@dataclass(frozen=True)
class Open:
    """The open positions of a step, flat: n of them over `batch` rows.

    Attributes:
        row, position: where each one stands on the canvas.
        log_weight: the window's log s_i.
        quota_base: masked positions of each row that this phase may fill, open at this step or not.
        late: whether it ranks behind all others of its row (`ends_last`). A late position commits only where the
            schedule asks for more than the others.
    """

    batch: int
    row: Int[Tensor, " n"]
    position: Int[Tensor, " n"]
    log_weight: Float[Tensor, " n"]
    quota_base: Int[Tensor, " batch"]
    late: Bool[Tensor, " n"]


UNIT = 2.0**32
Uniform = Float64[Tensor, " n"]
Commit = Callable[[Open, Candidates, Rates, Uniform], Bool[Tensor, " n"]]
Revoke = Callable[[int, Int[Tensor, " n"], Float[Tensor, " n"], Rates], Float64[Tensor, " n"]]


def ends_last(row: Tensor, ends: Tensor, free: Tensor, rates: Rates, batch: int) -> Bool[Tensor, " n"]:
    """Which open positions are late with the option `eos: last`: those `free` ones that would take an end (`ends`).

    A row in which every free position would end has no late one, so that it goes on. Neither has the last step, which
    commits all that is left.
    """
    if rates.steps_left == 1:
        return torch.zeros_like(ends)
    others = torch.zeros(batch, dtype=torch.long, device=row.device).index_add_(0, row, (free & ~ends).long())
    return free & ends & (others[row] > 0)


def ancestral(open_: Open, candidates: Candidates, rates: Rates, uniform: Float64[Tensor, " n"]) -> Tensor:
    """Commit with probability w / (w + s), w_i = mass_i·s_i·s_norm·(t - s) (paper §4.1, §A.3; Eq. 4 when flat).

    s_norm = Σ_i Σ_V p_ij / Σ_i Σ_k p_ij·s_i over the masked i of a row: the mean rate is the schedule's, but confident
    positions, and those near context, go first. With the whole vocabulary and no window it is 1. Late ones weigh 0.
    """
    weight = (candidates.log_mass.double() + open_.log_weight.double()).exp().masked_fill(open_.late, 0.0)
    scaled = _rescaled(open_, weight) * rates.move
    return uniform * (scaled + rates.stay) < scaled


def tweedie(open_: Open, candidates: Candidates, rates: Rates, uniform: Float64[Tensor, " n"]) -> Tensor:
    """SEDD's Tweedie τ-leaping (arXiv 2310.16834) of absorbing states: commit with probability min(1, T·(t - s)/t).

    With δ = σ(t) - σ(s) it draws y with probability [e^(-δQ) s]_y · [e^(δQ)] (from y to [MASK]), s the scores at t.
    Here e^(δQ) keeps a token with e^-δ, else masks it; its inverse takes a token's score to e^δ·s_y and the mask's, 1,
    to 1 - (e^δ - 1)·Σ s. So token y gets (e^δ - 1)·s_y and the mask the rest: 1 - (e^δ - 1)·Σ s, or 0 if that is less.
    Scores are s_y = p̂_y / (e^σ(t) - 1), and (e^δ - 1) / (e^σ(t) - 1) = (t - s)/t for the log-linear σ, whatever its ε:
    token y gets p̂_y·(t - s)/t. T = Σ p̂ is the candidates' mass. Where T = 1, as of a softmax, that is Eq. 4.

    The last step is their denoising step: the mask is left out, so that everything commits. A window multiplies the
    tokens' share by s_i and leaves the mask's, as in `ancestral`; s_norm is 1 / the mean s_i of a row's masked i.
    """
    if not rates.stay:
        return ~open_.log_weight.isneginf()
    moving = candidates.log_mass.double().exp() * rates.move
    staying = (rates.move + rates.stay - moving).clamp(min=0)
    scaled = moving * _rescaled(open_, open_.log_weight.double().exp())
    return uniform * (scaled + staying) < scaled


def _rescaled(open_: Open, weight: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
    """Weights of mean 1 over the masked positions of each row, those that are not open counted as 0."""
    total = weight.new_zeros(open_.batch).index_add_(0, open_.row, weight)
    return weight * (open_.quota_base.double() / total)[open_.row]


def fixed_count(open_: Open, candidates: Candidates, rates: Rates, uniform: Float64[Tensor, " n"]) -> Tensor:
    """Commit ceil(masks left / steps left) positions a row, the highest confidence·s_i first (LLaDA's low confidence).

    Ties go to the left. Positions of weight 0 never commit.
    """
    return _rank(open_, candidates.log_confidence + open_.log_weight) < quota(open_, rates)


def tempered(temperature: float, *, log: bool) -> Commit:
    """Commit as many as `fixed_count`, drawn without replacement in proportion to s_i·exp(confidence / temperature).

    Dream's alg_temp; `log` for a confidence that is the logarithm of ours (-H).
    """

    def rule(open_: Open, candidates: Candidates, rates: Rates, uniform: Uniform) -> Tensor:
        confidence = candidates.log_confidence.double()
        score = (confidence if log else confidence.exp()) / temperature + open_.log_weight
        return _rank(open_, score - (-uniform.log()).log()) < quota(open_, rates)

    return rule


def at_random(open_: Open, candidates: Candidates, rates: Rates, uniform: Float64[Tensor, " n"]) -> Tensor:
    """Commit ceil(masks left / steps left) positions a row, chosen at random in proportion to s_i.

    LLaDA's random order. With one position a step it is first-hitting sampling (Zheng et al. 2024; bd3lms); the hitting
    times themselves do not matter to a network that does not see t.
    """
    # Gumbel keys: the largest n are a draw of n without replacement.
    keys = open_.log_weight.double() - (-uniform.log()).log()
    return _rank(open_, keys) < quota(open_, rates)


def threshold(confidence: float) -> Commit:
    """Commit every position with confidence·s_i of at least `confidence` (Fast-dLLM, arXiv 2505.22618).

    At least the schedule's number commits: one, where there are as many steps as tokens.
    """
    bar = log_bar(confidence)

    def rule(open_: Open, candidates: Candidates, rates: Rates, uniform: Uniform) -> Tensor:
        score = candidates.log_confidence + open_.log_weight
        return ((score >= bar) & ~open_.late) | (_rank(open_, score) < quota(open_, rates))

    return rule


def factor(bound: float) -> Commit:
    """Commit the n most confident of a row, n the last rank before (n + 1)(1 - c_(n)) < bound fails (Fast-dLLM).

    c is confidence·s_i. At least the schedule's number commits, as in `threshold`.
    """

    def rule(open_: Open, candidates: Candidates, rates: Rates, uniform: Uniform) -> Tensor:
        score = candidates.log_confidence + open_.log_weight
        rank = _rank(open_, score)
        fails = ((rank + 2) * (1 - score.double().exp()) >= bound) | open_.late
        first = torch.full((open_.batch,), len(rank), device=rank.device)
        first = first.scatter_reduce(0, open_.row, rank.masked_fill(~fails, len(rank)), "amin")
        return (rank < first[open_.row]) | (rank < quota(open_, rates))

    return rule


def and_the_surest(open_: Open, score: Tensor, passing: Bool[Tensor, " n"], rates: Rates) -> Bool[Tensor, " n"]:
    """The passing positions, and where they are fewer than the schedule's number the highest others up to it."""
    return passing | (_rank(open_, score.masked_fill(passing, math.inf)) < quota(open_, rates))


def entropy_bounded(gamma: float, most: int | None = None) -> Commit:
    """Commit the largest prefix of a row, by rising entropy, with Σ H_(j) - max H_(j) <= gamma (EB-Sampler).

    arXiv 2505.24857, Eq. 2: the sum without its largest term bounds what the positions tell about each other, which is
    lost where they commit together. H is -log of the confidence exp(-H); a window takes log s_i from it, so that a
    position it holds back counts as less certain. `most` positions at most, and at least the schedule's number, as in
    `threshold`; its first is one that gamma never refuses.
    """

    def rule(open_: Open, candidates: Candidates, rates: Rates, uniform: Uniform) -> Tensor:
        score = candidates.log_confidence + open_.log_weight
        rank, entropy = _rank(open_, score), (-score.double()).clamp(min=0)
        passes = _sum_before(open_, rank, entropy) <= gamma
        return _bounded(open_, rank, passes, most) | (rank < quota(open_, rates))

    return rule


def frechet(margin: float, most: int | None = None) -> Commit:
    """Commit the n most confident of a row, n the largest with L_n - U_n > margin (Fast-dLLM++, arXiv 2606.02955).

    L_n = 1 - Σ_{j<=n} (1 - c_(j)) is the Fréchet bound: the n tokens are right together at least so probably, whatever
    they depend on. U_n = 1 - c_(n) is the most that any other choice can have. c is confidence·s_i. With n equal
    confidences this is `factor` with the bound 1 - margin; otherwise more commit. `most` and the schedule's number as
    in `entropy_bounded`.
    """

    def rule(open_: Open, candidates: Candidates, rates: Rates, uniform: Uniform) -> Tensor:
        score = candidates.log_confidence + open_.log_weight
        rank, doubt = _rank(open_, score), (1 - score.double().exp()).clamp(min=0)
        passes = _sum_before(open_, rank, doubt) + 2 * doubt < 1 - margin
        return _bounded(open_, rank, passes, most) | (rank < quota(open_, rates))

    return rule


def left_first(decay: float) -> Commit:
    """Commit as many as `fixed_count`, ranked by confidence·s_i·exp(-decay·i) (PC-Sampler, arXiv 2508.13021, Alg. 1).

    There i counts from the prompt's end; counted from the canvas's first position the order is the same.
    """

    def rule(open_: Open, candidates: Candidates, rates: Rates, uniform: Uniform) -> Tensor:
        score = candidates.log_confidence.double() + open_.log_weight - decay * open_.position
        return _rank(open_, score) < quota(open_, rates)

    return rule


def prophet(open_: Open, candidates: Candidates, rates: Rates, uniform: Float64[Tensor, " n"]) -> Tensor:
    """As `fixed_count`; but all of a row whose mean gap between the two best tokens reaches rates.gap (Prophet).

    arXiv 2508.19982: the mean is over the answer's place, which its authors write into the prompt's format; here over
    the row's open positions. Late ones wait.
    """
    assert candidates.gap is not None
    row = open_.row
    total = torch.zeros_like(open_.quota_base).index_add_(0, row, _units(candidates.gap)).double() / UNIT
    count = torch.zeros_like(open_.quota_base).index_add_(0, row, torch.ones_like(row))
    ends = total >= rates.gap * count
    return (ends[row] & ~open_.late) | fixed_count(open_, candidates, rates, uniform)


def _bounded(open_: Open, rank: Int[Tensor, " n"], passes: Bool[Tensor, " n"], most: int | None) -> Bool[Tensor, " n"]:
    """What passes, late ones never, and of each row the first `most` alone."""
    passes = passes & ~open_.late
    return passes if most is None else passes & (rank < most)


def _sum_before(open_: Open, rank: Int[Tensor, " n"], terms: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
    """For each position the sum of the terms, at least 0, that rank before its own in its row."""
    starts = _starts(open_.batch, open_.row)[open_.row]
    units = torch.empty_like(rank)
    units[starts + rank] = _units(terms)
    before = units.cumsum(0) - units
    return (before[starts + rank] - before[starts]).double() / UNIT


def _units(terms: Tensor) -> Int[Tensor, " n"]:
    """Terms to add up as whole numbers of 1 / UNIT: nothing is rounded on the way, whatever other rows there are."""
    return (terms.double().clamp(max=2.0**12) * UNIT).long()


def log_bar(probability: float) -> float:
    """What log-probabilities are held against."""
    return math.log(probability) if probability else -math.inf


def quota(open_: Open, rates: Rates) -> Int[Tensor, " n"]:
    """How many the schedule commits of each position's row: ceil(masks left / steps left), or a share."""
    if rates.share is not None:
        return (open_.quota_base * rates.share).long()[open_.row]
    return (-(-open_.quota_base // rates.steps_left))[open_.row]


def _rank(open_: Open, score: Tensor) -> Int[Tensor, " n"]:
    """Each position's place in its row by falling score, from 0; ties go to the left, late ones behind all others."""
    return ranks_of(open_.batch, open_.row, score, open_.late)


def ranks_of(
    batch: int, row: Int[Tensor, " n"], score: Tensor, late: Bool[Tensor, " n"] | None = None
) -> Int[Tensor, " n"]:
    """Places in each row by falling score, from 0; ties as given, late ones behind all others."""
    # Stable sorts from the last key to the first: position (as given), score, row and late.
    order = torch.argsort(score, descending=True, stable=True)
    order = order[torch.argsort((row if late is None else 2 * row + late)[order], stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - _starts(batch, row)[row[order]]
    return rank


def _starts(batch: int, row: Int[Tensor, " n"]) -> Int[Tensor, " batch"]:
    """Where each row begins among the positions, row after row."""
    counts = row.new_zeros(batch).index_add_(0, row, torch.ones_like(row))
    return counts.cumsum(0) - counts


def uniformly(batch: int, row: Tensor, log_confidence: Tensor, rates: Rates) -> Tensor:
    """ReMDM: every committed token is masked again with probability σ_t."""
    return torch.full(row.shape, rates.revoke, dtype=torch.float64, device=row.device)


def by_confidence(batch: int, row: Tensor, log_confidence: Tensor, rates: Rates) -> Tensor:
    """ReMDM-conf: σ_t times the softmax, over a row's committed tokens, of minus their p when they were committed."""
    weight = (-log_confidence.double().exp()).exp()
    return rates.revoke * weight / weight.new_zeros(batch).index_add_(0, row, weight)[row]
