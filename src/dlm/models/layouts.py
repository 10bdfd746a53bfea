"""How published checkpoints are laid out, and their reading as architectures of transformers (docs/method.md §8).

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
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)
from transformers.utils import cached_file

from dlm.errors import UserError
from dlm.files import gguf_place, read_json
from dlm.models.block_layouts import block_qwen_config
from dlm.models.mdlm import MdlmForCausalLM, fold, mdlm_config

Layout = Literal["causal_lm", "masked_lm", "llada", "dream", "mdlm", "bd3lm", "sdar", "fast_dllm"]
LAYOUTS: tuple[Layout, ...] = ("causal_lm", "masked_lm", "llada", "dream", "mdlm", "bd3lm", "sdar", "fast_dllm")
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
    "scale_logits": False,
    "input_emb_norm": False,
    "attention_layer_norm": False,
    "layer_norm_with_affine": True,
    "clip_qkv": None,
    "rope_scaling": None,
    "embedding_dropout": 0.0,
    "residual_dropout": 0.0,
}
DREAM_MUST = {"use_sliding_window": False}
MDLM_MUST = {"time_conditioning": False}
BD3LM_MUST = {"time_conditioning": False, "adaln": True, "cross_attn": True, "causal": False}
# What published files hold besides: frequencies of the rotary base, which is always the same; the range of the rates
# that bd3lms was trained with.
NO_WEIGHTS = ("backbone.rotary_emb.inv_freq", "sampling_eps_min", "sampling_eps_max")
# Rotary frequencies that go by the longest canvas of a batch: a row would depend on its batch mates.
BY_LENGTH = ("dynamic", "longrope")
# What BERT and RoBERTa were published with beside their masked LM's weights: heads for other tasks, a list of numbers.
OTHER_HEADS = re.compile(r"(^|\.)pooler\.|^cls\.seq_relationship\.|(^|\.)position_ids$")


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
    named: dict[str, Layout] = {
        "llada": "llada",
        "dream": "dream",
        "mdlm": "mdlm",
        "bd3lm": "bd3lm",
        "sdar": "sdar",
        "fast_dllm_qwen": "fast_dllm",
    }
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
    if {"graph", "noise", "tokens"} <= config.keys():
        raise UserError(
            f"{path}: a model of SEDD, whose network sees the noise level, as none does here; take another: the stage "
            "sedd trains one of ours by its objective (docs/sedd.md)"
        )
    try:
        if layout == "llada":
            llama = llada_config(config, path)
            return _from_pretrained(LlamaForCausalLM, path, dtype, config=llama, key_mapping=LLADA_NAMES)
        if layout == "dream":
            return _from_pretrained(Qwen2ForCausalLM, path, dtype, config=dream_config(config, path))
        if layout == "mdlm":
            _must(config, MDLM_MUST, path, "an MDLM run without time")
            return _load_mdlm(path, config, dtype)
        if layout == "bd3lm":
            _must(config, BD3LM_MUST, path, "a BD3-LM run without time")
            model, info = _load_mdlm(path, config, dtype)
            model.config.diffusion_block_size = config["block_size"]
            return model, info
        if layout in ("sdar", "fast_dllm"):
            _must(config, DREAM_MUST, path, "blocks of positions")
            qwen: Any = Qwen3ForCausalLM if layout == "sdar" else Qwen2ForCausalLM
            return _from_pretrained(qwen, path, dtype, config=block_qwen_config(config, layout))
    except KeyError as error:
        raise UserError(f"{path}: has no {error}, which layout {layout} needs; name another layout") from None
    if config.get("model_type", layout) not in (layout, *CONFIG_MAPPING):
        raise UserError(
            f"{path}: config.json: model_type {config['model_type']!r} is no architecture of transformers, and no "
            "repository's code is run; if it has the layout of another (llada, dream, ...), name that with --layout"
        )
    if layout == "causal_lm":
        return _from_pretrained(AutoModelForCausalLM, path, dtype)
    model, info = _from_pretrained(AutoModelForMaskedLM, path, dtype)
    surplus = [name for name in info["unexpected_keys"] if not OTHER_HEADS.search(name)]
    return model, {**info, "unexpected_keys": surplus}


def _from_pretrained(cls: Any, path: Path | str, dtype: torch.dtype | str, **options: Any) -> Loaded:
    loaded: Loaded = cls.from_pretrained(
        str(path), use_safetensors=True, dtype=dtype, trust_remote_code=False, output_loading_info=True, **options
    )
    return loaded


def load_gguf(path: Path | str, dtype: torch.dtype | str) -> Loaded:
    """The autoregressive model of a GGUF file, its weights dequantised, as one that can be saved again.

    Raises:
        UserError: the package gguf is missing.
        OSError, ValueError, RuntimeError: whatever transformers raises for a file that is none.
    """
    place, named = gguf_place(path)
    given = torch.float32 if dtype == "auto" else dtype
    auto: Any = AutoModelForCausalLM  # its type does not know of the loading info
    loaded, info = auto.from_pretrained(place, dtype=given, trust_remote_code=False, output_loading_info=True, **named)
    config = copy.deepcopy(loaded.config)
    vars(config).pop(
        "quantization_config", None
    )  # what was read is not quantised any more, and a model that says so is not saved
    model: Any = type(loaded)(config)
    model.to(given).load_state_dict(loaded.state_dict())
    return model.eval(), info


def llada_config(published: Mapping[str, Any], path: Path | str) -> LlamaConfig:
    """LLaDA as a Llama without a causal mask. Raises UserError for what a Llama cannot be."""
    _must(published, LLADA_MUST, path, "a LLaDA read as a Llama")
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
        attention_dropout=published.get("attention_dropout", 0.0),
        tie_word_embeddings=bool(published.get("weight_tying", False)),
        use_cache=False,
        bos_token_id=None,
        eos_token_id=published["eos_token_id"],
        pad_token_id=None,  # it is the end of text: its embedding is content here
    )
    config.is_causal = False
    config.mask_token_id = published["mask_token_id"]
    return config


def _must(published: Mapping[str, Any], expected: Mapping[str, Any], path: Path | str, what: str) -> None:
    for key, value in expected.items():
        if published.get(key, value) != value:
            raise UserError(f"{path}: config.json: {key} must be {value!r} for {what}, got {published[key]!r}")


def check_rope(config: PreTrainedConfig, path: Path | str) -> None:
    """Refuse rotary frequencies that change with a batch's longest canvas."""
    rope: Any = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(part for part in rope.values() if isinstance(part, Mapping))]
    if refused := [kind["rope_type"] for kind in kinds if kind.get("rope_type") in BY_LENGTH]:
        raise UserError(
            f"{path}: config.json: rope_type {refused[0]} makes a row depend on its batch mates; use yarn or none"
        )


