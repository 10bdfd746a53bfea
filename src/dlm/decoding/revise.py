"""Rules that decide at once which masks take their token and which tokens go back: WINO and P2."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from dlm.decoding.commit import Open, Uniform, log_bar, quota, ranks_of
from dlm.decoding.propose import Candidates, Source
from dlm.decoding.schedules import Rates


@dataclass(frozen=True)
class Standing:
    """The committed positions of a step that may be masked again, flat: m of them, of rows with open positions.

    Attributes:
        log_p: log-probability of the token that stands there, by this pass.
        recent: how many tokens of each row the step before committed and still stand.
        uniform: a number in (0, 1) for each position.
    """

    row: Int[Tensor, " m"]
    position: Int[Tensor, " m"]
    log_p: Float[Tensor, " m"]
    recent: Int[Tensor, " batch"]
    uniform: Float64[Tensor, " m"]


Revised = tuple[Bool[Tensor, " n"], Bool[Tensor, " m"]]  # which open positions commit, which standing ones are masked
Revise = Callable[[Open, Candidates, Standing, Rates, Uniform], Revised]


def wino(threshold: float, verify_threshold: float, max_share: float, max_per_step: int) -> Revise:
    """Wide in, narrow out (arXiv 2507.18578): commit what is above a low bar, take back what falls below a high one.

    Of m masks those with confidence·s_i above `threshold` commit, at most min(max(⌊max_share·m⌋, 5), max_per_step) of
    them, the surest, and at least the schedule's number. Where more than one commits, the tokens whose probability is
    below `verify_threshold` are masked again, the least probable first: fewer than the step before committed. The last
    step takes nothing back.
    """
    bar, strict = log_bar(threshold), log_bar(verify_threshold)

    def rule(open_: Open, candidates: Candidates, standing: Standing, rates: Rates, uniform: Uniform) -> Revised:
        score = candidates.log_confidence + open_.log_weight
        most = (open_.quota_base.double() * max_share).long().clamp(min=5).clamp(max=max_per_step)
        rank = ranks_of(open_.batch, open_.row, score, open_.late)
        wide = (score > bar) & ~open_.late & (rank < most[open_.row])
        chosen = wide | (rank < quota(open_, rates))
        if rates.steps_left == 1:
            return chosen, torch.zeros_like(standing.row, dtype=torch.bool)
        committed = torch.zeros_like(open_.quota_base).index_add_(0, open_.row, chosen.long())
        doubt = ranks_of(open_.batch, standing.row, -standing.log_p)
        fewer = doubt < (standing.recent - 1)[standing.row]
        return chosen, (standing.log_p < strict) & fewer & (committed > 1)[standing.row]

    return rule


def p2(eta: float, *, at_random: bool) -> Revise:
    """Path planning (arXiv 2502.03540): of a row's N positions, masked or not, the ⌊N·s⌋ of lowest score are masked.

    s is the time after the step (`schedules.overall`: 1 - κ). A mask scores log p of its candidate, plus log s_i; a
    token η times its own log p, so that above η = 1 tokens go back more easily and at 0 never. `at_random` scores both
    by log u in place of log p, u uniform.
    """

    def rule(open_: Open, candidates: Candidates, standing: Standing, rates: Rates, uniform: Uniform) -> Revised:
        new = uniform.log() if at_random else candidates.log_confidence.double()
        old = standing.uniform.log() if at_random else standing.log_p.double()
        score = torch.cat([new + open_.log_weight, eta * old if eta else torch.zeros_like(old)])
        row = torch.cat([open_.row, standing.row])
        late = torch.cat([open_.late, torch.zeros_like(standing.row, dtype=torch.bool)])
        total = open_.quota_base.index_add(0, standing.row, torch.ones_like(standing.row))
        masks = (total.double() * rates.stay / (rates.move + rates.stay)).long()
        kept = ranks_of(open_.batch, row, score, late) < (total - masks)[row]
        return kept[: len(open_.row)], ~kept[len(open_.row) :]

    return rule


def log_p_of(source: Source, tokens: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Log-probabilities of given tokens."""
    found = torch.empty(source.count, device=source.device)
    for piece in source.chunks(bytes_each=8):
        log_p = torch.log_softmax(source.logits(piece).float(), dim=-1)
        found[piece] = log_p.gather(-1, tokens[piece][:, None])[:, 0]
    return found
