"""Rule-made rejected samples for R2FT (paper §A.1.1, Algorithm 1; docs/method.md §3): pure functions of a row.

A negative keeps a part of x0 unmasked, the context, and repeats tokens of its edge where the model would write.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

Ids = Int[np.ndarray, " length"]
Mask = Bool[np.ndarray, " length"]


@dataclass(frozen=True)
class NegativeRule:
    """The numbers of Algorithm 1 (docs/method.md §3).

    Attributes:
        g_max: longest repetition unit.
        z_min, z_max: bounds of the rejected span.
        eos_probability: chance of one EOS inside the span, so that stopping in the middle is rejected too.
        at_least_answer: stretch the span to the end of the answer.
        high_prior_share: chance that the unit is drawn from the corpus's most frequent tokens instead (ours).
        prior_ids, prior_p: those tokens and their probabilities.
        eos_id: the end-of-text id.
    """

    g_max: int
    z_min: int
    z_max: int
    eos_probability: float
    at_least_answer: bool
    high_prior_share: float
    prior_ids: Ids
    prior_p: np.ndarray
    eos_id: int


@dataclass(frozen=True)
class Negative:
    """One rejected sample over a canvas of `length` positions.

    Attributes:
        c, g, z: where the first rejected span starts, length of the repetition unit, length of that span.
        kind: `repetition` or `high_prior`, what the unit was made of.
        context_mask: the positions of x0 that are not masked in x_t.
        rejected_ids: y_l on the rejected positions, x0 elsewhere.
        rejected_mask: the rejected positions.
    """

    c: int
    g: int
    z: int
    kind: str
    context_mask: Mask
    rejected_ids: Ids
    rejected_mask: Mask


def continuation(x0: Ids, question: int, answer: int, rule: NegativeRule, rng: np.random.Generator) -> Negative:
    """Algorithm 1: x0[0:c] is the context, its last g tokens repeat over [c, c+z), from a random phase of the unit.

    Args:
        x0: the canvas (prompt, answer, EOS up to its end).
        question, answer: L_Q and L_A; c ~ U{L_Q, L_Q + L_A}, g ~ U{1, g_max}, z ~ U{z_min, z_max}.
    """
    length = len(x0)
    c = int(rng.integers(question, min(question + answer, length - 1) + 1))
    g = min(int(rng.integers(1, rule.g_max + 1)), c)
    end = min(c + int(rng.integers(rule.z_min, rule.z_max + 1)), length)
    if rule.at_least_answer:
        end = max(end, min(question + answer, length))
    context = np.arange(length) < c
    return _build(x0, context, [(c, end, x0[c - g : c])], rule, rng, c, g)


def inside(x0: Ids, question: int, answer: int, rule: NegativeRule, rng: np.random.Generator) -> Negative:
    """Context on both sides: the masked span [c, e) lies inside the canvas, the unit comes from its left or right edge.

    For pretraining-style text: the official code's idea, our details (docs/method.md §3). The first `question` tokens
    are never masked.
    """
    length = len(x0)
    c = int(rng.integers(max(question, 1), max(question, length - rule.z_min - 1, 1) + 1))
    end = min(c + int(rng.integers(rule.z_min, rule.z_max + 1)), length - 1)
    from_left = bool(rng.integers(2))
    g = min(int(rng.integers(1, rule.g_max + 1)), c if from_left else length - end)
    unit = x0[c - g : c] if from_left else x0[end : end + g]
    position = np.arange(length)
    return _build(x0, (position < c) | (position >= end), [(c, end, unit)], rule, rng, c, g)


def outside(x0: Ids, question: int, answer: int, rule: NegativeRule, rng: np.random.Generator) -> Negative:
    """The context is one span [c, e) in the middle; its edges repeat over both sides.

    The official code's idea, our details (docs/method.md §3).
    """
    length = len(x0)
    c = int(rng.integers(1, max(length - rule.z_min - 1, 1) + 1))
    end = min(c + int(rng.integers(rule.z_min, rule.z_max + 1)), length - 1)
    g = min(int(rng.integers(1, rule.g_max + 1)), end - c)
    position = np.arange(length)
    spans = [
        (max(0, c - int(rng.integers(rule.z_min, rule.z_max + 1))), c, x0[c : c + g]),
        (end, min(length, end + int(rng.integers(rule.z_min, rule.z_max + 1))), x0[end - g : end]),
    ]
    return _build(x0, (position >= c) & (position < end), spans, rule, rng, c, g)


RULES: dict[str, Callable[[Ids, int, int, NegativeRule, np.random.Generator], Negative]] = {
    "continuation": continuation,
    "inside": inside,
    "outside": outside,
}


def _build(
    x0: Ids,
    context: Mask,
    spans: list[tuple[int, int, np.ndarray]],
    rule: NegativeRule,
    rng: np.random.Generator,
    c: int,
    g: int,
) -> Negative:
    rejected, mask = x0.copy(), np.zeros(len(x0), dtype=bool)
    high_prior = rng.random() < rule.high_prior_share
    for start, end, unit in spans:
        if high_prior:
            unit = rng.choice(rule.prior_ids, size=len(unit), p=rule.prior_p)
        phase = int(rng.integers(len(unit)))
        rejected[start:end] = unit[(np.arange(end - start) + phase) % len(unit)]
        mask[start:end] = True
        if end - start > 1 and rng.random() < rule.eos_probability:
            rejected[rng.integers(start, end - 1)] = rule.eos_id
    kind = "high_prior" if high_prior else "repetition"
    first = spans[0]
    return Negative(c, g, first[1] - first[0], kind, context, rejected, mask)
