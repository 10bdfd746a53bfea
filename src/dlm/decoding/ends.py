"""Where an answer ends."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dlm.data.tokenizer import end_of_turn, special_tokens
from dlm.models.interface import pad_cycle


def ends_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """EOS, the other special tokens at which the checkpoint's generation stops (one id, or a list), the end of turn,
    the pad tokens."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)  # masked LMs have none
    given = named if isinstance(named, list) else [named]
    # A class's default id may be an ordinary word of this vocabulary, so only special tokens count.
    others, turn = special_tokens(tokenizer).keys() & set(given), end_of_turn(tokenizer)
    others |= {*([] if turn is None else [turn]), *pad_cycle(model)}
    return [tokenizer.eos_token_id, *sorted(others - {tokenizer.eos_token_id, tokenizer.mask_token_id})]


def cut_at_eos(
    tokens: Int[Tensor, "batch length"], eos_id: int, ends: Sequence[int] = ()
) -> Int[Tensor, "batch length"]:
    """From a row's first end on (EOS, or one of `ends`) everything becomes EOS."""
    ended = torch.isin(tokens, torch.tensor([eos_id, *ends])).cumsum(-1) > 0
    return torch.where(ended, eos_id, tokens)
