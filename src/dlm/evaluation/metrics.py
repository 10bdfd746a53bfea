"""Degeneration, structure and speed of decoded responses: pure functions of token ids.

A response is its content tokens: everything before the first EOS, already cut by the caller. `None` stands for "not
defined here" and is left out of averages; it never stands for 0.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int

from dlm.errors import UserError

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def repetition(tokens: Sequence[int], n: int = 4) -> float | None:
    """Share of a response's n-grams that occurred before in it: 1 - unique / total (docs/method.md §6).

    Range [0, 1), 0 when nothing repeats. None when the response is shorter than n.
    """
    total = len(tokens) - n + 1
    if total < 1:
        return None
    return 1 - len(set(_ngrams(tokens, n))) / total


def distinct(responses: Sequence[Sequence[int]], n: int = 2) -> float | None:
    """Distinct-n over a set of responses: unique n-grams / all n-grams, counted over the whole set (docs/method.md §6).

    Range (0, 1], 1 when no n-gram occurs twice anywhere. N-grams do not cross responses. The value falls as the set
    grows, so only sets of the same size compare. None when no response has n tokens.
    """
    return distinct_share(numbered_ngrams(responses, n))


def numbered_ngrams(responses: Sequence[Sequence[int]], n: int) -> list[Int[np.ndarray, " _"]]:
    """The n-grams of each response, as numbers: the same one has the same number everywhere."""
    numbers: dict[tuple[int, ...], int] = {}
    return [
        np.array([numbers.setdefault(ngram, len(numbers)) for ngram in _ngrams(response, n)], dtype=np.int64)
        for response in responses
    ]


def distinct_share(numbered: Sequence[Int[np.ndarray, " _"]]) -> float | None:
    """Unique / all of numbered n-grams: `distinct` of some of the responses, counted once for all."""
    every = np.concatenate(numbered) if numbered else np.empty(0, dtype=np.int64)
    return np.count_nonzero(np.bincount(every)) / len(every) if len(every) else None


def prompt_repetition(response: Sequence[int], prompt: Sequence[int], ignore: frozenset[int]) -> float | None:
    """Share of a response's tokens that also occur in its prompt (docs/method.md §6, share of prompt tokens repeated).

    Tokens in `ignore` (the high-prior ones: function words, punctuation) are left out of the numerator and of the
    denominator, so that an answer in plain prose does not count as an echo.

    Range [0, 1]. None when no token of the response is left to count.
    """
    counted = [token for token in response if token not in ignore]
    if not counted:
        return None
    prompt_tokens = set(prompt)
    return sum(token in prompt_tokens for token in counted) / len(counted)


def high_prior_share(response: Sequence[int], high_prior: frozenset[int]) -> float | None:
    """Share of a response's tokens among the corpus's most frequent, 100 as a rule (docs/method.md §6).

    Range [0, 1]. None for an empty response.
    """
    if not response:
        return None
    return sum(token in high_prior for token in response) / len(response)


def mean_log_prior(response: Sequence[int], log_prior: Sequence[float] | np.ndarray) -> float | None:
    """Mean natural log of the corpus frequency of a response's tokens (docs/method.md §6; paper Fig. 12b).

    Args:
        response: content tokens.
        log_prior: log-frequency by token id. A caller who lets it hold -inf gets -inf for a response with such a token.

    Range (-inf, 0]; nearer 0 is more high-prior. None for an empty response.
    """
    if not response:
        return None
    return float(np.asarray(log_prior, dtype=np.float64)[np.asarray(response)].mean())


def inlier_bounds(perplexities: Sequence[float]) -> tuple[float, float]:
    """Mean ± 2 standard deviations (of the population) of the training responses' perplexities (docs/method.md §6).

    The lower bound may be negative when the spread is wide; then only the upper one excludes anything.

    Raises:
        UserError: no perplexity at all, or one that is not finite.
    """
    values = np.asarray(perplexities, dtype=np.float64)
    bad = int((~np.isfinite(values)).sum())
    if not len(values) or bad:
        raise UserError(
            f"inlier bounds need finite perplexities of training responses, got {len(values)} with {bad} not finite; "
            "the scoring model has diverged or the training responses are empty: train it anew or check the data"
        )
    mean, deviation = values.mean(), values.std()
    return float(mean - 2 * deviation), float(mean + 2 * deviation)


def log_inlier_bounds(perplexities: Sequence[float]) -> tuple[float, float]:
    """As inlier_bounds, of the perplexities' logarithms: exp(mean log ± 2 standard deviations), bounds of perplexity.

    A few enormous perplexities widen the bounds of inlier_bounds until everything lies within; these they hardly move.

    Raises:
        UserError: as inlier_bounds.
    """
    low, high = np.exp(inlier_bounds(np.log(perplexities).tolist()))
    return float(low), float(high)


def is_inlier(perplexity: float | None, bounds: tuple[float, float]) -> bool:
    """Whether a response reads like the training responses: its perplexity lies within `bounds` (docs/method.md §6).

    Perplexity alone rewards repetition, which falls out of the lower bound. None (an empty response) and NaN are
    outliers.
    """
    return perplexity is not None and bounds[0] <= perplexity <= bounds[1]


def last_number(text: str) -> str | None:
    """The last number of a text, without separators and trailing zeros, to compare GSM8K's answers; None for none."""
    numbers = NUMBER.findall(text)
    if not numbers:
        return None
    number = numbers[-1].replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number


def tokens_per_step(lengths: Sequence[int], nfe: Sequence[int], norm_length: float | None = None) -> float | None:
    """Tokens per forward pass, L*_norm / S* (docs/method.md §6; paper Table 5).

    Args:
        lengths: content tokens of each response.
        nfe: forward passes that each response took part in; S* is their mean.
        norm_length: L*_norm, the mean L* over the compared decoders, so that a longer answer does not look faster.
            None takes the mean of `lengths`.

    Range [0, inf); an autoregressive model has 1. None without responses or without a forward pass.
    """
    if not len(nfe) or not any(nfe) or (norm_length is None and not len(lengths)):
        return None
    length = float(np.mean(lengths)) if norm_length is None else norm_length
    return length / float(np.mean(nfe))


def _ngrams(tokens: Sequence[int], n: int) -> Iterator[tuple[int, ...]]:
    return zip(*(tokens[start:] for start in range(n)), strict=False)
