"""Published block-causal models of the Qwen family, read as plain Qwen models (docs/block-diffusion.md).

SDAR (arXiv 2510.06303) has Qwen3's names and predicts a position at itself; Fast-dLLM v2 (arXiv 2509.26328) has Qwen2's
and predicts it at the one before. Their masks are made by their own code, of which nothing is run here.
"""

from collections.abc import Mapping
from typing import Any, Literal

from transformers import PreTrainedConfig, Qwen2Config, Qwen3Config

SHAPE = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
MORE = (
    *("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "hidden_act"),
    *("attention_dropout", "head_dim", "attention_bias"),
)
# Where config.json leaves them out: positions a block, and the mask's id.
SDAR = {"block_size": 4, "mask_token_id": 151669}
FAST_DLLM = {"bd_size": 32, "mask_token_id": 151665}


def block_qwen_config(published: Mapping[str, Any], layout: Literal["sdar", "fast_dllm"]) -> PreTrainedConfig:
    """SDAR as a Qwen3, Fast-dLLM v2 as a Qwen2, block-causal. Raises KeyError for what config.json must have."""
    sdar = layout == "sdar"
    config_class: Any = Qwen3Config if sdar else Qwen2Config
    known = {**(SDAR if sdar else FAST_DLLM), **published}
    scaling = dict(published.get("rope_scaling") or {})
    rope_type = scaling.pop("type", None)  # transformers' older name
    config: Any = config_class(
        **{key: published[key] for key in SHAPE},
        **{key: published[key] for key in MORE if key in published},
        rope_parameters={"rope_type": rope_type or "default", "rope_theta": float(published["rope_theta"]), **scaling},
        use_cache=False,
        bos_token_id=None,
        eos_token_id=published["eos_token_id"],
        pad_token_id=None,
    )
    config.is_causal = False
    config.logits_shift = 0 if sdar else 1
    config.diffusion_block_size = known["block_size" if sdar else "bd_size"]
    config.mask_token_id = known["mask_token_id"]
    return config
