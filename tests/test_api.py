"""The front door: what generate() promises about prompts, seeds and shapes; what it refuses; checkpoints on disk."""

import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_lm, tiny_model, tiny_tokenizer

from dlm.data.template import Template
from dlm.data.tokenizer import encode
from dlm.decoding.lm import DiffusionLM, Generation, cut_at_eos
from dlm.decoding.options import DECODERS, LowConfidenceOptions, TopKOptions
from dlm.errors import UserError
from dlm.models.backbone import load_checkpoint, save_checkpoint

PROMPTS = [[5, 9, 70], [100], [*range(200, 212)], [31, 0, 32, 33, 34, 35], [7, 7], [90, 80, 70, 60], [3] * 20, [2, 3]]


@pytest.fixture(scope="module")
def lm() -> DiffusionLM:
    """One whose answers end early now and then."""
    return tiny_lm(2, eos_scale=2.0)


def row(out: Generation, b: int) -> tuple:
    return (
        out.texts[b],
        out.tokens[b].tolist(),
        out.nfe[b].item(),
        out.leftover_masks[b].item(),
        out.commit_step[b].tolist(),
    )


def rows(out: Generation) -> list[tuple]:
    return [row(out, b) for b in range(len(out.texts))]


# --- Prompts and seeds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECODERS)
def test_an_empty_prompt(lm: DiffusionLM, name: str) -> None:
    """Unconditional generation, step by step with every decoder; its batch mate's answer stays what it is."""
    setting = {"decoder": name, "steps": 6, "gen_length": 12, **({"block_length": 4} if name == "semi_ar" else {})}
    out = lm.generate([[5, 9], []], **setting)
    assert (out.tokens[1] != lm.tokenizer.mask_token_id).all()
    assert out.leftover_masks.tolist() == [0, 0] and len(set(out.commit_step[1].tolist())) > 2
    assert row(out, 0) == row(lm.generate([[5, 9]], **setting), 0)


@pytest.mark.parametrize("gain", ["tanh", "linear", "step", "sigmoid"])
def test_without_context_conv_starts_anywhere(lm: DiffusionLM, gain: str) -> None:
    """A window that sees the whole canvas then weighs nothing: top_k's tokens, from nothing as from a prompt."""
    setting: dict[str, Any] = {"steps": 6, "gen_length": 12, "top_k": 5}
    conv = [lm.generate([[], []], "conv", **setting, gain=gain, kernel_size=33, seed=seed) for seed in range(3)]
    top_k = [lm.generate([[], []], "top_k", **setting, seed=seed) for seed in range(3)]
    assert [rows(out) for out in conv] == [rows(out) for out in top_k]
    filled = lm.infill([[lm.tokenizer.mask_token_id] * 12], "conv", steps=12, top_k=5, kernel_size=5, gain=gain)
    assert filled.leftover_masks.tolist() == [0] and len(set(filled.commit_step[0].tolist())) > 4


@pytest.mark.parametrize("name", ["categorical", "top_k", "conv", "semi_ar"])
def test_seeds(lm: DiffusionLM, name: str) -> None:
    """The same seed gives the same tokens whatever torch's own generator does; another seed, others."""
    options = {"block_length": 4} if name == "semi_ar" else {}
    setting = {"decoder": name, "steps": 6, "gen_length": 12, **options}
    first = lm.generate(PROMPTS, **setting, seed=1)
    torch.manual_seed(123)
    assert rows(first) == rows(lm.generate(PROMPTS, **setting, seed=1))
    other = lm.generate(PROMPTS, **setting, seed=2)
    assert (first.tokens != other.tokens).any(-1).sum() >= len(PROMPTS) - 1
    assert rows(lm.generate(PROMPTS, **setting)) == rows(lm.generate(PROMPTS, **setting, seed=0))


def test_equal_prompts_get_different_answers(lm: DiffusionLM) -> None:
    """The first is the one it would be alone; a repetition is itself repeatable, wherever it stands."""
    setting = {"decoder": "top_k", "steps": 6, "gen_length": 12}
    three = lm.generate([[5, 9], [5, 9], [5, 9]], **setting)
    assert len(set(map(tuple, three.tokens.tolist()))) == 3
    assert row(three, 0) == row(lm.generate([[5, 9]], **setting), 0)
    mixed = lm.generate([[8], [5, 9], [1, 2, 3], [5, 9], [5, 9]], **setting, batch_size=2)
    assert [row(mixed, b) for b in (1, 3, 4)] == rows(three)


