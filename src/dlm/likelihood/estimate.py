"""The bound on a masked diffusion LM's log-likelihood, and its own chain rule from left to right.

For an answer x of n tokens behind a prompt, with S a uniformly drawn set of l of its positions,

    -log p(x | prompt) <= E_l E_S [ n / l · Σ_{i in S} -log p(x_i | prompt, x outside S) ],   l uniform on 1 .. n

(docs/method.md §1 with the number of masks instead of their rate; LLaDA, arXiv 2502.09992, Eq. 14). It is the average
of the chain rule over all orders of the tokens, so a single token's is exact.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any, Literal

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from dlm.config.schema import require
from dlm.data.tokenizer import encode_answers
from dlm.decoding.arguments import listed, whole
from dlm.decoding.lm import DiffusionLM
from dlm.decoding.noise import row_keys, uniforms
from dlm.decoding.reading import check_known, read_ids
from dlm.errors import UserError

STRATA = 4  # of the number of masks in a replicate; each has a pair of draws
COUNT, ORDER = range(2)  # channels of the noise
Order = Literal["any", "left_to_right"]


@dataclass(frozen=True)
class Scores:
    """What `score` gives.

    Attributes:
        log_likelihood: of each answer, natural logarithm, not divided by its length. For order `any` the bound.
        standard_error: of the Monte Carlo; 0 where nothing was drawn.
        tokens: of each answer.
    """

    log_likelihood: Float64[Tensor, " batch"]
    standard_error: Float64[Tensor, " batch"]
    tokens: Int64[Tensor, " batch"]


@dataclass(frozen=True)
class Perplexity:
    """What `perplexity` gives: the bound in nats a token, its standard error, and the number of tokens."""

    nats: float
    standard_error: float
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats)


@dataclass(frozen=True)
class Draw:
    """One masked canvas of a row: `masked` are places in its answer, `scored` those of them that count."""

    row: int
    group: int
    masked: tuple[int, ...]
    scored: tuple[int, ...]
    weight: float


def score(
    lm: DiffusionLM,
    prompts: str | Sequence[Any],
    answers: str | Sequence[Any],
    *,
    order: Order = "any",
    samples: int = 64,
    end: bool = False,
    seed: int = 0,
    batch_size: int = 32,
) -> Scores:
    """Log-likelihood of every answer given its prompt.

    Args:
        prompts: as for `DiffusionLM.generate`: texts, or token ids (`lm.prompt` gives an instruction's).
        answers: one for each prompt, texts or token ids.
        order: `any` is the bound, by `samples` passes an answer: stratified over the number of masks, in antithetic
            pairs; every set of masks once where there are no more of them than samples. `left_to_right` has the model
            predict each token from what stands before it, all behind it masked: as many passes as tokens, no noise.
        samples: a multiple of 8, at least 16.
        end: whether an end of text behind each answer counts, too.
        seed: an answer's draws depend on it, the prompt and the answer alone.
        batch_size: canvases a pass.

    Raises:
        UserError: another number of answers than of prompts, an empty answer, ids that the model does not know or that
            hold a mask, a canvas that is longer than the model allows, a wrong number.
    """
    rows = checked_rows(lm, listed(prompts, "prompts"), listed(answers, "answers"), [lm.tokenizer.eos_token_id] * end)
    require(order in ("any", "left_to_right"), "order", "any or left_to_right", order)
    whole("samples", samples)
    require(samples >= 16 and samples % (2 * STRATA) == 0, "samples", "a multiple of 8 from 16", samples)
    keys = row_keys([[*prompt, -1, *answer] for prompt, answer in rows], whole("seed", seed))
    lengths = [len(answer) for _, answer in rows]
    draws = (
        draw
        for row, length in enumerate(lengths)
        for draw in (_chain(row, length) if order == "left_to_right" else _bound(row, length, samples, keys[row]))
    )
    groups: list[dict[int, float]] = [{} for _ in rows]
    while batch := list(islice(draws, whole("batch_size", batch_size, 1))):
        for draw, value in zip(batch, _log_probs(lm, rows, batch), strict=True):
            groups[draw.row][draw.group] = groups[draw.row].get(draw.group, 0.0) + draw.weight * value
    values = [torch.tensor(list(group.values()), dtype=torch.float64) for group in groups]
    errors = [v.std() / math.sqrt(len(v)) if len(v) > 1 else torch.zeros((), dtype=torch.float64) for v in values]
    return Scores(torch.stack([v.mean() for v in values]), torch.stack(errors), torch.tensor(lengths))


def perplexity(
    lm: DiffusionLM,
    texts: str | Sequence[Any],
    *,
    length: int | None = None,
    samples: int = 64,
    seed: int = 0,
    batch_size: int = 32,
) -> Perplexity:
    """The bound a token of running text, each token counted once.

    A text longer than `length` tokens (the model's longest canvas unless given) is read in windows: behind the first
    one each counts half a window, with as much before it as fits for its prompt.

    Raises:
        UserError: as `score`; a text without tokens; no length for a model without a limit.
    """
    prompts, answers, _ = _in_windows(lm, texts, length)
    scores = score(lm, prompts, answers, samples=samples, seed=seed, batch_size=batch_size)
    tokens = int(scores.tokens.sum())
    error = float(scores.standard_error.square().sum().sqrt())
    return Perplexity(-float(scores.log_likelihood.sum()) / tokens, error / tokens, tokens)


def rolling(
    lm: DiffusionLM,
    texts: str | Sequence[Any],
    *,
    length: int | None = None,
    order: Order = "any",
    samples: int = 64,
    seed: int = 0,
    batch_size: int = 32,
) -> Scores:
    """Log-likelihood of each text as a whole, read in windows as `perplexity` reads it.

    Raises:
        UserError: as `perplexity`.
    """
    prompts, answers, owners = _in_windows(lm, texts, length)
    parts = score(lm, prompts, answers, order=order, samples=samples, seed=seed, batch_size=batch_size)
    owner, count = torch.tensor(owners), owners[-1] + 1

    def total(values: Tensor) -> Tensor:
        return torch.zeros(count, dtype=values.dtype).index_add_(0, owner, values)

    variance = total(parts.standard_error.square())
    return Scores(total(parts.log_likelihood), variance.sqrt(), total(parts.tokens))


def _in_windows(
    lm: DiffusionLM, texts: str | Sequence[Any], length: int | None
) -> tuple[list[list[int]], list[list[int]], list[int]]:
    """Prompts and answers that count each token once, and the number of the text that each pair is of."""
    limit = lm.denoiser.max_length if length is None else whole("length", length, 2)
    if limit is None:
        raise UserError("length must be given: this model's canvases have no limit of their own")
    prompts, answers, owners = [], [], []
    for number, ids in enumerate(_all_ids(lm, listed(texts, "texts"), "text")):
        require(bool(ids), f"text {number}", "at least a token", "none")
        for start, end in _windows(len(ids), limit):
            prompts.append(ids[max(end - limit, 0) : start] if start else [])
            answers.append(ids[start:end])
            owners.append(number)
    return prompts, answers, owners


def _windows(tokens: int, limit: int) -> Iterator[tuple[int, int]]:
    """What each window counts: all of the first one, then half a window at a time."""
    start, end = 0, min(limit, tokens)
    while start < tokens:
        yield start, end
        start, end = end, min(end + limit // 2, tokens)


def _chain(row: int, length: int) -> Iterator[Draw]:
    for place in range(length):
        yield Draw(row, 0, tuple(range(place, length)), (place,), 1.0)


def _bound(row: int, length: int, samples: int, key: Tensor) -> Iterator[Draw]:
    """All sets of masks, or replicates of pairs that mask complementary ends of one random order."""
    if 2**length - 1 <= samples:
        for count in range(1, length + 1):
            sets = list(combinations(range(length), count))
            for masked in sets:
                yield Draw(row, 0, masked, masked, 1 / count / len(sets))
        return
    places = torch.arange(length)
    for pair in range(samples // 2):
        share = (pair % STRATA + float(uniforms(key, pair, COUNT, places[0]))) / STRATA
        ordered = uniforms(key.expand(length), pair, ORDER, places).argsort().tolist()
        count = 1 + int(share * length)
        for half in (tuple(ordered[:count]), tuple(ordered[count - 1 :])):
            yield Draw(row, pair // STRATA, half, half, length / len(half) / (2 * STRATA))


@torch.inference_mode()
def _log_probs(lm: DiffusionLM, rows: Sequence[tuple[list[int], list[int]]], batch: Sequence[Draw]) -> list[float]:
    """Of each canvas the sum over its scored tokens."""
    device, mask_id = lm.denoiser.device, lm.denoiser.mask_id
    canvases, owners, places, targets = [], [], [], []
    for b, draw in enumerate(batch):
        prompt, answer = rows[draw.row]
        canvas = [*prompt, *answer]
        for place in draw.masked:
            canvas[len(prompt) + place] = mask_id
        canvases.append(canvas)
        owners += [b] * len(draw.scored)
        places += [len(prompt) + place for place in draw.scored]
        targets += [answer[place] for place in draw.scored]
    logits = lm.denoiser.logits(hidden_of(lm, canvases)[owners, places]).float()
    chosen = logits.log_softmax(-1).gather(1, torch.tensor(targets, device=device)[:, None])[:, 0].double().cpu()
    return torch.zeros(len(batch), dtype=torch.float64).index_add_(0, torch.tensor(owners), chosen).tolist()


def hidden_of(lm: DiffusionLM, canvases: Sequence[Sequence[int]]) -> Float[Tensor, "batch length width"]:
    """Final hidden states of canvases, padded to the longest, in one pass."""
    device = lm.denoiser.device
    padded = torch.full((len(canvases), max(map(len, canvases))), lm.tokenizer.eos_token_id)
    not_padding = torch.zeros(padded.shape, dtype=torch.bool)
    for b, canvas in enumerate(canvases):
        padded[b, : len(canvas)] = torch.tensor(canvas)
        not_padding[b, : len(canvas)] = True
    return lm.denoiser.hidden(padded.to(device), None if not_padding.all() else not_padding.to(device))


def checked_rows(
    lm: DiffusionLM, prompts: list[Any], answers: list[Any], end: Sequence[int] = ()
) -> list[tuple[list[int], list[int]]]:
    """Prompts and answers as checked ids; a text behind a text is read as it stands there."""
    if len(prompts) != len(answers):
        raise UserError(f"{len(prompts)} prompts and {len(answers)} answers: give an answer for each prompt")
    if not prompts:
        raise UserError("no prompts were given")
    texts = [n for n, pair in enumerate(zip(prompts, answers, strict=True)) if all(isinstance(t, str) for t in pair)]
    read = encode_answers(lm.tokenizer, [prompts[n] for n in texts], [answers[n] for n in texts]) if texts else []
    behind = dict(zip(texts, read, strict=True))
    answer_ids = [behind.get(n, answer) for n, answer in enumerate(answers)]
    checked = _all_ids(lm, answer_ids, "answer", after=True)
    for number, answer in enumerate(checked):
        require(bool(answer), f"answer {number}", "at least a token", "none")
    rows = [(prompt, [*answer, *end]) for prompt, answer in zip(_all_ids(lm, prompts, "prompt"), checked, strict=True)]
    limit = lm.denoiser.max_length
    for number, (prompt, answer) in enumerate(rows):
        fits = limit is None or len(prompt) + len(answer) <= limit
        require(fits, f"prompt and answer {number}", f"at most {limit} tokens", len(prompt) + len(answer))
    return rows


def _all_ids(lm: DiffusionLM, given: list[Any], what: str, *, after: bool = False) -> list[list[int]]:
    rows = [read_ids(lm.tokenizer, one, f"{what} {number}", after=after) for number, one in enumerate(given)]
    check_known(rows, what, lm.denoiser, unfit={lm.denoiser.mask_id, *lm.padding})
    return rows
