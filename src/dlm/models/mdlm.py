"""MDLM's diffusion transformer (Sahoo et al. 2024; docs/method.md §8), its conditioning folded into the weights.

The network is run without time (σ = 0), so the adaptive layer norms' shift, scale and gate are constants: shift and
scale become a layer norm's bias and weight, a gate scales the rows of the projection before it. What is left is
GPT-NeoX's block, sequential and without a causal mask, and a head with a bias.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM

FREQUENCIES = 256  # numbers that the network's time embedding starts from


class MdlmConfig(GPTNeoXConfig):
    """A folded MDLM. A type of its own: GPT-NeoX would drop the head's bias."""

    model_type = "mdlm_folded"

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)


class MdlmForCausalLM(GPTNeoXForCausalLM):
    """GPT-NeoX with a bias in its head; transformers' name for a decoder-only class, `is_causal` is false."""

    config_class = MdlmConfig

    def __init__(self, config: MdlmConfig) -> None:
        super().__init__(config)
        # MDLM's dropout is that of a block's two branches alone (GPT-NeoX's hidden_dropout after attention and MLP).
        self.gpt_neox.emb_dropout = nn.Dropout(0.0)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()


AutoConfig.register(MdlmConfig.model_type, MdlmConfig)
AutoModelForCausalLM.register(MdlmConfig, MdlmForCausalLM)


def mdlm_config(published: Mapping[str, Any], mlp_ratio: int = 4) -> MdlmConfig:
    """That of a published config.json (hidden_dim, n_blocks, n_heads, vocab_size, model_length, dropout)."""
    config = MdlmConfig(
        vocab_size=published["vocab_size"],
        hidden_size=published["hidden_dim"],
        num_hidden_layers=published["n_blocks"],
        num_attention_heads=published["n_heads"],
        intermediate_size=mlp_ratio * published["hidden_dim"],
        max_position_embeddings=published["model_length"],
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-5,
        use_parallel_residual=False,
        attention_bias=False,
        hidden_dropout=published.get("dropout", 0.1),
        attention_dropout=0.0,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
        tie_word_embeddings=False,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    config.is_causal = False
    return config


def fold(published: dict[str, Tensor], heads: int) -> dict[str, Tensor]:
    """A published state dict, from which it takes what it reads, as that of `MdlmForCausalLM`. Raises KeyError for a
    weight that is not there."""

    def weight(name: str) -> Tensor:
        return published.pop(f"backbone.{name}").float()

    blocks = {int(name.split(".")[2]) for name in published if name.startswith("backbone.blocks.")}
    condition = _condition(weight)

    def modulation(name: str, parts: int) -> tuple[Tensor, ...]:
        return F.linear(condition, weight(f"{name}.weight"), weight(f"{name}.bias")).chunk(parts)

    folded = {"gpt_neox.embed_in.weight": weight("vocab_embed.embedding")}
    for n in sorted(blocks):
        block, layer = f"blocks.{n}", f"gpt_neox.layers.{n}"
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation(f"{block}.adaLN_modulation", 6)
        qkv = weight(f"{block}.attn_qkv.weight")
        # (three, head, dim) in the published rows, (head, three, dim) in GPT-NeoX's.
        qkv = qkv.view(3, heads, -1, qkv.shape[1]).transpose(0, 1).reshape(qkv.shape)
        folded |= {
            f"{layer}.input_layernorm.weight": weight(f"{block}.norm1.weight") * (1 + scale_a),
            f"{layer}.input_layernorm.bias": shift_a,
            f"{layer}.attention.query_key_value.weight": qkv,
            f"{layer}.attention.dense.weight": gate_a[:, None] * weight(f"{block}.attn_out.weight"),
            f"{layer}.post_attention_layernorm.weight": weight(f"{block}.norm2.weight") * (1 + scale_m),
            f"{layer}.post_attention_layernorm.bias": shift_m,
            f"{layer}.mlp.dense_h_to_4h.weight": weight(f"{block}.mlp.0.weight"),
            f"{layer}.mlp.dense_h_to_4h.bias": weight(f"{block}.mlp.0.bias"),
            f"{layer}.mlp.dense_4h_to_h.weight": gate_m[:, None] * weight(f"{block}.mlp.2.weight"),
            f"{layer}.mlp.dense_4h_to_h.bias": gate_m * weight(f"{block}.mlp.2.bias"),
        }
    shift, scale = modulation("output_layer.adaLN_modulation", 2)
    return folded | {
        "gpt_neox.final_layer_norm.weight": weight("output_layer.norm_final.weight") * (1 + scale),
        "gpt_neox.final_layer_norm.bias": shift,
        "lm_head.weight": weight("output_layer.linear.weight"),
        "lm_head.bias": weight("output_layer.linear.bias"),
    }


def _condition(weight: Any) -> Tensor:
    """c = silu(sigma_map(0)): cosines of 0 are 1, sines are 0."""
    half = FREQUENCIES // 2
    embedding = torch.cat([torch.ones(half), torch.zeros(half)])
    inner = F.silu(F.linear(embedding, weight("sigma_map.mlp.0.weight"), weight("sigma_map.mlp.0.bias")))
    return F.silu(F.linear(inner, weight("sigma_map.mlp.2.weight"), weight("sigma_map.mlp.2.bias")))