def test_greedy_decoding_needs_no_seed(lm: DiffusionLM) -> None:
    outs = [lm.generate(PROMPTS, "low_confidence", steps=6, gen_length=12, seed=seed) for seed in (0, 1)]
    assert rows(outs[0]) == rows(outs[1])


# --- What comes back ------------------------------------------------------------------------------------------------


def test_fields(lm: DiffusionLM) -> None:
    out = lm.generate(PROMPTS, "conv", steps=3, gen_length=12, kernel_size=3)
    assert len(out.texts) == len(PROMPTS) and all(isinstance(text, str) for text in out.texts)
    assert out.tokens.shape == out.commit_step.shape == (len(PROMPTS), 12)
    assert out.nfe.shape == out.leftover_masks.shape == (len(PROMPTS),)
    for field in (out.tokens, out.nfe, out.leftover_masks, out.commit_step):
        assert field.dtype == torch.int64 and field.device.type == "cpu"
    assert (out.nfe[out.leftover_masks > 0] <= 4).all() and (out.leftover_masks > 0).any()
    assert (out.tokens != lm.tokenizer.mask_token_id).all()
    assert ((out.tokens >= 0) & (out.tokens < len(lm.tokenizer))).all()


@pytest.mark.parametrize("eos_fill", [False, True])
def test_tokens_are_padded_after_the_first_eos(lm: DiffusionLM, eos_fill: bool) -> None:
    """And the text is what stands before it."""
    out = lm.generate(PROMPTS, "top_k", steps=6, gen_length=12, eos_fill=eos_fill)
    ends = [tokens.index(0) if 0 in tokens else 12 for tokens in out.tokens.tolist()]
    assert min(ends) < 11 and max(ends) > 0
    for end, tokens, text in zip(ends, out.tokens.tolist(), out.texts, strict=True):
        assert tokens[end:] == [0] * (12 - end)
        assert text == lm.tokenizer.decode(tokens[:end])
        assert "<|" not in text


def test_models_and_results_are_one_line(lm: DiffusionLM) -> None:
    assert repr(lm) == "DiffusionLM(LlamaForCausalLM, 0.0M parameters, 300 tokens, 64 positions, fp32 on cpu)"
    out = lm.generate(["The fog", "a"], steps=4, gen_length=8)
    texts = textwrap.shorten(out.texts[0], 60)
    assert repr(out) in (f"Generation(2 texts, NFE {n}: {texts!r})" for n in ("4", "3 to 4", "2 to 4"))
    [filled] = lm.infill(text := "The harbour opens at noon, and [MASK:2] the fog, which stays until noon.").texts
    assert filled.startswith("The harbour opens at noon") and len(filled) > 60
    assert repr(lm.infill(text)) == f"Infilling(1 text, NFE 2: {textwrap.shorten(filled, 60)!r})"


def test_bfloat16_gives_whole_answers() -> None:
    lm = DiffusionLM(tiny_model(2), tiny_tokenizer(), precision="bf16")
    out = lm.generate(PROMPTS, "conv", steps=6, gen_length=12, kernel_size=5)
    assert (out.tokens != lm.tokenizer.mask_token_id).all() and out.tokens.dtype == torch.int64
    assert rows(out) == rows(lm.generate(PROMPTS, "conv", steps=6, gen_length=12, kernel_size=5))


def test_cut_at_eos_by_hand() -> None:
    tokens = torch.tensor([[5, 0, 7, 8], [5, 6, 7, 8], [0, 5, 0, 5]])
    assert cut_at_eos(tokens, 0).tolist() == [[5, 0, 0, 0], [5, 6, 7, 8], [0, 0, 0, 0]]


def test_text_prompts(lm: DiffusionLM) -> None:
    """A text, a list of texts and the text's ids are the same prompt; tokens spelt out in a text are text."""
    text = "The harbour <|mask|> of Velmora<|endoftext|>"
    [ids] = encode(lm.tokenizer, [text])
    assert not {lm.tokenizer.mask_token_id, lm.tokenizer.eos_token_id} & set(ids)
    one = rows(lm.generate(text, steps=4, gen_length=8))
    assert one == rows(lm.generate([text], steps=4, gen_length=8)) == rows(lm.generate([ids], steps=4, gen_length=8))
    assert rows(lm.generate(["", text], steps=4, gen_length=8))[1] == one[0]


