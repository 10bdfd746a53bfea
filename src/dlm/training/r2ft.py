"""One R2FT run (paper Eq. 5): its rows, negatives with their examples, and its trainer."""

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from dlm.config.training import R2ftParams
from dlm.data.splits import log_prior
from dlm.models.adapters import unwrapped
from dlm.models.interface import pad_cycle
from dlm.training.collators import R2ftCollator, Row
from dlm.training.fit import fit
from dlm.training.objectives import R2ftTrainer

M = TypeVar("M", bound=nn.Module)


def fit_r2ft(
    name: str,
    model: M,
    tokenizer: PreTrainedTokenizerFast,
    train: list[Row],
    valid: list[Row],
    params: R2ftParams,
    length: int,
    token_counts: list[int],
    seed: int,
    visit: Callable[[int, M], None] | None = None,
) -> tuple[M, list[dict[str, float]]]:
    """Reject the negatives; returns the model with its curve (`fit` has the rest).

    Args:
        train, valid: of `with_examples`.
        length: canvas length L.
        token_counts: of the training answers, for the log-prior that evaluation reports.
        visit: as in `fit`.
    """
    make_trainer = functools.partial(
        R2ftTrainer,
        objective=params,
        log_prior=torch.from_numpy(log_prior(token_counts)).float(),
        mask_id=tokenizer.mask_token_id,
        data_collator=R2ftCollator(
            length, tokenizer.eos_token_id, tokenizer.mask_token_id, pad_cycle(unwrapped(model))
        ),
    )
    return fit(name, make_trainer, model, train, valid, params.training, seed, visit=visit)


def with_examples(negatives: Sequence[Row], examples: Sequence[Row]) -> list[Row]:
    """Each negative's fields and those of the example that it was made from."""
    return [{**examples[negative["example"]], **negative} for negative in negatives]
