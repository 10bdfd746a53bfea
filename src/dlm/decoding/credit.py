"""CreditDecoding (arXiv 2510.06133): tokens that earlier passes preferred, too, become more likely.

The formula and its numbers are those of dInfer, the code of the authors' group (CreditThresholdParallelDecoder).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dlm.decoding.history import Votes
from dlm.decoding.propose import Candidates, Propose, Source


def propose(strength: float, power: float, decay: float) -> Propose:
    """The best token of each position by the logits f + strength·log(1 + C); its probability under them ranks.

    C_v, the trace credit of token v, sums p^power·decay^age over the passes at which v was the likeliest token here
    and the position was open; p was its probability then, without credit, and age counts passes back from this one.
    """

    def run(source: Source) -> Candidates:
        assert source.past is not None
        votes = source.past.votes
        voted = torch.empty(source.count, dtype=torch.long, device=source.device)
        voted_log_p = torch.empty(source.count, device=source.device)
        tokens, log_p, confidence = (
            torch.empty_like(voted),
            torch.empty_like(voted_log_p),
            torch.empty_like(voted_log_p),
        )
        for piece in source.chunks(bytes_each=20):
            logits = source.logits(piece).float()
            voted_log_p[piece], voted[piece] = _best(logits)
            now = _with_the_newest(votes, piece, voted[piece], voted_log_p[piece])
            credit = trace_credit(now, power, decay, source.vocab)
            confidence[piece], tokens[piece] = _best(logits + strength * credit.log1p())
            log_p[piece] = torch.log_softmax(logits, dim=-1).gather(-1, tokens[piece][:, None])[:, 0]
        return Candidates(log_p, confidence, lambda _: (tokens, log_p), tokens, vote=(voted, voted_log_p))

    return run


def trace_credit(votes: Votes, power: float, decay: float, vocab: int) -> Float[Tensor, "n vocab"]:
    """C_v = Σ over the votes for v of p^power·decay^age."""
    weight = (power * votes.log_p).exp() * decay**votes.age
    weight = weight.masked_fill(votes.log_p.isneginf(), 0.0)
    return weight.new_zeros(len(weight), vocab).scatter_add_(1, votes.tokens, weight)


def _with_the_newest(votes: Votes, piece: Tensor, tokens: Int[Tensor, " m"], log_p: Float[Tensor, " m"]) -> Votes:
    """The votes of some positions, and that of this pass where it has not been counted."""
    counted = votes.counted[piece]
    return Votes(
        torch.cat([votes.tokens[piece], tokens[:, None]], dim=1),
        torch.cat([votes.log_p[piece], log_p.masked_fill(counted, -torch.inf)[:, None]], dim=1),
        torch.cat([votes.age[piece], torch.zeros_like(tokens)[:, None]], dim=1),
        torch.ones_like(counted),
    )


def _best(logits: Float[Tensor, "m vocab"]) -> tuple[Float[Tensor, " m"], Int[Tensor, " m"]]:
    """The largest log-probability of each position, and its token."""
    log_p, tokens = torch.log_softmax(logits, dim=-1).max(-1)
    return log_p, tokens
