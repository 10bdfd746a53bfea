"""Tiny random checkpoints as LLaDA, Dream and MDLM are published, and their forward passes (docs/method.md §8).

Written from the page: nothing of dlm.models, nor, in the forward passes, of transformers' models in here.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny import SENTENCES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

Weights = dict[str, Tensor]
VOCAB, WIDTH, HEADS, LAYERS = 300, 32, 4, 2
ROWS = VOCAB + 20  # LLaDA and Dream have more rows than their tokenizers have tokens
LLADA: dict[str, Any] = {
    "architectures": ["LLaDAModelLM"],
    "auto_map": {"AutoConfig": "configuration_llada.LLaDAConfig", "AutoModel": "modeling_llada.LLaDAModelLM"},
    "model_type": "llada",
    "block_type": "llama",
    "layer_norm_type": "rms",
    "activation_type": "silu",
    "rope": True,
    "alibi": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "weight_tying": False,
    "d_model": WIDTH,
    "n_heads": HEADS,
    "n_kv_heads": HEADS,
    "n_layers": LAYERS,
    "mlp_hidden_size": 48,
    "max_sequence_length": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "vocab_size": ROWS,
    "embedding_size": ROWS,
    "mask_token_id": 1,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
DREAM: dict[str, Any] = {
    "architectures": ["DreamModel"],
    "auto_map": {"AutoConfig": "configuration_dream.DreamConfig", "AutoModel": "modeling_dream.DreamModel"},
    "model_type": "Dream",
    "hidden_act": "silu",
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "num_hidden_layers": LAYERS,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "vocab_size": ROWS,
    "mask_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
MDLM: dict[str, Any] = {
    "architectures": ["MDLM"],
    "auto_map": {"AutoConfig": "configuration_mdlm.MDLMConfig", "AutoModelForMaskedLM": "modeling_mdlm.MDLM"},
    "model_type": "mdlm",
    "vocab_size": VOCAB,
    "model_length": 64,
    "hidden_dim": WIDTH,
    "cond_dim": 16,
    "n_blocks": LAYERS,
    "n_heads": HEADS,
    "dropout": 0.1,
    "time_conditioning": False,
}


def _random(shapes: dict[str, tuple[int, ...]], seed: int) -> Weights:
    """Norms around 1, all else of a scale at which the context matters."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes.items():
        drawn = torch.randn(shape, generator=generator)
        found[name] = 1 + 0.1 * drawn if "norm" in name or "ln_f" in name else drawn * (0.35 if len(shape) > 1 else 0.1)
    return found


# --- LLaDA ------------------------------------------------------------------------------------------------------------


def llada_weights(seed: int = 0) -> Weights:
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (ROWS, WIDTH), "ln_f.weight": (WIDTH,)}
    shapes["ff_out.weight"] = (ROWS, WIDTH)
    for n in range(LAYERS):
        square = {f"blocks.{n}.{name}.weight": (WIDTH, WIDTH) for name in ("q_proj", "k_proj", "v_proj", "attn_out")}
        norms = {f"blocks.{n}.{name}.weight": (WIDTH,) for name in ("attn_norm", "ff_norm")}
        wide = {f"blocks.{n}.{name}.weight": (48, WIDTH) for name in ("ff_proj", "up_proj")}
        shapes |= {**square, **norms, **wide, f"blocks.{n}.ff_out.weight": (WIDTH, 48)}
    return {f"model.transformer.{name}": value for name, value in _random(shapes, seed).items()}


def llada_logits(weights: Weights, ids: Tensor) -> Tensor:
    w = {name.removeprefix("model.transformer."): value.float() for name, value in weights.items()}
    x = w["wte.weight"][ids]
    for n in range(LAYERS):
        b = {name.removeprefix(f"blocks.{n}."): value for name, value in w.items() if name.startswith(f"blocks.{n}.")}
        h = rms(x, b["attn_norm.weight"], 1e-5)
        q, k, v = (h @ b[f"{name}_proj.weight"].T for name in "qkv")
        x = x + attention(q, k, v, HEADS, HEADS, 500000.0) @ b["attn_out.weight"].T
        h = rms(x, b["ff_norm.weight"], 1e-5)
        x = x + (F.silu(h @ b["ff_proj.weight"].T) * (h @ b["up_proj.weight"].T)) @ b["ff_out.weight"].T
    return rms(x, w["ln_f.weight"], 1e-5) @ w["ff_out.weight"][:VOCAB].T


# --- Dream ------------------------------------------------------------------------------------------------------------