def test_ids_are_the_same_prompt_in_any_container(lm: DiffusionLM) -> None:
    plain = rows(lm.generate(PROMPTS, steps=6, gen_length=12))
    assert plain == rows(lm.generate([torch.tensor(p, dtype=torch.long) for p in PROMPTS], steps=6, gen_length=12))
    assert plain == rows(lm.generate([np.array(p, dtype=np.int32) for p in PROMPTS], steps=6, gen_length=12))


def test_prompts_in_any_order_keeping_container(lm: DiffusionLM) -> None:
    setting = {"steps": 4, "gen_length": 8}
    two = rows(lm.generate([[5, 9], [7, 7]], **setting))
    for prompts in (
        ([5, 9], [7, 7]),
        torch.tensor([[5, 9], [7, 7]]),
        np.array([[5, 9], [7, 7]]),
        [(5, np.int64(9)), [torch.tensor(7), 7]],
        (prompt for prompt in ([5, 9], [7, 7])),
    ):
        assert rows(lm.generate(prompts, **setting)) == two
    assert rows(lm.generate(np.array(["The fog"]), **setting)) == rows(lm.generate("The fog", **setting))


@pytest.mark.parametrize("number", [np.int64, np.uint8, torch.tensor])
def test_whole_numbers_of_other_kinds(lm: DiffusionLM, number: Any) -> None:
    """The same numbers give the same tokens: noise is a function of the seed's value."""
    plain = rows(lm.generate(PROMPTS, "top_k", steps=4, gen_length=8, seed=3, batch_size=2, top_k=5))
    sizes = {"steps": number(4), "gen_length": number(8), "seed": number(3), "batch_size": number(2)}
    assert rows(lm.generate(PROMPTS, "top_k", **sizes, top_k=np.int32(5))) == plain
    gap = [[5, 1, 1, 9]]
    infilled = lm.infill(gap, "top_k", steps=number(2), seed=number(3)).tokens[0].tolist()
    assert infilled == lm.infill(gap, "top_k", steps=2, seed=3).tokens[0].tolist()


def test_the_tokenizer_s_other_users_change_no_answer(lm: DiffusionLM) -> None:
    """transformers sets the tokenizer anew at each call: special tokens are read again, and texts cut."""
    prompts = ["Say <|endoftext|> or <|mask|><|mask|> now", "The harbour of Velmora opens"]
    before = rows(lm.generate(prompts, steps=4, gen_length=8))
    lm.tokenizer("anything")
    lm.tokenizer(["anything", "a"], truncation=True, max_length=1, padding=True)
    assert rows(lm.generate(prompts, steps=4, gen_length=8)) == before


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(UserError, match="precision must be auto, fp32 or bf16, got 'fp16'"):
        DiffusionLM(tiny_model(2), tiny_tokenizer(), precision="fp16")


def test_defaults(lm: DiffusionLM) -> None:
    """Conv over low_confidence, with EOS-fill but for gaps; as many steps as tokens. A named decoder has its own."""
    window = LowConfidenceOptions(kernel_size=33)
    plain = lm.generate([[5, 9]], gen_length=8)
    assert rows(plain) == rows(lm.generate([[5, 9]], replace(window, eos_fill=True), steps=8, gen_length=8))
    assert lm.infill([[5, 1, 1, 1, 9]]).gaps == lm.infill([[5, 1, 1, 1, 9]], window, steps=3).gaps
    named = lm.generate([[5, 9]], "conv", gen_length=8)
    assert rows(named) == rows(lm.generate([[5, 9]], TopKOptions(kernel_size=33), steps=8, gen_length=8))
    ruled = lm.generate([[5, 9]], rule="top_k", top_k=3, eos_fill=False, gen_length=8)
    assert rows(ruled) == rows(lm.generate([[5, 9]], "conv", top_k=3, gen_length=8))
    checked = lm.generate([[5, 9]], TopKOptions(top_k=3), steps=5, gen_length=8)
    assert rows(checked) == rows(lm.generate([[5, 9]], "top_k", top_k=3, steps=5, gen_length=8))


