"""A model's rows for the pad tokens of Rainbow Padding (data/padding.py)."""

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dlm.errors import UserError
from dlm.models.interface import know_tokens, pad_cycle, token_count


@torch.no_grad()
def give_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, cycle: list[int], seed: int) -> None:
    """Make the ids of `cycle` the pad tokens of a model, in place; its config says so from now on.

    Their rows, in the embeddings and in an untied head, new ones or spare ones, are drawn around the mean of the
    tokenizer's others with the spread of each column: adapters leave them as they are, and rows that are equal could
    not be told apart.

    Args:
        tokenizer: with the pad tokens.
        cycle: their ids, in turn; none for padding by EOS.

    Raises:
        UserError: a model that has other pad tokens already.
    """
    config: Any = model.config
    if pad_cycle(model) == cycle:
        return
    if pad_cycle(model):
        known = len(pad_cycle(model))
        raise UserError(f"tokenizer.pad_cycle must be {known}, as the model was trained, got {len(cycle)}")
    rows = int(config.vocab_size)
    others = sorted(set(range(min(token_count(model), rows))) - set(cycle))
    if max(cycle) >= rows:
        grown: Any = model
        grown.resize_token_embeddings(max(cycle) + 1, mean_resizing=False)
    tables: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    generator = torch.Generator().manual_seed(seed)
    for weight in {id(table.weight): table.weight for table in tables}.values():
        spread, mean = torch.std_mean(weight[others].float(), dim=0)
        drawn = torch.randn(len(cycle), weight.shape[1], generator=generator).to(weight.device)
        weight[cycle] = (mean + spread * drawn).to(weight.dtype)
    config.pad_cycle_ids = cycle
    know_tokens(model, tokenizer)
