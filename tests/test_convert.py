"""`dlm convert` of autoregressive models: as denoisers, as they are, and out of GGUF files."""

import importlib.util
import json
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from test_adapt import adapted, causal_model, plain_tokenizer, saved
from transformers import PreTrainedModel

from dlm.cli.main import main
from dlm.data.tokenizer import encode, load_tokenizer
from dlm.decoding.lm import DiffusionLM
from dlm.errors import UserError
from dlm.models.adapt import adapt
from dlm.models.backbone import load_checkpoint, save_checkpoint
from dlm.models.interface import states

IDS = torch.randint(2, 300, (2, 12), generator=torch.Generator().manual_seed(3))


def convert(*words: object) -> None:
    main(["convert", *map(str, words)])


def same_denoiser(found: Path, expected: PreTrainedModel) -> None:
    """On masks, too; and with everything that is written in its configuration."""
    model, tokenizer = load_checkpoint(found, causal=False)
    ids = IDS.clone()
    ids[:, 4:7] = tokenizer.mask_token_id
    with torch.no_grad():
        assert torch.equal(states(model, ids), states(expected, ids))
    for key in ("is_causal", "logits_shift", "mask_token_id", "vocab_size"):
        assert getattr(model.config, key) == getattr(expected.config, key)
    assert tokenizer.mask_token_id == model.config.mask_token_id


@pytest.mark.parametrize("shift", [0, 1])
def test_an_adapted_folder_answers(tmp_path: Path, shift: int, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = saved(tmp_path / "ar")
    out = tmp_path / "mdlm"
    convert(folder, out, "--layout", "causal_lm", "--logits-shift", shift)
    assert capsys.readouterr().out == f"{out}: LlamaForCausalLM, 0.0M parameters, float32\n"
    model, _ = adapted(folder, shift)
    assert (model.config.logits_shift, model.config.mask_token_id) == (shift, 300)
    same_denoiser(out, model)
    options = ["--json", "--steps", "4", "--gen-length", "8", "--set", "kernel_size=5"]
    main(["generate", str(out), "The harbour", *options])
    expected = DiffusionLM.load(out).generate(["The harbour"], steps=4, gen_length=8, kernel_size=5)
    assert json.loads(capsys.readouterr().out)["text"] == expected.texts[0]


def test_the_logits_stay_where_they_are_unless_told(tmp_path: Path) -> None:
    folder, _ = saved(tmp_path / "ar")
    convert(folder, tmp_path / "mdlm", "--layout", "causal_lm")
    same_denoiser(tmp_path / "mdlm", adapted(folder, 1)[0])


def test_a_mask_among_the_entries(tmp_path: Path) -> None:
    folder, _ = saved(tmp_path / "ar")
    words = [folder, tmp_path / "mdlm", "--layout", "causal_lm", "--mask-token"]
    convert(*words, "<|reserved|>")
    model, tokenizer = load_checkpoint(tmp_path / "mdlm", causal=False)
    assert (model.config.mask_token_id, model.config.vocab_size, len(tokenizer)) == (1, 300, 300)
    same_denoiser(tmp_path / "mdlm", adapted(folder, 1, "<|reserved|>")[0])
    words[1] = tmp_path / "other"
    with pytest.raises(UserError, match="the mask token '<oops>' is no entry of it; name another, or none"):
        convert(*words, "<oops>")
    assert not (tmp_path / "other").exists()


def test_an_autoregressive_model_may_stay_one(tmp_path: Path) -> None:
    """Without a row for the mask; and it can be adapted later, to the same denoiser."""
    folder, original = saved(tmp_path / "ar")
    convert(folder, tmp_path / "copy", "--causal")
    model, _ = load_checkpoint(tmp_path / "copy", causal=True)
    ours, theirs = model.state_dict(), original.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    convert(tmp_path / "copy", tmp_path / "mdlm", "--layout", "causal_lm")
    same_denoiser(tmp_path / "mdlm", adapted(folder)[0])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--causal", "--layout", "causal_lm"],
            "^--causal keeps a model autoregressive, --layout causal_lm makes a denoiser of it; give one$",
        ),
        ([], r"a masked diffusion model \(config.is_causal: false\) is needed here"),
    ],
)
def test_what_it_refuses_of_an_autoregressive_model(tmp_path: Path, words: list[str], told: str) -> None:
    folder, _ = saved(tmp_path / "ar")
    with pytest.raises(UserError, match=told):
        convert(folder, tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [["--causal"], ["--layout", "causal_lm"]])
def test_a_denoiser_is_no_autoregressive_model(tmp_path: Path, words: list[str]) -> None:
    convert(saved(tmp_path / "ar")[0], tmp_path / "mdlm", "--layout", "causal_lm")
    with pytest.raises(UserError, match="an autoregressive model is needed here"):
        convert(tmp_path / "mdlm", tmp_path / "out", *words)


# GGUF


