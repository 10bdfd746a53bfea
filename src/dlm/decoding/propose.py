"""Which token each open position would take.

Deciding to commit and choosing the token factor exactly: a joint draw over {k tokens, stay masked} is a draw to commit
with probability weight / (weight + stay), then a draw of the token. So a proposal is asked for scores at all open
positions, and for tokens only at those that commit.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

LogitsAt = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Candidates:
    """What the open positions (flat, n of them) would commit.

    Attributes:
        log_mass: log Σ_kept p, the share of probability that the kept candidates hold.
        log_confidence: log p of the best candidate.
        draw: (indices [m] into the n positions, uniforms [m]) -> tokens [m].
    """

    log_mass: Float[Tensor, " n"]
    log_confidence: Float[Tensor, " n"]
    draw: Callable[[Int[Tensor, " m"], Float64[Tensor, " m"]], Int[Tensor, " m"]]


Propose = Callable[[LogitsAt, int, torch.device], Candidates]


def categorical(logits_at: LogitsAt, count: int, device: torch.device) -> Candidates:
    """The whole vocabulary (paper Eq. 4). Scores are constant, so logits are asked for where a token is drawn only."""

    def draw(chosen: Tensor, uniform: Tensor) -> Tensor:
        return inverse_cdf(torch.softmax(logits_at(chosen).double(), dim=-1), uniform)

    zeros = torch.zeros(count, device=device)
    return Candidates(zeros, zeros, draw)


def top_k(k: int) -> Propose:
    """The k most probable candidates (paper §A.3)."""

    def propose(logits_at: LogitsAt, count: int, device: torch.device) -> Candidates:
        logits = logits_at(torch.arange(count, device=device))
        best, ids = logits.topk(min(k, logits.shape[-1]), dim=-1)
        log_probs = best - logits.logsumexp(-1, keepdim=True)

        def draw(chosen: Tensor, uniform: Tensor) -> Tensor:
            rank = inverse_cdf(torch.softmax(log_probs[chosen].double(), dim=-1), uniform)
            return ids[chosen, rank]

        return Candidates(log_probs.logsumexp(-1), log_probs[:, 0], draw)

    return propose


def greedy(logits_at: LogitsAt, count: int, device: torch.device) -> Candidates:
    """The single best candidate (temperature 0)."""
    logits = logits_at(torch.arange(count, device=device))
    best, ids = logits.max(-1)
    log_confidence = best - logits.logsumexp(-1)
    return Candidates(log_confidence, log_confidence, lambda chosen, uniform: ids[chosen])


def inverse_cdf(probs: Float64[Tensor, "m k"], uniform: Float64[Tensor, " m"]) -> Int[Tensor, " m"]:
    """The index whose cumulated probability first exceeds the uniform number; an index of probability 0 is never it."""
    cumulated = probs.cumsum(-1)
    target = uniform[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, target, right=True)[:, 0].clamp(max=probs.shape[-1] - 1)
