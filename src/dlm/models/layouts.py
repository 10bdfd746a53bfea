"""How published checkpoints are laid out, and their reading as architectures of transformers (METHOD §8).

Names are mapped while transformers loads, shard by shard: no second copy of the weights, and none of their own code.
"""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.utils import cached_file

from dlm.errors import UserError
from dlm.files import gguf_place
from dlm.models.mdlm import MdlmForCausalLM, fold, mdlm_config

Layout = Literal["causal_lm", "masked_lm", "llada", "dream", "mdlm"]
LAYOUTS: tuple[Layout, ...] = ("causal_lm", "masked_lm", "llada", "dream", "mdlm")
Loaded = tuple[PreTrainedModel, Mapping[str, Any]]  # the model; missing_keys, unexpected_keys

# LLaDA's names and Llama's, as regular expressions.
LLADA_NAMES = {
    r"^model\.transformer\.wte\.": "model.embed_tokens.",
    r"^model\.transformer\.ln_f\.": "model.norm.",
    r"^model\.transformer\.ff_out\.": "lm_head.",
    r"^model\.transformer\.blocks\.(\d+)\.attn_norm\.": r"model.layers.\1.input_layernorm.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_norm\.": r"model.layers.\1.post_attention_layernorm.",
    r"^model\.transformer\.blocks\.(\d+)\.q_proj\.": r"model.layers.\1.self_attn.q_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.k_proj\.": r"model.layers.\1.self_attn.k_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.v_proj\.": r"model.layers.\1.self_attn.v_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.attn_out\.": r"model.layers.\1.self_attn.o_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_proj\.": r"model.layers.\1.mlp.gate_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.up_proj\.": r"model.layers.\1.mlp.up_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_out\.": r"model.layers.\1.mlp.down_proj.",
}
# What our reading of LLaDA supposes of its config.json.
LLADA_MUST = {
    "block_type": "llama",
    "layer_norm_type": "rms",
    "activation_type": "silu",
    "rope": True,
    "alibi": False,
    "include_bias": False,
    "include_qkv_bias": False,
}


def llama_name(name: str) -> str:
    """A name of LLaDA's weights in a Llama; any other as it is."""
    for pattern, replacement in LLADA_NAMES.items():
        name = re.sub(pattern, replacement, name)
    return name


def published_config(path: Path | str) -> dict[str, Any]:
    """config.json as it is, from a folder or the hub. Raises OSError where there is none."""
    found, _ = PreTrainedConfig.get_config_dict(str(path))
    return found


def detect(config: Mapping[str, Any]) -> Layout:
    """The layout that a config.json names."""
    named: dict[str, Layout] = {"llada": "llada", "dream": "dream", "mdlm": "mdlm"}
    model_type = str(config.get("model_type", "")).lower()
    if model_type in named:
        return named[model_type]
    masked = any(str(name).endswith("ForMaskedLM") for name in config.get("architectures") or [])
    return "masked_lm" if masked else "causal_lm"


def load_layout(layout: Layout, path: Path | str, config: Mapping[str, Any], dtype: torch.dtype | str) -> Loaded:
    """The model that a published checkpoint stands for.

    Raises:
        UserError: a config.json that is not one of this layout.
        OSError, ValueError, RuntimeError: whatever transformers raises for weights that cannot be loaded.
    """
    try:
        if layout == "llada":
            llama = llada_config(config, path)
            return _from_pretrained(LlamaForCausalLM, path, dtype, config=llama, key_mapping=LLADA_NAMES)
        if layout == "dream":
            return _from_pretrained(Qwen2ForCausalLM, path, dtype, config=dream_config(config))
        if layout == "mdlm":
            return _load_mdlm(path, config, dtype)
    except KeyError as error:
        raise UserError(f"{path}: has no {error}, which layout {layout} needs; name another layout") from None
    return _from_pretrained(AutoModelForMaskedLM if layout == "masked_lm" else AutoModelForCausalLM, path, dtype)


