"""Negatives as an artefact: seeded draws for each training example, as rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlm.config.training import NegativesParams
from dlm.data.splits import most_frequent
from dlm.negatives.corruption import RULES, NegativeRule


def make_rule(settings: NegativesParams, vocabulary: Mapping[str, Any], high_prior_tokens: int) -> NegativeRule:
    """Algorithm 1's numbers, and the corpus's most frequent tokens with their prior.

    Args:
        vocabulary: of the prepare stage (token_counts, eos_id).
        high_prior_tokens: how many tokens count as frequent.
    """
    counts = np.asarray(vocabulary["token_counts"])
    frequent = most_frequent(vocabulary["token_counts"], high_prior_tokens)
    return NegativeRule(
        g_max=settings.g_max,
        z_min=settings.z_min,
        z_max=settings.z_max,
        eos_probability=settings.eos_probability,
        at_least_answer=settings.at_least_answer,
        high_prior_share=settings.high_prior_share,
        prior_ids=frequent,
        prior_p=counts[frequent] / counts[frequent].sum(),
        eos_id=vocabulary["eos_id"],
    )


def draw_negatives(
    examples: Sequence[Mapping[str, Any]],
    split: str,
    settings: NegativesParams,
    rule: NegativeRule,
    length: int,
    seed: int,
) -> list[dict[str, Any]]:
    """`per_example` negatives for each of the first `settings.examples` examples, all of one draw before the next.

    Args:
        examples: rows of a split (id, prompt_ids, answer_ids).
        split: train or valid; each has seeds of its own.
        length: canvas length L.
    """
    rows = []
    for draw in range(settings.per_example):
        for example in examples[: settings.examples]:
            question, answer = len(example["prompt_ids"]), len(example["answer_ids"])
            x0 = np.full(length, rule.eos_id, dtype=np.int32)
            x0[: question + answer] = example["prompt_ids"] + example["answer_ids"]
            generator = np.random.default_rng([seed, split == "valid", example["id"], draw])
            negative = RULES[settings.rule](x0, question, answer, rule, generator)
            rows.append({"example": example["id"], "draw": draw, "rule": settings.rule, **vars(negative)})
    return rows