def write_gguf(path: Path, model: Any, weights: dict[str, torch.Tensor] | None = None) -> None:
    """A Llama as llama.cpp writes it: its tensors' names, the halves of each head of q and k interleaved."""
    config, tokenizer = model.config, plain_tokenizer()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    entries = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(entries)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if entry.startswith("<|") else normal for entry in entries])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    parts = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights = weights or model.state_dict()
    tensors = {
        "token_embd": weights["model.embed_tokens.weight"],
        "output_norm": weights["model.norm.weight"],
        **({} if config.tie_word_embeddings else {"output": weights["lm_head.weight"]}),
    }
    for layer in range(config.num_hidden_layers):
        for ours, theirs in parts.items():
            weight = weights.get(f"model.layers.{layer}.{ours}.weight")
            if weight is None:
                continue
            if theirs in heads:
                rows = weight.view(heads[theirs], 2, -1, weight.shape[1])
                weight = rows.transpose(1, 2).reshape(weight.shape)
            tensors[f"blk.{layer}.{theirs}"] = weight
    for name, weight in tensors.items():
        writer.add_tensor(f"{name}.weight", np.ascontiguousarray(weight.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, causal_model("llama", 300))
    return path


@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_file_is_the_model_that_it_was_written_from(tmp_path: Path, tied: bool) -> None:
    path, original = tmp_path / "tiny.gguf", causal_model("llama", 300, tied)
    write_gguf(path, original)
    model, tokenizer = load_checkpoint(path, causal=True)
    ours, theirs = model.state_dict(), original.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    forward: Any = model
    with torch.no_grad():
        torch.testing.assert_close(forward(IDS).logits, original(input_ids=IDS).logits)
    assert (tokenizer.eos_token_id, tokenizer.mask_token_id, len(tokenizer)) == (0, 300, 301)
    texts = ["The harbour of Velmora opens at dawn.", "  two spaces\n<|endoftext|>, ü"]
    assert encode(tokenizer, texts) == encode(load_tokenizer(saved(tmp_path / "ar")[0]), texts)


def test_a_gguf_file_adapted_and_saved(tiny_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By hand and by the command alike; and the folder answers."""
    model, tokenizer = load_checkpoint(tiny_gguf, causal=True)
    adapt(model, tokenizer, logits_shift=1)
    save_checkpoint(tmp_path / "by hand", model, tokenizer)
    same_denoiser(tmp_path / "by hand", model)
    convert(tiny_gguf, tmp_path / "mdlm", "--layout", "causal_lm")
    same_denoiser(tmp_path / "mdlm", model)
    capsys.readouterr()
    main(["generate", str(tmp_path / "mdlm"), "Fog", "--steps", "2", "--gen-length", "4", "--decoder", "top_k"])
    assert capsys.readouterr().out.endswith("\n")


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_a_gguf_file_that_stays_autoregressive(tiny_gguf: Path, tmp_path: Path, dtype: str) -> None:
    """`make weights`: float32, or what is asked for."""
    convert(tiny_gguf, tmp_path / "ar", "--causal", "--dtype", dtype)
    model, _ = load_checkpoint(tmp_path / "ar", causal=True, dtype="auto")
    assert model.dtype == (torch.float32 if dtype == "auto" else torch.bfloat16)
    embeddings = causal_model("llama", 300).get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight, embeddings.to(model.dtype))


def test_what_is_wrong_with_a_gguf_file(tiny_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a masked diffusion model .* is needed here"):
        load_checkpoint(tiny_gguf, causal=False)
    with pytest.raises(UserError, match="no such file; give the GGUF file's path"):
        load_checkpoint(tmp_path / "none.gguf", causal=True)
    whole = tiny_gguf.read_bytes()
    for name, raw in {"text": b"The harbour", "empty": b"", "half": whole[: len(whole) // 2]}.items():
        broken = tmp_path / f"{name}.gguf"
        broken.write_bytes(raw)
        with pytest.raises(UserError) as caught:
            load_checkpoint(broken, causal=True)
        assert str(broken) in str(caught.value) and "\n" not in str(caught.value)


def test_a_gguf_file_that_lacks_a_weight(tmp_path: Path) -> None:
    """It would be drawn at random."""
    model: Any = causal_model("llama", 300)
    weights = model.state_dict()
    weights.pop("model.layers.0.mlp.up_proj.weight")
    write_gguf(tmp_path / "tiny.gguf", model, weights)
    with pytest.raises(UserError, match=r"missing keys: model.layers.0.mlp.up_proj.weight; mend either"):
        load_checkpoint(tmp_path / "tiny.gguf", causal=True)


def test_without_the_package_gguf(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "gguf" else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    told = r"tiny.gguf: the package gguf reads such files; install it \(pip install gguf\)$"
    with pytest.raises(UserError, match=told):
        load_checkpoint(tiny_gguf, causal=True)
    with pytest.raises(UserError, match=told):
        load_tokenizer(tiny_gguf)
    with pytest.raises(UserError, match=told):
        convert(tiny_gguf, tmp_path / "out", "--layout", "causal_lm")
    assert not (tmp_path / "out").exists()