def dream_weights(seed: int = 0) -> Weights:
    narrow = WIDTH // 2  # two of four heads for keys and values
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (ROWS, WIDTH), "model.norm.weight": (WIDTH,)}
    shapes["lm_head.weight"] = (ROWS, WIDTH)
    for n in range(LAYERS):
        layer = f"model.layers.{n}"
        for name, rows in (("q", WIDTH), ("k", narrow), ("v", narrow)):
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = (rows, WIDTH)
            shapes[f"{layer}.self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (WIDTH, WIDTH)
        shapes |= {f"{layer}.mlp.{name}_proj.weight": (48, WIDTH) for name in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (WIDTH, 48)
        shapes |= {f"{layer}.{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
    return _random(shapes, seed)


def dream_logits(weights: Weights, ids: Tensor, sees: Tensor | None = None) -> Tensor:
    """Shifted: position i is predicted at i - 1, the first at itself."""
    w = {name: value.float() for name, value in weights.items()}
    x = w["model.embed_tokens.weight"][ids]
    for n in range(LAYERS):
        layer = f"model.layers.{n}"
        h = rms(x, w[f"{layer}.input_layernorm.weight"], 1e-6)
        names = [f"{layer}.self_attn.{name}_proj" for name in "qkv"]
        q, k, v = (h @ w[f"{name}.weight"].T + w[f"{name}.bias"] for name in names)
        x = x + attention(q, k, v, HEADS, 2, 1000000.0, sees) @ w[f"{layer}.self_attn.o_proj.weight"].T
        h = rms(x, w[f"{layer}.post_attention_layernorm.weight"], 1e-6)
        gate, up, down = (w[f"{layer}.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        x = x + (F.silu(h @ gate.T) * (h @ up.T)) @ down.T
    logits = rms(x, w["model.norm.weight"], 1e-6) @ w["lm_head.weight"][:VOCAB].T
    return torch.cat([logits[:, :1], logits[:, :-1]], dim=1)


# --- MDLM -------------------------------------------------------------------------------------------------------------


def mdlm_weights(seed: int = 0) -> Weights:
    cond = MDLM["cond_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "vocab_embed.embedding": (VOCAB, WIDTH),
        "sigma_map.mlp.0.weight": (cond, 256),
        "sigma_map.mlp.0.bias": (cond,),
        "sigma_map.mlp.2.weight": (cond, cond),
        "sigma_map.mlp.2.bias": (cond,),
        "output_layer.norm_final.weight": (WIDTH,),
        "output_layer.linear.weight": (VOCAB, WIDTH),
        "output_layer.linear.bias": (VOCAB,),
        "output_layer.adaLN_modulation.weight": (2 * WIDTH, cond),
        "output_layer.adaLN_modulation.bias": (2 * WIDTH,),
    }
    for n in range(LAYERS):
        block = f"blocks.{n}"
        shapes |= {
            f"{block}.norm1.weight": (WIDTH,),
            f"{block}.attn_qkv.weight": (3 * WIDTH, WIDTH),
            f"{block}.attn_out.weight": (WIDTH, WIDTH),
            f"{block}.norm2.weight": (WIDTH,),
            f"{block}.mlp.0.weight": (4 * WIDTH, WIDTH),
            f"{block}.mlp.0.bias": (4 * WIDTH,),
            f"{block}.mlp.2.weight": (WIDTH, 4 * WIDTH),
            f"{block}.mlp.2.bias": (WIDTH,),
            f"{block}.adaLN_modulation.weight": (6 * WIDTH, cond),
            f"{block}.adaLN_modulation.bias": (6 * WIDTH,),
        }
    return {f"backbone.{name}": value for name, value in _random(shapes, seed).items()}


def mdlm_logits(weights: Weights, ids: Tensor, sees: Tensor | None = None) -> Tensor:
    """σ = 0, the modulation computed as it stands in the network."""
    w = {name.removeprefix("backbone."): value.float() for name, value in weights.items()}

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(()))

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"]

    angles = torch.zeros(1) * torch.exp(-math.log(10000) * torch.arange(128) / 128)
    c = F.silu(linear(F.silu(linear(torch.cat([angles.cos(), angles.sin()]), "sigma_map.mlp.0")), "sigma_map.mlp.2"))
    x = w["vocab_embed.embedding"][ids]
    for n in range(LAYERS):
        block = f"blocks.{n}"
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = linear(c, f"{block}.adaLN_modulation").chunk(6)
        h = norm(x, f"{block}.norm1") * (1 + scale_a) + shift_a
        q, k, v = linear(h, f"{block}.attn_qkv").unflatten(-1, (3, WIDTH)).unbind(-2)
        x = x + gate_a * linear(attention(q, k, v, HEADS, HEADS, 10000.0, sees), f"{block}.attn_out")
        h = norm(x, f"{block}.norm2") * (1 + scale_m) + shift_m
        h = F.gelu(linear(h, f"{block}.mlp.0"), approximate="tanh")
        x = x + gate_m * linear(h, f"{block}.mlp.2")
    shift, scale = linear(c, "output_layer.adaLN_modulation").chunk(2)
    return linear(norm(x, "output_layer.norm_final") * (1 + scale) + shift, "output_layer.linear")


# --- Block-causal ones ------------------------------------------------------------------------------------------------

BD3LM = {
    **{key: value for key, value in MDLM.items() if key not in ("architectures", "auto_map")},
    **{"model_type": "bd3lm", "architectures": ["BD3LM"], "block_size": 4, "cross_attn": True, "adaln": True},
    **{"causal": False, "var_min": True, "attn_backend": "flex"},
}
FAST_DLLM = {
    **{key: value for key, value in DREAM.items() if key != "auto_map"},
    **{"model_type": "Fast_dLLM_Qwen", "architectures": ["Fast_dLLM_QwenForCausalLM"], "bd_size": 8},
}
SDAR = {
    **{key: value for key, value in DREAM.items() if key != "auto_map"},
    **{"model_type": "sdar", "architectures": ["SDARForCausalLM"], "block_size": 4, "head_dim": 8},
    **{"attention_bias": False},
}


def bd3lm(folder: Path, seed: int = 0) -> Weights:
    """As MDLM, with the range of the masking rates among the weights."""
    buffers = {"sampling_eps_min": torch.tensor(0.3), "sampling_eps_max": torch.tensor(0.8)}
    return write_checkpoint(folder, BD3LM, mdlm_weights(seed) | buffers)


def qwen_tokenizer(folder: Path) -> None:
    PreTrainedTokenizerFast(
        tokenizer_object=bpe(DREAM_TOKENS), eos_token="<|endoftext|>", mask_token="<|mask|>"
    ).save_pretrained(folder)


def fast_dllm(folder: Path, seed: int = 0) -> Weights:
    qwen_tokenizer(folder)
    return write_checkpoint(folder, FAST_DLLM, dream_weights(seed), torch.bfloat16)


def sdar_weights(seed: int = 0) -> Weights:
    """Dream's without biases, and a norm for the queries and the keys of each layer."""
    weights = {name: value for name, value in dream_weights(seed).items() if not name.endswith(".bias")}
    layers = [f"model.layers.{n}.self_attn.{name}_norm.weight" for n in range(LAYERS) for name in "qk"]
    return weights | _random(dict.fromkeys(layers, (WIDTH // HEADS,)), seed + 1)


def sdar(folder: Path, seed: int = 0) -> Weights:
    qwen_tokenizer(folder)
    return write_checkpoint(folder, SDAR, sdar_weights(seed))


def sdar_logits(weights: Weights, ids: Tensor, sees: Tensor | None = None) -> Tensor:
    """Queries and keys are normalised head by head; a position is predicted at itself."""
    w = {name: value.float() for name, value in weights.items()}
    x = w["model.embed_tokens.weight"][ids]
    for n in range(LAYERS):
        layer = f"model.layers.{n}"
        h = rms(x, w[f"{layer}.input_layernorm.weight"], 1e-6)
        q, k, v = (h @ w[f"{layer}.self_attn.{name}_proj.weight"].T for name in "qkv")
        q, k = (
            rms(one.unflatten(-1, (-1, WIDTH // HEADS)), w[f"{layer}.self_attn.{name}_norm.weight"], 1e-6).flatten(-2)
            for name, one in (("q", q), ("k", k))
        )
        x = x + attention(q, k, v, HEADS, 2, 1000000.0, sees) @ w[f"{layer}.self_attn.o_proj.weight"].T
        h = rms(x, w[f"{layer}.post_attention_layernorm.weight"], 1e-6)
        gate, up, down = (w[f"{layer}.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        x = x + (F.silu(h @ gate.T) * (h @ up.T)) @ down.T
    return rms(x, w["model.norm.weight"], 1e-6) @ w["lm_head.weight"][:VOCAB].T


# --- What they share --------------------------------------------------------------------------------------------------


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, key_heads: int, theta: float, sees: Tensor | None = None
) -> Tensor:
    """Everything sees everything, or what `sees` [length, length] says; rotary positions, second half against first."""
    batch, length, width = q.shape
    dim = width // heads
    angle = torch.arange(length)[:, None] / theta ** (torch.arange(0, dim, 2) / dim)
    cos, sin = angle.cos(), angle.sin()

    def rotated(x: Tensor, count: int) -> Tensor:
        first, second = x.view(batch, length, count, dim).transpose(1, 2).chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    values = v.view(batch, length, key_heads, dim).transpose(1, 2).repeat_interleave(heads // key_heads, 1)
    keys = rotated(k, key_heads).repeat_interleave(heads // key_heads, 1)
    scores = rotated(q, heads) @ keys.transpose(-1, -2) / math.sqrt(dim)
    scores = scores if sees is None else scores.masked_fill(~sees, -math.inf)
    return (scores.softmax(-1) @ values).transpose(1, 2).reshape(batch, length, width)


def write_checkpoint(
    folder: Path, config: dict[str, Any], weights: Weights, dtype: torch.dtype = torch.float32, shards: int = 1
) -> Weights:
    """Weights in `dtype`, in files as published; returns them as they were written."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": str(dtype).removeprefix("torch.")}))
    saved = {name: value.to(dtype) for name, value in weights.items()}
    if shards == 1:
        save_file(saved, folder / "model.safetensors", metadata={"format": "pt"})
        return saved
    places = {name: f"model-{n % shards + 1:05}-of-{shards:05}.safetensors" for n, name in enumerate(saved)}
    for file in set(places.values()):
        part = {name: value for name, value in saved.items() if places[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    size = sum(value.numel() * value.element_size() for value in saved.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return saved


def bpe(special_tokens: list[str], size: int = VOCAB) -> Tokenizer:
    """A byte-level BPE whose first entries are the special tokens."""
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    found.train_from_iterator(SENTENCES, trainer)
    return found


LLADA_TOKENS = [
    "<|endoftext|>",
    "<|mdm_mask|>",
    "<|startoftext|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
# LLaDA-8B-Instruct's: Llama 3's, which opens the assistant's turn asked or not. Nothing else there says that <|eot_id|>
# is an end.
LLADA_CHAT = (
    "{% for message in messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
# ChatML with a system prompt of its own: Dream-Instruct's, and SmolLM2-Instruct's.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DREAM_TOKENS = ["<|endoftext|>", "<|mask|>", "<|im_start|>", "<|im_end|>"]


def llada(folder: Path, seed: int = 0) -> Weights:
    """Two bfloat16 shards; a tokenizer that does not say which token is the mask."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe(LLADA_TOKENS),
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        chat_template=LLADA_CHAT,
    )
    tokenizer.save_pretrained(folder)
    return write_checkpoint(folder, LLADA, llada_weights(seed), torch.bfloat16, shards=2)


def dream(folder: Path, seed: int = 0) -> Weights:
    """Qwen2's two files, and a tokenizer_config.json that names a class of the repository."""
    folder.mkdir(parents=True, exist_ok=True)
    bpe(DREAM_TOKENS).model.save(str(folder))
    tokens = {str(i): {"content": text, "special": True} for i, text in enumerate(DREAM_TOKENS)}
    config = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "added_tokens_decoder": tokens,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
        "chat_template": CHATML,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return write_checkpoint(folder, DREAM, dream_weights(seed), torch.bfloat16)


def smollm2(folder: Path, seed: int = 0, *, positions: int = 192, spare: int = 0) -> None:
    """SmolLM2-Instruct's: an autoregressive Llama in bfloat16 with a tied head; its end-of-text is the end of turn.

    With spare rows, as other families have, it lies in shards.
    """
    config = LlamaConfig(
        vocab_size=VOCAB + spare,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        rope_theta=100000.0,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="20KB" if spare else "1GB")
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe(tokens),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=CHATML,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": tokens[3:]})
    tokenizer.save_pretrained(folder)


def mdlm(folder: Path, seed: int = 0) -> Weights:
    """No tokenizer: the network's is GPT-2's, in a folder of its own (`gpt2`)."""
    return write_checkpoint(folder, MDLM, mdlm_weights(seed))


def gpt2(folder: Path) -> Path:
    """GPT-2's two files, one entry fewer than MDLM's vocabulary: the mask is the last."""
    folder.mkdir(parents=True, exist_ok=True)
    bpe(["<|endoftext|>"], VOCAB - 1).model.save(str(folder))
    return folder
