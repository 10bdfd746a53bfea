"""What a model prefers, and what decoders write, by distance from the prompt (paper Figs. 2, 3 and 11).

Every token is of one kind: `end`, an end-of-text; `high_prior`, one of the corpus's most frequent; `repetition`, any
other that occurs in the context; `other`, the rest, which alone can say anything new.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from dlm.decoding.lm import DiffusionLM
from dlm.evaluation.bootstrap import mean_with_ci

KINDS = ("end", "high_prior", "repetition", "other")
LEAST_SHARE = 0.1  # of the responses; a mean over fewer is mostly noise


def token_kinds(
    vocab: int, context: Sequence[int], high_prior: frozenset[int], ends: Sequence[int]
) -> Int[np.ndarray, " vocab"]:
    """The kind of every token after a context, as its place in KINDS; `ends` are EOS and what else ends an answer."""
    kinds = np.full(vocab, KINDS.index("other"))
    kinds[list(context)] = KINDS.index("repetition")
    kinds[list(high_prior)] = KINDS.index("high_prior")
    kinds[list(ends)] = KINDS.index("end")
    return kinds


@torch.no_grad()
def first_probabilities(lm: DiffusionLM, prompt: list[int], gen_length: int) -> Float[np.ndarray, "gen_length vocab"]:
    """The model's probabilities at every response position with all of them masked, as at the first step."""
    canvas = torch.tensor([prompt + [lm.denoiser.mask_id] * gen_length], device=lm.denoiser.device)
    hidden = lm.denoiser.hidden(canvas, None)[0, len(prompt) :]
    probabilities: np.ndarray = torch.softmax(lm.denoiser.logits(hidden).double(), dim=-1).cpu().numpy()
    return probabilities


def masses(
    probabilities: Float[np.ndarray, "gen_length vocab"], kinds: Int[np.ndarray, " vocab"]
) -> Float[np.ndarray, "gen_length kinds"]:
    """The probability that each kind holds, position by position."""
    return np.stack([probabilities[:, kinds == kind].sum(axis=1) for kind in range(len(KINDS))], axis=1)


def candidates(
    probabilities: Float[np.ndarray, "gen_length vocab"], count: int
) -> Int[np.ndarray, "gen_length candidates"]:
    """The `count` most probable tokens of every position, the best first."""
    return np.argsort(-probabilities, axis=1, kind="stable")[:, :count]


def written_kinds(tokens: Sequence[int], prompt: Sequence[int], high_prior: frozenset[int], eos_id: int) -> list[int]:
    """The kind of each token of a response, its context the prompt and what stands before it."""
    seen, kinds = set(prompt), []
    for token in tokens:
        if token == eos_id:
            kinds.append(KINDS.index("end"))
        elif token in high_prior:
            kinds.append(KINDS.index("high_prior"))
        else:
            kinds.append(KINDS.index("repetition" if token in seen else "other"))
        seen.add(token)
    return kinds


def binned(
    rows: Sequence[Float[np.ndarray, "_ kinds"]], clusters: Sequence[int], width: int, length: int, samples: int
) -> dict[str, list[dict[str, Any]]]:
    """Means by kind over bins of `width` positions, with 95% intervals over clusters.

    Args:
        rows: for each response, the share of each kind at each of its positions (shorter ones end earlier).
        clusters: the prompt of each response.
        length: positions in all; the last bin may be narrower.

    Returns:
        kind -> [{"value", "ci"}, ...] by bin, None where less than a tenth of the responses reach it.
    """
    points: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for start in range(0, length, width):
        means = [row[start : start + width].mean(axis=0) if len(row) > start else None for row in rows]
        if sum(mean is not None for mean in means) < LEAST_SHARE * len(rows):
            means = [None] * len(rows)
        for place, kind in enumerate(KINDS):
            values = [None if mean is None else float(mean[place]) for mean in means]
            value, ci = mean_with_ci(values, clusters, samples)
            points[kind].append({"value": value, "ci": ci})
    return points


def one_hot(kinds: Sequence[int]) -> Float[np.ndarray, "length kinds"]:
    return np.eye(len(KINDS))[list(kinds)] if len(kinds) else np.zeros((0, len(KINDS)))