# --- What is refused ------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "decoder": ({"decoder": "convv"}, ["'convv'", "conv", "low_confidence"]),
    "option": ({"kernel_sise": 5}, ["kernel_sise", "did you mean kernel_size"]),
    "option of another decoder": ({"decoder": "categorical", "top_k": 5}, ["categorical.top_k"]),
    "even kernel": ({"kernel_size": 4}, ["conv.kernel_size", "odd", "4"]),
    "no kernel": ({"kernel_size": -1}, ["conv.kernel_size", "odd", "-1"]),
    "no candidates": ({"decoder": "top_k", "top_k": 0}, ["top_k.top_k", "at least 1", "0"]),
    "gain": ({"gain": "relu"}, ["conv.gain", "tanh", "'relu'"]),
    "infinite gain": ({"conv_mult": float("inf")}, ["conv.conv_mult", "finite"]),
    "no gain": ({"conv_mult": 0}, ["conv.conv_mult", "above 0"]),
    "type": ({"decoder": "top_k", "top_k": "five"}, ["top_k.top_k", "whole number", "'five'"]),
    "rule": ({"rule": "conv"}, ["conv.rule", "categorical, top_k, low_confidence, threshold", "'conv'"]),
    "suffix": ({"decoder": "top_k", "suffix": "none"}, ["top_k.suffix", "full", "kernel_size", "'none'"]),
    "kv_cache": ({"decoder": "semi_ar", "block_length": 4, "kv_cache": "dual"}, ["semi_ar.kv_cache", "restrict"]),
    "late tokens": ({"decoder": "first_hitting", "eos": "last"}, ["first_hitting.eos", "free or never", "'last'"]),
    "late tokens of a rule": ({"rule": "categorical", "eos": "last"}, ["conv.eos", "free or never", "'last'"]),
    "revision": ({"decoder": "remdm", "eta": 0.5}, ["remdm.eta", "at most 0.1111", "0.5"]),
    "wino without masks": (
        {"rule": "wino", "suffix": "none"},
        ["conv.suffix", "full for wino", "'none'"],
    ),
    "a share": ({"decoder": "wino", "max_share": 1.5}, ["wino.max_share", "between 0 and 1", "1.5"]),
    "a history": ({"decoder": "klass", "history": 0}, ["klass.history", "at least 1", "0"]),
    "a decay": ({"decoder": "credit", "decay": -0.1}, ["credit.decay", "between 0 and 1", "-0.1"]),
    "a planner": ({"decoder": "p2", "planner": "bert"}, ["p2.planner", "self, random", "'bert'"]),
    "flag": ({"eos_fill": 1}, ["conv.eos_fill", "true or false", "1"]),
    "block": ({"decoder": "semi_ar", "block_length": 5}, ["semi_ar.block_length", "divide gen_length (12)", "5"]),
    "steps in blocks": ({"decoder": "semi_ar", "block_length": 4, "steps": 5}, ["steps", "multiple of the 3", "5"]),
    "long prompt": ({"prompts": [[5], [5] * 53]}, ["prompt 1", "53", "gen_length 12", "64"]),
    "no prompts": ({"prompts": []}, ["no prompts"]),
    "steps": ({"steps": 0}, ["steps", "at least 1", "0"]),
    "gen_length": ({"gen_length": 0}, ["gen_length", "at least 1", "0"]),
    "batch_size": ({"batch_size": 0}, ["batch_size", "at least 1", "0"]),
    "large id": ({"prompts": [[5], [5, 300]]}, ["prompt 1", "vocabulary", "300"]),
    "negative id": ({"prompts": [[-1]]}, ["prompt 0", "vocabulary"]),
    "ids without a list": ({"prompts": [5, 9]}, ["list of token ids", "5"]),
    "ids that are numbers with a point": ({"prompts": [[5.0]]}, ["list of token ids", "5.0"]),
    "a batch of a tokenizer": (
        {"prompts": tiny_tokenizer()(["The fog", "a"])},
        ["prompts must be a list", "BatchEncoding", "pass its input_ids"],
    ),
    "a mapping": ({"prompts": {"The fog": 1}}, ["prompts must be a list", "dict"]),
    "a mapping as a prompt": ({"prompts": [{5: 9}]}, ["prompt 0", "list of token ids", "dict"]),
    "a set": ({"prompts": {"The fog"}}, ["prompts must be a list", "set"]),
    "a set as a prompt": ({"prompts": ["a", {5, 9}]}, ["prompt 1", "list of token ids", "set"]),
    "bytes": ({"prompts": [b"The fog"]}, ["prompt 0", "list of token ids", "bytes"]),
    "no prompts at all": ({"prompts": None}, ["prompts must be a list", "None"]),
    "a number": ({"prompts": torch.tensor(5)}, ["prompts must be a list", "Tensor"]),
    "a prompt that is none": ({"prompts": ["a", None]}, ["prompt 1", "list of token ids", "None"]),
    "truth values": ({"prompts": [[True, 5]]}, ["prompt 0", "list of token ids", "True"]),
    "truth values in an array": ({"prompts": [np.array([True])]}, ["prompt 0", "list of token ids", "True"]),
    "numbers with a point in an array": ({"prompts": [torch.tensor([5.0])]}, ["prompt 0", "list of token ids", "5."]),
    "texts in a prompt": ({"prompts": [["The", "fog"]]}, ["prompt 0", "list of token ids", "'fog'"]),
    "half a pair": ({"prompts": ["a", "b\ud83d"]}, ["prompt 1", "not valid Unicode", "character 1"]),
    "a seed that is true": ({"seed": True}, ["seed must be a whole number", "True"]),
    "a seed that is numpy's true": ({"seed": np.True_}, ["seed must be a whole number", "True"]),
    "no seed": ({"seed": None}, ["seed must be a whole number", "None"]),
    "a seed with a point": ({"seed": 1.0}, ["seed must be a whole number", "1.0"]),
    "a length with a point": ({"gen_length": 12.0}, ["gen_length must be a whole number", "12.0"]),
    "no length": ({"gen_length": None}, ["gen_length must be a whole number", "None"]),
    "steps with a point": ({"steps": np.float32(6)}, ["steps must be a whole number", "6.0"]),
    "a text as a size": ({"batch_size": "8"}, ["batch_size must be a whole number", "'8'"]),
    "trace": ({"trace": "no"}, ["trace must be true or false", "'no'"]),
    "watch": ({"watch": True}, ["watch must be a function or None", "True"]),
    "no decoder": ({"decoder": 3}, ["decoder must be a decoder's name or its options", "3"]),
    "an option of another rule": ({"decoder": None, "top_k": 5}, ["conv.top_k must be given with rule: top_k", "5"]),
    "a class of options": ({"decoder": TopKOptions}, ["decoder must be a decoder's name or its options"]),
    "unchecked options": ({"decoder": TopKOptions(kernel_size=4)}, ["decoder.kernel_size", "odd", "4"]),
    "options beside options": ({"decoder": TopKOptions(kernel_size=33), "kernel_size": 5}, ["kernel_size"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line_that_names_it(lm: DiffusionLM, case: str) -> None:
    change, words = REFUSED[case]
    arguments = {"prompts": [[5, 9]], "decoder": "conv", "steps": 6, "gen_length": 12, **change}
    with pytest.raises(UserError) as caught:
        lm.generate(**arguments)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_the_longest_prompt_that_fits(lm: DiffusionLM) -> None:
    assert lm.generate([[5] * 52], steps=2, gen_length=12).tokens.shape == (1, 12)


def test_a_tokenizer_without_a_mask_is_refused() -> None:
    tokenizer = tiny_tokenizer().__class__(
        tokenizer_object=tiny_tokenizer().backend_tokenizer, eos_token="<|endoftext|>"
    )
    with pytest.raises(UserError, match="mask"):
        DiffusionLM(tiny_model(), tokenizer)


# --- Checkpoints ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(lm: DiffusionLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder, lm.denoiser.model, lm.tokenizer)
    return folder


def copy(saved: Path, folder: Path) -> Path:
    for file in saved.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def refused(path: Path | str, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        DiffusionLM.load(path, device="cpu")
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and all(word in message for word in words), message


@pytest.mark.parametrize("name", ["conv", "low_confidence"])
def test_round_trip(lm: DiffusionLM, saved: Path, name: str) -> None:
    again = DiffusionLM.load(saved, device="cpu")
    prompts = [*PROMPTS, "The harbour <|mask|> of Velmora"]
    settings = {"decoder": name, "steps": 6, "gen_length": 12}
    assert rows(again.generate(prompts, **settings)) == rows(lm.generate(prompts, **settings))
    assert again.template is None
    with pytest.raises(UserError, match="template"):
        again.prompt("Describe Velmora.")


def test_the_template_travels_with_the_checkpoint(saved: Path, tmp_path: Path) -> None:
    copy(saved, tmp_path)
    Template("Q: {instruction}\nA:", "Q: {instruction}\nI: {input}\nA:").save(tmp_path)
    again = DiffusionLM.load(tmp_path, device="cpu")
    assert again.prompt("Describe {input}.") == again._ids("Q: Describe {input}.\nA:")
    assert again.prompt("Describe it.", "Velmora") == again._ids("Q: Describe it.\nI: Velmora\nA:")
    assert again.prompt("It.", None) == again.prompt("It.")
    for arguments, told in (
        ((None,), "instruction must be text, got NoneType"),
        ((["It."],), "instruction must be text, got list"),
        (("It.", 3), "input must be text, got int"),
        (("It.\ud800",), "instruction: not valid Unicode"),
    ):
        with pytest.raises(UserError, match=told):
            again.prompt(*arguments)


def test_nothing_there(tmp_path: Path) -> None:
    refused(tmp_path / "missing")
    refused(tmp_path, "config.json")


@pytest.mark.parametrize("name", ["nowhere", "no where", "./nowhere", "a/b/c", ""])
def test_what_is_no_hub_name_is_not_asked_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", None)
    refused(name, "no such folder", "owner/name")


def test_the_hub_is_asked_once(tmp_path: Path) -> None:
    """One that takes connections and hangs up: a line, after one question. Offline, after none."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            while True:
                connection, _ = server.accept()
                asked.append(connection.recv(10_000).partition(b"\r\n")[0])
                connection.close()

        threading.Thread(target=listen, daemon=True).start()
        environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.getsockname()[1]}"}
        environment |= {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
        for offline, problem in (("1", "HF_HUB_OFFLINE is set"), ("0", "the hub gives no answer (")):
            done = subprocess.run(
                [sys.executable, "-m", "dlm.cli", "generate", "owner/nowhere", "a"],
                capture_output=True,
                text=True,
                env=environment | {"HF_HUB_OFFLINE": offline},
            )
            assert done.returncode == 2 and done.stderr.count("\n") == 1
            start = "error: owner/nowhere: no such folder, not in the hub's cache, and "
            assert done.stderr.startswith(start + problem), done.stderr
    assert [line for line in asked if b"owner" in line] == [b"HEAD /owner/nowhere/resolve/main/config.json HTTP/1.1"]


def test_a_causal_model_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, tiny_model(causal=True), tiny_tokenizer())
    refused(tmp_path, "masked diffusion")
    load_checkpoint(tmp_path, causal=True)


def test_a_denoiser_is_no_reference(saved: Path) -> None:
    with pytest.raises(UserError, match="autoregressive"):
        load_checkpoint(saved, causal=True)


@pytest.mark.parametrize("kept", [0.0, 0.0001, 0.5, 0.99])
def test_truncated_weights(saved: Path, tmp_path: Path, kept: float) -> None:
    weights = copy(saved, tmp_path) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: int(len(whole) * kept)])
    refused(tmp_path)


def test_no_weights(saved: Path, tmp_path: Path) -> None:
    (copy(saved, tmp_path) / "model.safetensors").unlink()
    refused(tmp_path)


def test_a_broken_config(saved: Path, tmp_path: Path) -> None:
    config = copy(saved, tmp_path) / "config.json"
    config.write_text(config.read_text()[:50])
    refused(tmp_path)


def test_no_tokenizer(saved: Path, tmp_path: Path) -> None:
    copy(saved, tmp_path)
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    refused(tmp_path, "tokenizer")


@pytest.mark.parametrize("layers", [1, 3])
def test_weights_that_are_not_the_config_s(saved: Path, tmp_path: Path, layers: int) -> None:
    """Weights of 2 layers: a third must not come up random, nor the second be dropped, without a word."""
    config = copy(saved, tmp_path) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_hidden_layers": layers}))
    refused(tmp_path)


def test_weights_of_another_shape(saved: Path, tmp_path: Path) -> None:
    config = copy(saved, tmp_path) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "intermediate_size": 64}))
    refused(tmp_path)


def test_a_vocabulary_that_does_not_fit(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model()
    model.resize_token_embeddings(250)
    save_checkpoint(tmp_path, model, tokenizer)
    refused(tmp_path, "300", "250")
