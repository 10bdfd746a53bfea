"""Backbones from scratch, from disk and from the hub, through transformers alone."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from dlm.config.training import LoraParams, ModelParams
from dlm.data.tokenizer import load_tokenizer, special_tokens
from dlm.errors import UserError
from dlm.files import check_checkpoint, check_hub, is_gguf
from dlm.models.adapters import base_of, is_adapter, merged, new_adapter, read_adapter
from dlm.models.interface import know_tokens, pad_cycle
from dlm.models.layouts import LAYOUTS, Layout, check_rope, detect, load_gguf, load_layout, published_config
from dlm.models.probe import check_sees_ahead

GPT2 = "openai-community/gpt2"  # MDLM's tokenizer, which its repository does not hold
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
        # Converted models keep their new names.
        model.save_pretrained(folder, save_original_format=False)
    tokenizer.save_pretrained(folder)


def load_checkpoint(
    path: Path | str,
    *,
    causal: bool,
    layout: str = "auto",
    tokenizer: Path | str | None = None,
    dtype: torch.dtype | str = torch.float32,
    mask_token: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Load model and tokenizer from a folder or the hub; safetensors only, no remote code. An autoregressive model may
    also be a GGUF file.

    An adapter's folder gives its base with the adapter merged in.

    Args:
        causal: an autoregressive model is wanted, not a denoiser.
        layout: one of layouts.LAYOUTS; auto goes by config.json. `causal_lm` makes a denoiser of a decoder-only model
            whose config.json says nothing of `is_causal`.
        tokenizer: where the tokenizer is, if not beside the model.
        dtype: of the weights; "auto" for the one they are saved in.
        mask_token: an entry of the tokenizer to become its mask, where it has none.

    Raises:
        UserError: nothing there, weights in another format or of another model, a truncated file, a tokenizer that does
            not fit, or a model whose attention is causal where a denoiser is asked for (and the other way round).
    """
    check_checkpoint(path)
    check_hub(path)
    folder = Path(path)
    if is_adapter(folder):
        model, its_tokenizer = load_checkpoint(
            base_of(folder), causal=causal, layout=layout, tokenizer=tokenizer or _own_tokenizer(folder), dtype=dtype
        )
        return merged(read_adapter(model, folder, trainable=False)), its_tokenizer
    if folder.exists() and not (is_gguf(path) or (folder / "config.json").is_file()):
        raise UserError(
            f"{path}: no config.json there; a checkpoint is a folder with config.json and model.safetensors"
        )
    if layout not in ("auto", *LAYOUTS):
        raise UserError(f"layout must be auto, {', '.join(LAYOUTS)}, got {layout!r}")
    kind: Layout = "causal_lm"
    info: Mapping[str, Any] = {"missing_keys": [], "unexpected_keys": []}
    try:
        if is_gguf(path):
            model, info = load_gguf(path, dtype)
        else:
            config = published_config(path)
            kind = detect(config) if layout == "auto" else cast(Layout, layout)
            model, info = load_layout(kind, path, config, dtype)
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: no model could be loaded: {' '.join(str(error).split())[:300]}") from None
    except Exception as error:  # safetensors raises its own, undocumented type for a truncated file
        raise UserError(f"{path}: broken weights ({error}); make or download them again") from None
    _check_keys(path, info)
    if layout == "causal_lm" and not causal:
        model.config.is_causal = False
    denoises = kind == "masked_lm" or not getattr(model.config, "is_causal", True)
    if denoises == causal:
        needed = "an autoregressive model" if causal else "a masked diffusion model (config.is_causal: false)"
        raise UserError(f"{path}: {needed} is needed here; give the path of one")
    if denoises:
        check_rope(model.config, path)
    if denoises and kind in ("causal_lm", "masked_lm"):  # with the others it is ours to say how a class attends
        check_sees_ahead(model, f"{path} is no denoiser, name another")
    default = GPT2 if kind == "mdlm" and not (folder / "tokenizer_config.json").is_file() else path
    loaded = load_tokenizer(tokenizer or default, mask_token)
    mask_id = getattr(model.config, "mask_token_id", loaded.mask_token_id)
    if loaded.mask_token_id != mask_id:
        raise UserError(
            f"{path}: the tokenizer's mask is {loaded.mask_token_id}, the model's {mask_id}; they must match"
        )
    # An autoregressive model has no use for the mask, which may have been added just now.
    entries = len(loaded) - (causal and loaded.mask_token_id == len(loaded) - 1)
    if entries > model.config.vocab_size:
        raise UserError(
            f"{path}: the tokenizer has {entries} entries, the model {model.config.vocab_size}; they must match"
        )
    padding = set(pad_cycle(model))
    if padding and not padding <= special_tokens(loaded).keys():
        raise UserError(f"{path}: config.json: pad_cycle_ids must be special tokens of the tokenizer; mend either")
    know_tokens(model, loaded)
    return model, loaded


def load_trainable(path: Path | str, lora: LoraParams, seed: int) -> tuple[nn.Module, PreTrainedTokenizerFast]:
    """A denoiser to be fine-tuned: whole, in fresh adapters (`lora.rank`), or in the ones that `path` holds.

    Weights that adapters leave alone stay in the type they are saved in; what is trained is float32.

    Raises:
        UserError: as `load_checkpoint`; targets that are no part of the model.
    """
    if is_adapter(path):
        model, tokenizer = load_checkpoint(
            base_of(path), causal=False, tokenizer=_own_tokenizer(Path(path)), dtype="auto"
        )
        return read_adapter(model, path, trainable=True), tokenizer
    model, tokenizer = load_checkpoint(path, causal=False, dtype="auto" if lora.rank else torch.float32)
    return new_adapter(model, lora, path, seed) if lora.rank else model, tokenizer


def _own_tokenizer(adapter: Path) -> Path | None:
    """An adapter's folder where it holds a tokenizer, too."""
    return adapter if (adapter / "tokenizer_config.json").is_file() else None


def _check_keys(path: Path | str, info: Mapping[str, Any]) -> None:
    """Refuse weights that do not match, and say which, both ways."""
    differences = []
    for kind in ("missing_keys", "unexpected_keys"):
        if names := sorted(map(str, info[kind])):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            differences.append(f"{kind.replace('_', ' ')}: {', '.join(names[:3])}{more}")
    if differences:
        raise UserError(f"{path}: weights and config.json differ, {'; '.join(differences)}; mend either")