def dream_config(published: Mapping[str, Any], path: Path | str) -> Qwen2Config:
    """Dream as a Qwen2 without a causal mask, whose logits at i - 1 predict position i. Raises UserError for what it
    cannot be."""
    _must(published, DREAM_MUST, path, "a Dream read as a Qwen2")
    scaling = dict(published.get("rope_scaling") or {})
    rope_type = scaling.pop("type", None)  # transformers' older name
    rope = {"rope_type": rope_type or "default", "rope_theta": float(published["rope_theta"]), **scaling}
    shape = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    more = ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "hidden_act")
    config = Qwen2Config(
        **{key: published[key] for key in shape},
        **{key: published[key] for key in more if key in published},
        attention_dropout=published.get("attention_dropout", 0.0),
        rope_parameters=rope,
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
    published = _weights(path)
    saved = next(iter(published.values())).dtype
    folded = fold(published, config["n_heads"])
    ratio = folded["gpt_neox.layers.0.mlp.dense_h_to_4h.weight"].shape[0] // config["hidden_dim"]
    model = MdlmForCausalLM(mdlm_config(config, ratio))
    missing, unexpected = model.load_state_dict(folded, strict=False)
    model.config.mask_token_id = config["vocab_size"] - 1
    torch.nn.Module.to(model, saved if dtype == "auto" else dtype)
    for name in NO_WEIGHTS:
        published.pop(name, None)
    return model.eval(), {"missing_keys": missing, "unexpected_keys": [*unexpected, *published]}


def _weights(path: Path | str) -> dict[str, torch.Tensor]:
    """All of a checkpoint's weights, in one file or in shards. Raises OSError where there are none."""
    optional: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False}
    if (index := cached_file(str(path), "model.safetensors.index.json", **optional)) is not None:
        files = sorted(set(read_json(index)["weight_map"].values()))
    else:
        files = ["model.safetensors"]
    weights: dict[str, torch.Tensor] = {}
    for name in files:
        if (file := cached_file(str(path), name)) is None:
            raise OSError(f"{path} has no {name}")
        weights |= load_file(file)
    return weights
