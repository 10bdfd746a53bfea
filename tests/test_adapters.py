"""Low-rank adapters: what is trained, merged, saved, resumed; what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training import TOKENIZER, TRAINING, At, Crash, Started, crash, elsewhere, one_thread, sft, tiny_model
from torch import Tensor

from dlm.config.training import LoraParams
from dlm.decoding.lm import DiffusionLM
from dlm.errors import UserError
from dlm.models.adapters import base_of, is_adapter, merged, unwrapped
from dlm.models.backbone import load_checkpoint, load_trainable, save_checkpoint
from dlm.training.fit import save_trained

__all__ = ["elsewhere", "one_thread"]  # fixtures: a folder of its own, one thread
LORA = LoraParams(rank=4, alpha=16, dropout=0.1, targets=("q_proj", "k_proj", "v_proj"), merge=True)


def base(folder: Path) -> Path:
    save_checkpoint(folder, tiny_model(), TOKENIZER)
    return folder


def weights(model: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_only_adapters_train() -> None:
    """q, k and v change when merged, nothing else; before training the model is its base."""
    whole, _ = load_checkpoint(base(Path("base")), causal=False)
    model, _ = load_trainable("base", LORA, 3)
    ids = torch.randint(0, 250, (2, 9))
    model.eval()
    with torch.inference_mode():
        assert torch.equal(unwrapped(model)(ids).logits, whole(ids).logits)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    curve = sft(model)
    assert curve[-1]["eval_loss"] < curve[0]["eval_loss"]
    before, after = weights(whole), weights(merged(model))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if any(target in name for target in LORA.targets)}


@pytest.mark.parametrize("merge", [True, False])
def test_saved_and_loaded(merge: bool) -> None:
    """Merged or alone: the same logits; the adapter alone goes on being trained."""
    model, tokenizer = load_trainable(base(Path("base")), LORA, 3)
    sft(model)
    model.eval()
    ids = torch.randint(0, 250, (2, 9))
    with torch.inference_mode():
        expected = unwrapped(model)(ids).logits
    save_trained(Path("out"), model, tokenizer, [], merge=merge)
    assert is_adapter("out") != merge and Path("out/model.safetensors").exists() == merge
    again, _ = load_checkpoint("out", causal=False)
    with torch.inference_mode():
        torch.testing.assert_close(again(ids).logits, expected, atol=1e-5, rtol=1e-5)
    lm = DiffusionLM.load("out")
    assert lm.generate([[5, 6]], "top_k", steps=2, gen_length=4).tokens.shape == (1, 4)
    if not merge:
        config = json.loads(Path("out/adapter_config.json").read_text())
        assert config["target_modules"] == sorted(LORA.targets) and not Path("out/README.md").exists()
        assert base_of("out") == "base"
        further, _ = load_trainable("out", LORA, 3)
        with torch.inference_mode():
            torch.testing.assert_close(unwrapped(further.eval())(ids).logits, expected, atol=1e-5, rtol=1e-5)
        assert any(value.requires_grad for value in further.parameters())


def test_an_interrupted_run_goes_on() -> None:
    base(Path("base"))
    whole, _ = load_trainable("base", LORA, 3)
    expected = sft(whole)
    with pytest.raises(Crash):
        sft(load_trainable("base", LORA, 3)[0], TRAINING, At(10, crash))
    model, _ = load_trainable("base", LORA, 3)
    assert sft(model) == expected
    ours, theirs = weights(model), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("change", [{"alpha": 2 * LORA.alpha}, {"dropout": 0.25}], ids=str)
def test_other_adapters_do_not_take_over_a_checkpoint(change: dict[str, float]) -> None:
    """Neither number is a weight."""
    base(Path("base"))
    with pytest.raises(Crash):
        sft(load_trainable("base", LORA, 3)[0], TRAINING, At(10, crash))
    started = Started()
    with pytest.raises(Crash):
        sft(load_trainable("base", replace(LORA, **change), 3)[0], TRAINING, started, At(1, crash))
    assert started.step == 0


def test_a_run_cut_after_its_last_checkpoint() -> None:
    params = replace(TRAINING, lr_schedule="constant")
    base(Path("base"))
    whole, _ = load_trainable("base", LORA, 3)
    expected = sft(whole, params)
    with pytest.raises(Crash):
        sft(load_trainable("base", LORA, 3)[0], params, At(12, crash, saved=True))
    model, _ = load_trainable("base", LORA, 3)
    assert sft(model, params) == expected
    ours, theirs = weights(model), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("adapters", [False, True])
def test_gradient_checkpointing_changes_nothing(adapters: bool) -> None:
    base(Path("base"))
    lora = replace(LORA, rank=4 if adapters else 0, dropout=0.0)
    curves = [
        sft(load_trainable("base", lora, 3)[0], replace(TRAINING, gradient_checkpointing=on)) for on in (False, True)
    ]
    for plain, recomputed in zip(*curves, strict=True):
        assert plain == pytest.approx(recomputed, rel=1e-5)


def test_half_precision_bases_stay_so() -> None:
    """Adapters are float32, what they leave alone keeps its type, also in a merged checkpoint."""
    save_checkpoint(Path("base"), torch.nn.Module.to(tiny_model(), torch.bfloat16), TOKENIZER)
    model, tokenizer = load_trainable("base", LORA, 3)
    kinds = {value.requires_grad: value.dtype for value in model.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    save_trained(Path("out"), model, tokenizer, [])
    assert load_checkpoint("out", causal=False, dtype="auto")[0].dtype == torch.bfloat16


def test_what_is_refused() -> None:
    base(Path("base"))
    with pytest.raises(UserError, match=r"sft.lora.targets: query_key_value is no part of base; it has .*k_proj"):
        load_trainable("base", replace(LORA, targets=("q_proj", "query_key_value")), 3)
    model, tokenizer = load_trainable("base", LORA, 3)
    save_trained(Path("out"), model, tokenizer, [], merge=False)
    whole = Path("out/adapter_model.safetensors").read_bytes()
    Path("out/adapter_model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="out: no adapter could be loaded"):
        load_checkpoint("out", causal=False)
    config = json.loads(Path("out/adapter_config.json").read_text())
    Path("out/adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(UserError, match="names no base_model_name_or_path"):
        load_checkpoint("out", causal=False)
