"""Backbones from scratch and from disk, through transformers alone."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from dlm.blocks import ModelParams
from dlm.data.tokenizer import load_tokenizer
from dlm.errors import UserError

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


def new_backbone(shape: ModelParams, tokenizer: PreTrainedTokenizerFast, seed: int, *, causal: bool) -> PreTrainedModel:
    """A randomly initialised Llama: bidirectional for masked diffusion, causal for the reference.

    transformers reads `config.is_causal` and leaves the causal mask out when it is False, so a saved model loads again
    with plain transformers.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.max_length,
        initializer_range=shape.init_std,
        tie_word_embeddings=True,
        use_cache=causal,
        eos_token_id=tokenizer.eos_token_id,
        # A padding id's embedding gets no gradient from its use as input, and a denoiser reads EOS as content.
        pad_token_id=tokenizer.eos_token_id if causal else None,
        bos_token_id=None,
    )
    config.is_causal = causal
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def save_checkpoint(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Weights (safetensors), config and tokenizer into one folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_checkpoint(path: Path | str, *, causal: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Load model and tokenizer from a folder or the hub; safetensors only, no remote code.

    Raises:
        UserError: nothing there, weights in another format, a truncated file, a tokenizer that does not fit, or a
            model whose attention is causal where a denoiser is asked for (and the other way round).
    """
    folder = Path(path)
    if folder.exists() and not (folder / "config.json").is_file():
        raise UserError(
            f"{path}: no config.json there; a checkpoint is a folder with config.json and model.safetensors"
        )
    loaded: Any
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            str(path), use_safetensors=True, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: no model could be loaded: {' '.join(str(error).split())[:300]}") from None
    except Exception as error:  # safetensors raises its own, undocumented type for a truncated file
        raise UserError(f"{path}: broken weights ({error}); make or download them again") from None
    model, info = loaded
    for kind in ("missing_keys", "unexpected_keys"):
        if info[kind]:
            some = ", ".join(sorted(map(str, info[kind]))[:3])
            raise UserError(f"{path}: weights and config.json differ, {kind.replace('_', ' ')}: {some}; mend either")
    if getattr(model.config, "is_causal", True) != causal:
        wanted = "an autoregressive model" if causal else "a masked diffusion model (config.is_causal: false)"
        raise UserError(f"{path}: {wanted} is needed here; give the path of one")
    tokenizer = load_tokenizer(path)
    if len(tokenizer) > model.config.vocab_size:
        raise UserError(
            f"{path}: the tokenizer has {len(tokenizer)} entries, the model {model.config.vocab_size}; they must match"
        )
    return model, tokenizer
