"""Block-causal checkpoints as others publish them, tiny and random: BD3-LM, SDAR, Fast-dLLM v2; and `dlm convert`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import published
import pytest
import torch
from test_adapt import saved
from torch import Tensor

from dlm.cli.main import main
from dlm.decoding.lm import DiffusionLM
from dlm.errors import UserError
from dlm.models.backbone import load_checkpoint
from dlm.models.interface import block_size, logits_shift

Forward = Callable[[published.Weights, Tensor, Tensor], Tensor]
KINDS: dict[str, tuple[Callable[..., published.Weights], Forward, str, int, int]] = {
    "bd3lm": (published.bd3lm, published.mdlm_logits, "MdlmForCausalLM", 4, 0),
    "sdar": (published.sdar, published.sdar_logits, "Qwen3ForCausalLM", 4, 0),
    "fast_dllm": (published.fast_dllm, published.dream_logits, "Qwen2ForCausalLM", 8, 1),
}


def load(kind: str, folder: Path) -> DiffusionLM:
    tokenizer = published.gpt2(folder.parent / "gpt2") if kind == "bd3lm" else None
    return DiffusionLM.load(folder, tokenizer=tokenizer)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_logits(kind: str, tmp_path: Path) -> None:
    """Blocks from the canvas's first position on, as they are published: an independent forward pass, within 1e-5."""
    write, forward, name, size, shift = KINDS[kind]
    weights = write(tmp_path / "model", seed=3)
    lm = load(kind, tmp_path / "model")
    model = lm.denoiser.model
    assert (type(model).__name__, block_size(model), logits_shift(model)) == (name, size, shift)
    ids = torch.randint(2, 290, (2, 12), generator=torch.Generator().manual_seed(1))
    ids[:, 6:] = lm.denoiser.mask_id
    block = torch.arange(12) // size
    sees = block[:, None] >= block
    found = lm.denoiser.logits(lm.denoiser.hidden(ids, sees.expand(2, -1, -1)).flatten(0, 1)).view(2, 12, -1)
    expected = forward(weights, ids, sees)
    expected[..., lm.denoiser.mask_id] = -torch.inf
    finite = expected.isfinite()
    assert (found[finite] - expected[finite]).abs().max() < 1e-5 * expected[finite].abs().max()
    assert (forward(weights, ids, torch.ones_like(sees))[finite] - expected[finite]).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_converted_it_writes_the_same(kind: str, tmp_path: Path) -> None:
    write, *_, size, _ = KINDS[kind]
    write(tmp_path / "model", seed=3)
    lm = load(kind, tmp_path / "model")
    setting = {"decoder": "low_confidence", "gen_length": 2 * size, "steps": size}
    out = lm.generate([[5, 6, 7], [8] * 9], **setting)
    assert not (out.tokens == lm.denoiser.mask_id).any()
    words = ["convert", str(tmp_path / "model"), str(tmp_path / "out")]
    main([*words, *(["--tokenizer", str(tmp_path / "gpt2")] if kind == "bd3lm" else [])])
    again = DiffusionLM.load(tmp_path / "out")
    assert again.denoiser.block_size == size
    assert torch.equal(again.generate([[5, 6, 7], [8] * 9], **setting).tokens, out.tokens)


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        ("bd3lm", {"adaln": False}, "adaln must be True for a BD3-LM run without time, got False"),
        ("bd3lm", {"time_conditioning": True}, "time_conditioning must be False for a BD3-LM run without time"),
        ("bd3lm", {"block_size": None}, "has no 'block_size', which layout bd3lm needs"),
        ("bd3lm", {"block_size": 0.5}, "diffusion_block_size must be a whole number from 0, got 0.5"),
        ("sdar", {"use_sliding_window": True}, "use_sliding_window must be False for blocks of positions, got True"),
        ("sdar", {"mask_token_id": None}, "the tokenizer's mask is 1, the model's 151669; they must match"),
    ],
)  # fmt: skip
def test_what_its_reading_cannot_keep(kind: str, changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    KINDS[kind][0](tmp_path / "model")
    file = tmp_path / "model/config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(UserError, match=told):
        load(kind, tmp_path / "model")


def test_block_sizes_of_sdar_and_fast_dllm_may_be_left_out(tmp_path: Path) -> None:
    """SDAR's block is 4, that of Fast-dLLM v2 32."""
    for kind, key, size in (("sdar", "block_size", 4), ("fast_dllm", "bd_size", 32)):
        KINDS[kind][0](tmp_path / kind)
        file = tmp_path / kind / "config.json"
        config = json.loads(file.read_text())
        del config[key]
        file.write_text(json.dumps(config))
        assert block_size(load_checkpoint(tmp_path / kind, causal=False)[0]) == size


# dlm convert --block-size


def test_an_autoregressive_model_becomes_block_causal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = saved(tmp_path / "ar")
    out = tmp_path / "blocks"
    main(["convert", str(folder), str(out), "--layout", "causal_lm", "--block-size", "4"])
    model, _ = load_checkpoint(out, causal=False)
    assert (block_size(model), logits_shift(model)) == (4, 1)
    main(["generate", str(out), "The harbour", "--json", "--steps", "4", "--gen-length", "8", "--decoder", "top_k"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["text"] == DiffusionLM.load(out).generate(["The harbour"], "top_k", steps=4, gen_length=8).texts[0]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--block-size", "0"], "--block-size must be at least 1, got 0"),
        (["--block-size", "4", "--causal"], "--block-size makes a block-causal denoiser, --causal keeps a model"),
    ],
)
def test_block_sizes_that_cannot_be(words: list[str], told: str, tmp_path: Path) -> None:
    folder, _ = saved(tmp_path / "ar")
    with pytest.raises(UserError, match=told):
        main(["convert", str(folder), str(tmp_path / "out"), *words])
    assert not (tmp_path / "out").exists()
