"""Which token each open position would take.

A draw over {k tokens, stay masked} is the same as two draws: whether to commit, with probability
weight / (weight + stay), and then which token. So a proposal first gives scores for all open positions. Tokens are
drawn afterwards; a draw from the whole vocabulary is made only where a position commits.

The [positions, vocabulary] tensor is made for some positions at a time (`chunks`). All at once it would take nearly
all of the memory with a vocabulary of 50,000.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from dlm.decoding.history import Past
from dlm.decoding.options import Confidence

try:
    from dlm.decoding import kernels
except ImportError:  # no Triton: torch for CPUs comes without it
    kernels = None  # type: ignore[assignment]

Indices = Int[Tensor, " m"]
Draw = Callable[[Bool[Tensor, " n"]], tuple[Int[Tensor, " n"], Float[Tensor, " n"]]]
BLOCK = 64  # neighbouring vocabulary entries that `largest` looks at together
CHUNK = {"cpu": 2**25, "cuda": 2**27}  # bytes of a [positions, vocabulary] tensor


@dataclass(frozen=True)
class Source:
    """The open positions of a step, flat: `count` of them.

    Attributes:
        logits: indices [m] into them -> logits [m, vocab] in the type of the head; the caller may overwrite them.
        uniforms: indices [m] -> the numbers in (0, 1) that the positions' token draws use, float64 [m].
        past: what earlier passes left, for a rule that looks back (Rule.lookback); None for any other.
        score_offset: what the logits exceed log-scores by, of a model trained by score entropy; None for any other.
    """

    count: int
    vocab: int
    device: torch.device
    logits: Callable[[Indices], Float[Tensor, "m vocab"]]
    uniforms: Callable[[Indices], Float64[Tensor, " m"]]
    past: Past | None = None
    score_offset: float | None = None

    def chunks(self, indices: Indices | None = None, bytes_each: int = 4) -> Iterator[Indices]:
        """`indices` (all positions unless given) in pieces whose logits fit CHUNK, at `bytes_each` a logit."""
        every = torch.arange(self.count, device=self.device) if indices is None else indices
        size = max(CHUNK.get(self.device.type, CHUNK["cpu"]) // bytes_each // self.vocab, 1)
        return iter(every.split(size)) if len(every) else iter(())


@dataclass(frozen=True)
class Candidates:
    """What the open positions (flat, n of them) would commit.

    Attributes:
        log_mass: log Σ_kept p, the share of probability that the kept candidates hold; of scores log Σ p̂ (`scores`).
        log_confidence: log of what ranks the positions, in (0, 1]: the proposed token's probability unless a rule says
            otherwise.
        draw: True where a token is needed [n] -> (tokens [n], their log-probabilities [n]); other entries mean nothing.
        best: the token that each position would take, the likeliest of several; None where only a draw tells.
        stable: whether its distribution has come to rest (KLASS); None where no rule asks.
        vote: the likeliest token of each position by the model alone, and its log-probability, for the history
            (CreditDecoding); None where no rule asks.
        gap: by how many nats the best token is ahead of the second, for rules that ask.
    """

    log_mass: Float[Tensor, " n"]
    log_confidence: Float[Tensor, " n"]
    draw: Draw
    best: Int[Tensor, " n"] | None = None
    stable: Bool[Tensor, " n"] | None = None
    vote: tuple[Int[Tensor, " n"], Float[Tensor, " n"]] | None = None
    gap: Float[Tensor, " n"] | None = None


Propose = Callable[[Source], Candidates]


def categorical(source: Source) -> Candidates:
    """The whole vocabulary (paper Eq. 4). Scores are constant, so logits are computed only where a token is drawn."""

    def draw(chosen: Tensor) -> tuple[Tensor, Tensor]:
        tokens = torch.zeros(source.count, dtype=torch.long, device=source.device)
        log_p = torch.zeros(source.count, device=source.device)
        for piece in source.chunks(chosen.nonzero()[:, 0], bytes_each=24):
            tokens[piece], log_p[piece] = _sampled(source, piece, 1.0)
        return tokens, log_p

    zeros = torch.zeros(source.count, device=source.device)
    return Candidates(zeros, zeros, draw)


def scores(offset: float | None) -> Propose:
    """The whole vocabulary by SEDD's scores: mass Σ_y p̂_y, log p̂ = logits - offset, where a softmax's would be 1.

    Args:
        offset: None for the model's own; without one there the logits mean a softmax, and this is `categorical`.
    """

    def propose(source: Source) -> Candidates:
        candidates = categorical(source)
        taken = source.score_offset if offset is None else offset
        if taken is None:
            return candidates
        log_mass = torch.empty_like(candidates.log_mass)
        for piece in source.chunks(bytes_each=8):
            log_mass[piece] = torch.logsumexp(source.logits(piece).float(), dim=-1) - taken
        return replace(candidates, log_mass=log_mass)

    return propose


def top_k(k: int) -> Propose:
    """The k most probable candidates (paper §A.3)."""

    def propose(source: Source) -> Candidates:
        log_probs, ids = _most_probable(source, min(k, source.vocab))

        def draw(_: Tensor) -> tuple[Tensor, Tensor]:
            every = torch.arange(source.count, device=source.device)
            rank = inverse_cdf(torch.softmax(log_probs.double(), dim=-1), source.uniforms(every))[:, None]
            return ids.gather(-1, rank)[:, 0], log_probs.gather(-1, rank)[:, 0]

        return Candidates(log_probs.logsumexp(-1), log_probs[:, 0], draw, ids[:, 0])

    return propose


def single(confidence: Confidence, temperature: float, tempered: bool = False) -> Propose:
    """One token a position: the best, or at a temperature T > 0 one drawn from p^(1/T) (LLaDA's Gumbel draw).

    What ranks (LLaDA; Dream), each as the log of a number in (0, 1]: `probability`, the token's own p; `margin`, the
    best p minus the second; `entropy`, exp(-H) of the position; `random` leaves the ranking to the commit rule.
    With `tempered` (and a temperature) they are of p^(1/T) in place of p, as in Dream.
    """

    def propose(source: Source) -> Candidates:
        if not temperature and confidence != "entropy":
            best, ids = _most_probable(source, 2 if confidence == "margin" else 1)
            tokens, log_p = ids[:, 0], best[:, 0]
            rank = log_p if confidence != "margin" else (best[:, 0].exp() - best[:, 1].exp()).log()
        else:
            tokens, log_p, rank = _over_vocabulary(source, confidence, temperature, tempered and temperature > 0)
        if confidence == "random":
            rank = torch.zeros_like(log_p)
        return Candidates(log_p, rank, lambda _: (tokens, log_p), tokens)

    return propose


def _over_vocabulary(
    source: Source, confidence: Confidence, temperature: float, tempered: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, their log p and their rank scores, for rules that need the whole distribution."""
    tokens = torch.empty(source.count, dtype=torch.long, device=source.device)
    log_p = torch.empty(source.count, device=source.device)
    rank = torch.empty(source.count, device=source.device)
    for piece in source.chunks(bytes_each=24 if temperature else 8):
        logits = source.logits(piece).float()
        ranking = logits / temperature if tempered else logits
        if confidence == "margin":
            two = torch.softmax(ranking, dim=-1).topk(2, dim=-1).values
            rank[piece] = (two[:, 0] - two[:, 1]).log()
        elif confidence == "entropy":
            log_probs = torch.log_softmax(ranking, dim=-1)
            rank[piece] = (log_probs.exp() * log_probs).nan_to_num().sum(-1)
        if temperature:
            tokens[piece], log_p[piece] = _sampled(source, piece, temperature, logits)
        else:
            best, token = _best(logits, 1)
            tokens[piece], log_p[piece] = token[:, 0], best[:, 0]
        if confidence == "probability":
            rank[piece] = log_p[piece]
            if tempered:
                rank[piece] = torch.log_softmax(ranking, dim=-1).gather(-1, tokens[piece][:, None])[:, 0]
    return tokens, log_p, rank


def _most_probable(source: Source, k: int) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Log-probabilities and tokens of the k most probable candidates of every position, falling."""
    log_probs = torch.empty(source.count, k, device=source.device)
    ids = torch.empty(source.count, k, dtype=torch.long, device=source.device)
    fused = kernels is not None and source.device.type == "cuda" and k <= kernels.MOST
    for piece in source.chunks(bytes_each=2 if fused else 4):
        logits = source.logits(piece)
        log_probs[piece], ids[piece] = _best_fused(logits, k) if fused else _best(logits.float(), k)
        del logits  # else two pieces are in memory at once
    return log_probs, ids


def _best_fused(logits: Float[Tensor, "m vocab"], k: int) -> tuple[Float[Tensor, "m k"], Int[Tensor, "m k"]]:
    best, tokens, total = kernels.top_k_and_total(logits, k)
    return best - total, tokens


def _best(logits: Float[Tensor, "m vocab"], k: int) -> tuple[Float[Tensor, "m k"], Int[Tensor, "m k"]]:
    """The k largest log-probabilities, falling, and their tokens. Overwrites the logits, which are float32."""
    best, tokens = logits.max(-1, keepdim=True) if k == 1 else largest(logits, k)
    return best - _log_total(logits, best[:, :1]), tokens


def largest(logits: Float[Tensor, "m vocab"], k: int) -> tuple[Float[Tensor, "m k"], Int[Tensor, "m k"]]:
    """`topk`, faster over a large vocabulary: the k largest lie in the k blocks with the largest maxima."""
    vocab = logits.shape[1]
    if vocab < 8 * k * BLOCK:
        return logits.topk(k, dim=-1)
    whole = vocab // BLOCK * BLOCK
    blocks = logits[:, :whole].unflatten(1, (-1, BLOCK))
    first = blocks.amax(-1).topk(k, dim=-1).indices * BLOCK
    inside = first[:, :, None] + torch.arange(BLOCK, device=logits.device)
    tail = torch.arange(whole, vocab, device=logits.device).expand(len(logits), -1)
    ids = torch.cat([inside.flatten(1), tail], dim=1)
    best, at = logits.gather(1, ids).topk(k, dim=-1)
    return best, ids.gather(1, at)


def _log_total(logits: Float[Tensor, "m vocab"], best: Float[Tensor, "m 1"]) -> Float[Tensor, "m 1"]:
    """log Σ exp over the vocabulary. Overwrites the logits, to save memory."""
    return best + logits.sub_(best).exp_().sum(-1, keepdim=True).log()


greedy = single("probability", 0.0)


def ahead(source: Source) -> Candidates:
    """The best token, ranked by its probability, and how far it is ahead: the distance of the two best logits."""
    best, ids = _most_probable(source, 2)
    tokens, log_p = ids[:, 0], best[:, 0]
    return Candidates(log_p, log_p, lambda _: (tokens, log_p), tokens, gap=log_p - best[:, 1])


def calibrated(background: Float[Tensor, " vocab"] | None, clip: float) -> Propose:
    """The best token v, ranked by min(clip, -p(v)·log f(v)) / clip, f its frequency in a corpus (PC-Sampler).

    arXiv 2508.13021, Alg. 1 (its code has the minus that the printed line lacks). Frequent words, sure as they are, say
    little, and rank lower than in `greedy`, which this is without a background.

    Args:
        background: of read_background.
    """
    tables: dict[torch.device, Tensor] = {}  # copied to each device once

    def propose(source: Source) -> Candidates:
        plain = greedy(source)
        if background is None or plain.best is None:
            return plain
        table = tables.setdefault(source.device, background.to(source.device))
        told = -table[plain.best.clamp(max=len(table) - 1)]
        score = (plain.log_confidence.exp() * told / clip).clamp(max=1).log()
        return replace(plain, log_confidence=score)

    return propose


def _sampled(source: Source, piece: Tensor, temperature: float, logits: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A draw from p^(1/temperature) at some positions, and its log p, computed in float64."""
    logits = (source.logits(piece) if logits is None else logits).double()
    tokens = inverse_cdf(torch.softmax(logits / temperature, dim=-1), source.uniforms(piece))
    log_p = logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
    return tokens, log_p.float()


def inverse_cdf(probs: Float64[Tensor, "m k"], uniform: Float64[Tensor, " m"]) -> Int[Tensor, " m"]:
    """The index whose cumulated probability first exceeds the uniform number; an index of probability 0 is never it."""
    cumulated = probs.cumsum(-1)
    target = uniform[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, target, right=True)[:, 0].clamp(max=probs.shape[-1] - 1)