def _from_pretrained(cls: Any, path: Path | str, dtype: torch.dtype | str, **options: Any) -> Loaded:
    loaded: Loaded = cls.from_pretrained(
        str(path), use_safetensors=True, dtype=dtype, trust_remote_code=False, output_loading_info=True, **options
    )
    return loaded


def load_gguf(path: Path | str, dtype: torch.dtype | str) -> PreTrainedModel:
    """The autoregressive model of a GGUF file, its weights dequantised, as one that can be saved again.

    Raises:
        UserError: the package gguf is missing.
        OSError, ValueError, RuntimeError: whatever transformers raises for a file that is none.
    """
    place, named = gguf_place(path)
    given = torch.float32 if dtype == "auto" else dtype
    loaded: Any = AutoModelForCausalLM.from_pretrained(place, dtype=given, trust_remote_code=False, **named)
    config = copy.deepcopy(loaded.config)
    vars(config).pop(
        "quantization_config", None
    )  # what was read is not quantised any more, and a model that says so is not saved
    model: Any = type(loaded)(config)
    model.to(given).load_state_dict(loaded.state_dict())
    return model.eval()


def llada_config(published: Mapping[str, Any], path: Path | str) -> LlamaConfig:
    """LLaDA as a Llama without a causal mask. Raises UserError for what a Llama cannot be."""
    for key, value in LLADA_MUST.items():
        if published.get(key, value) != value:
            raise UserError(
                f"{path}: config.json: {key} must be {value!r} for a LLaDA read as a Llama, got {published[key]!r}"
            )
    config = LlamaConfig(
        vocab_size=published.get("embedding_size") or published["vocab_size"],
        hidden_size=published["d_model"],
        intermediate_size=published["mlp_hidden_size"],
        num_hidden_layers=published["n_layers"],
        num_attention_heads=published["n_heads"],
        num_key_value_heads=published.get("n_kv_heads") or published["n_heads"],
        max_position_embeddings=published["max_sequence_length"],
        rms_norm_eps=published.get("rms_norm_eps", 1e-5),
        rope_parameters={"rope_type": "default", "rope_theta": float(published["rope_theta"])},
        tie_word_embeddings=bool(published.get("weight_tying", False)),
        use_cache=False,
        bos_token_id=None,
        eos_token_id=published["eos_token_id"],
        pad_token_id=None,  # it is the end of text: its embedding is content here
    )
    config.is_causal = False
    config.mask_token_id = published["mask_token_id"]
    return config


def dream_config(published: Mapping[str, Any]) -> Qwen2Config:
    """Dream as a Qwen2 without a causal mask, whose logits at i - 1 predict position i."""
    shape = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    more = ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "hidden_act")
    config = Qwen2Config(
        **{key: published[key] for key in shape},
        **{key: published[key] for key in more if key in published},
        rope_parameters={"rope_type": "default", "rope_theta": float(published["rope_theta"])},
        use_cache=False,
        bos_token_id=None,
        eos_token_id=published["eos_token_id"],
        pad_token_id=None,
    )
    config.is_causal = False
    config.logits_shift = 1
    config.mask_token_id = published["mask_token_id"]
    return config


def _load_mdlm(path: Path | str, config: Mapping[str, Any], dtype: torch.dtype | str) -> Loaded:
    file = cached_file(str(path), "model.safetensors")
    if file is None:
        raise OSError(f"{path} has no model.safetensors")
    published = load_file(file)
    folded = fold(published, config["n_heads"])
    ratio = folded["gpt_neox.layers.0.mlp.dense_h_to_4h.weight"].shape[0] // config["hidden_dim"]
    model = MdlmForCausalLM(mdlm_config(config, ratio))
    missing, unexpected = model.load_state_dict(folded, strict=False)
    model.config.mask_token_id = config["vocab_size"] - 1
    saved = next(iter(published.values())).dtype
    torch.nn.Module.to(model, saved if dtype == "auto" else dtype)
    return model.eval(), {"missing_keys": missing, "unexpected_keys": unexpected}
