"""An autoregressive model as a masked diffusion LM, before it is trained as one (docs/adapt.md).

The recipe is DiffuLLaMA's (arXiv 2410.17891) and Dream's (arXiv 2508.15487): no causal mask, a mask token, and logits
that go on predicting the next token, so that what the model knows stays where it is.
"""

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dlm.errors import UserError
from dlm.models.interface import block_size as block_size_of
from dlm.models.interface import is_masked_lm, know_tokens
from dlm.models.probe import check_sees_ahead, check_sees_blocks


@torch.no_grad()
def adapt(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, logits_shift: int, block_size: int = 0
) -> PreTrainedModel:
    """Make `model` a denoiser, in place: full attention, a row for the mask, and where its logits stand.

    A mask beyond the vocabulary gets a new row, the mean of the others, in the embeddings and in an untied head; one
    that is an entry of the tokenizer already, or stands on a spare row, takes the row as it is.

    Args:
        model: a decoder-only model of transformers with causal attention.
        tokenizer: with its mask token.
        logits_shift: 1 where the logits at i - 1 predict position i, as they did; 0 where those at i do.
        block_size: of a block-causal model (models/blocks.py), 0 for full attention. Blocks of 1 with logits_shift 1
            are the model that it was.

    Raises:
        UserError: a model that has no causal mask to lose, or one that keeps it (its class does not read
            config.is_causal: state-space models, masks of their own).
    """
    config: Any = model.config
    if is_masked_lm(model) or not getattr(config, "is_causal", True):
        raise UserError("only an autoregressive model can be adapted; this one has no causal mask")
    mask_id, rows = int(tokenizer.mask_token_id), int(config.vocab_size)
    if mask_id >= rows:
        grown: Any = model
        grown.resize_token_embeddings(mask_id + 1, mean_resizing=False)
        for table in (model.get_input_embeddings(), model.get_output_embeddings()):
            weight: Any = table.weight
            weight[rows:] = weight[:rows].float().mean(0).to(weight.dtype)
    # A padding id's embedding gets no gradient from its use as input, and a denoiser reads EOS as content.
    embeddings: Any = model.get_input_embeddings()
    embeddings.padding_idx = None
    config.pad_token_id = None
    config.is_causal, config.use_cache = False, False
    config.logits_shift, config.mask_token_id = logits_shift, mask_id
    know_tokens(model, tokenizer)
    check_sees_ahead(model.eval(), "it cannot be adapted")
    if block_size:
        make_block_causal(model, block_size)
    return model


def make_block_causal(model: PreTrainedModel, size: int) -> None:
    """Let a denoiser's config say that it sees its own block of `size` positions and those before it, nothing else.

    Raises:
        UserError: blocks of another size than it has already, or a model to whose positions it cannot be told what
            each of them sees.
    """
    config: Any = model.config
    if block_size_of(model) not in (0, size):
        raise UserError(
            f"this model has blocks of {block_size_of(model)} positions, not of {size}; leave them as they are"
        )
    config.diffusion_block_size = size
    check_sees_blocks(model.eval(), "give a Llama-like one")
