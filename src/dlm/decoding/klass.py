"""KLASS (arXiv 2511.05664): a position commits where it is sure, and where its distribution has come to rest."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dlm.decoding.commit import Commit, Open, Uniform, and_the_surest, log_bar
from dlm.decoding.propose import Candidates, Propose, Source, greedy
from dlm.decoding.schedules import Rates


def propose(confidence: float, kl_threshold: float, history: int) -> Propose:
    """The best token of each position, and where it is `stable`: KL(p_t || p_{t-1}) < kl_threshold at each of the last
    `history` passes, of distributions p over the whole vocabulary (the paper's KL score).

    A position needs history + 1 passes as a mask. The divergences are computed where the confidence suffices alone.
    """
    bar = log_bar(confidence)

    def run(source: Source) -> Candidates:
        candidates, past = greedy(source), source.past
        assert past is not None
        stable = (candidates.log_confidence > bar) & (past.seen > history)
        for piece in source.chunks(stable.nonzero()[:, 0], bytes_each=20):
            later = torch.log_softmax(source.logits(piece).float(), dim=-1)
            largest = later.new_zeros(len(piece))
            for ago in range(1, history + 1):
                earlier = torch.log_softmax(past.logits(ago, piece).float(), dim=-1)
                largest = torch.maximum(largest, kl_divergence(later, earlier))
                later = earlier
            stable[piece] = largest < kl_threshold
        return replace(candidates, stable=stable)

    return run


def kl_divergence(log_p: Float[Tensor, "m vocab"], log_q: Float[Tensor, "m vocab"]) -> Float[Tensor, " m"]:
    """KL(p || q) = Σ p·(log p - log q) in nats; tokens without probability under p count nothing."""
    terms = log_p.exp() * (log_p - log_q)
    return torch.where(log_p.isneginf(), 0.0, terms).sum(-1)


def commit(confidence: float) -> Commit:
    """Commit every stable position with confidence·s_i above `confidence`; where these are fewer than the schedule's
    number, the most confident others too."""
    bar = log_bar(confidence)

    def rule(open_: Open, candidates: Candidates, rates: Rates, uniform: Uniform) -> Bool[Tensor, " n"]:
        assert candidates.stable is not None
        score = candidates.log_confidence + open_.log_weight
        return and_the_surest(open_, score, (score > bar) & candidates.stable & ~open_.late, rates)

    return rule
