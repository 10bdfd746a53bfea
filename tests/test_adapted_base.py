"""Training from causal to full attention; and the stages on a base that was adapted (base.init: adapt)."""

import functools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scripts import ROOT, stage
from test_adapt import saved
from test_training import EOS, LENGTH, MASK, TRAIN, TRAINING, VALID, elsewhere, one_thread, tiny_model  # noqa: F401 (fixtures)
from tiny import SENTENCES
from torch import Tensor
from transformers import PreTrainedModel

from dlm.config.yaml import dump_yaml, load_yaml
from dlm.data.tokenizer import load_tokenizer
from dlm.diffusion.forward import annealed, row_draws
from dlm.files import read_json, read_jsonl
from dlm.models.backbone import load_checkpoint
from dlm.pipeline.profiles import merge
from dlm.training import trainer
from dlm.training.collators import SftCollator
from dlm.training.fit import fit
from dlm.training.objectives import DiffusionTrainer, step_seed

Seen = list[tuple[bool, Tensor | None]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    """Every forward pass of a trainer: whether the model was in training, and the attention that it was given."""
    found: Seen = []
    real = trainer.states

    def states(model: Any, ids: Tensor, attention: Tensor | None = None) -> Tensor:
        found.append((model.training, attention))
        return real(model, ids, attention)

    monkeypatch.setattr(trainer, "states", states)
    yield found


def annealed_run(over: int, model: PreTrainedModel | None = None, **changes: Any) -> list[dict[str, float]]:
    collator = SftCollator(LENGTH, EOS, padding=1.0)
    make = functools.partial(DiffusionTrainer, mask_id=MASK, data_collator=collator, anneal_steps=over)
    return fit("base", make, model or tiny_model(), TRAIN, VALID, replace(TRAINING, **changes), 7)[1]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_attention_becomes_full_step_by_step(seen: Seen, accumulation: int) -> None:
    """Of 12 steps the first 5 see 0/5 to 4/5 of what comes later; every micro-batch of a step the same, evaluation all.

    The shares by hand: of 24 positions 24 · 23 / 2 = 276 pairs look ahead.
    """
    annealed_run(5, batch_size=4 // accumulation, gradient_accumulation=accumulation)
    trained = [attention for training, attention in seen if training]
    assert len(trained) == TRAINING.steps * accumulation
    assert all(attention is None for attention in trained[5 * accumulation :])
    for place, attention in enumerate(trained[: 5 * accumulation]):
        step = place // accumulation
        draw = row_draws([step_seed(7, "anneal", step)], LENGTH * LENGTH).view(LENGTH, LENGTH)
        assert attention is not None and torch.equal(attention, annealed(draw, step / 5))
        ahead = attention.triu(1).sum().item() / 276
        assert attention.tril().sum() == 276 + 24 and ahead == pytest.approx(step / 5, abs=0.1 * (step > 0))
    evaluated = [attention for training, attention in seen if not training]
    assert len(evaluated) == 4 * len(VALID) * accumulation // 4 and all(attention is None for attention in evaluated)


def test_without_annealing_attention_is_full_at_once(seen: Seen) -> None:
    annealed_run(0)
    assert seen and all(attention is None for _, attention in seen)


def test_the_first_step_is_one_of_the_causal_model() -> None:
    """Its loss and its gradients; a model without a causal mask has others, and all three start alike."""
    causal = tiny_model()
    causal.config.is_causal = True
    one = {"steps": 1, "eval_every": 1}
    annealing, kept, full = annealed_run(1, **one), annealed_run(0, causal, **one), annealed_run(0, **one)
    for name in ("loss", "grad_norm"):
        assert annealing[1][name] == pytest.approx(kept[1][name], rel=1e-5)
        assert abs(annealing[1][name] - full[1][name]) > 1e-4 * full[1][name]
    assert annealing[0] == full[0] != kept[0]  # held-out rows, before training: with full attention


# The stages


def prepared(folder: Path, **base: Any) -> Path:
    """A tiny autoregressive checkpoint, records and text of a few sentences, and parameters for them."""
    saved(folder / "ar")
    rows = [{"instruction": f"Say {i}.", "input": "", "output": SENTENCES[i % 4][: 8 + i % 9]} for i in range(24)]
    (folder / "records.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "text.txt").write_text("\n\n".join(SENTENCES * 5))
    params = load_yaml((ROOT / "profiles/builtin.yaml").read_text())
    few = {"steps": 4, "batch_size": 4, "eval_every": 2, "save_every": 2, "optimizer": "adamw", "learning_rate": 1e-3}
    changes: dict[str, Any] = {
        "data": {
            "source": "file",
            "valid_size": 4,
            "eval_size": 3,
            "max_prompt_length": 24,
            "window": 32,
            "file": {"path": "records.jsonl"},
        },
        "template": {"prompt": "{instruction}\n", "prompt_with_input": "{instruction}\n{input}\n"},
        "tokenizer": {"source": "given", "path": "ar"},
        "base": {
            "init": "adapt",
            "checkpoint": "ar",
            "anneal_steps": 2,
            "rows": "text",
            "text": "text.txt",
            "records_share": 0.25,
            "held_out": 0.2,
            "sequence_length": 16,
            "training": few,
        },
        "reference": {"init": "checkpoint", "checkpoint": "ar", "training": {**few, "steps": 2}},
        "sft": {"training": few},
        "r2ft": {"training": {**few, "steps": 2}},
        "decode": {"seeds": [0], "steps": [4], "gen_length": 16},
        "decoding": {
            "semi_ar": {"block_length": 8},
            "conv": {"rule": "top_k", "top_k": 5, "kernel_size": 33, "gain": "tanh"},
        },
        "ablation": {"steps": 8},
        "sweeps": {"steps": [4], "size_steps": [4], "blocks": [8], "kernels": [5]},
    }
    merge(params, changes)
    merge(params, base)
    (folder / "params.yaml").write_text(dump_yaml(params))
    return folder


@pytest.mark.parametrize(("shift", "mask_token", "mask_id"), [(1, None, 300), (0, "<|reserved|>", 1)])
def test_an_adapted_base_goes_through_the_stages(
    tmp_path: Path, seen: Seen, shift: int, mask_token: str | None, mask_id: int
) -> None:
    folder = prepared(tmp_path, base={"logits_shift": shift}, tokenizer={"mask_token": mask_token})
    stage("prepare", folder=folder)
    stage("base", folder=folder)
    given = [attention for training, attention in seen if training]
    assert [attention is None for attention in given] == [False, False, True, True]
    assert given[0] is not None and torch.equal(given[0], torch.ones(16, 16, dtype=torch.bool).tril())
    curve = read_json(folder / "build/models/base/curve.json")
    assert [row["step"] for row in curve] == [0, 2, 4]

    stage("sft", "--variant", "sft", folder=folder)
    models = {}
    for name in ("base", "sft"):
        model, tokenizer = load_checkpoint(folder / "build/models" / name, causal=False)
        assert (model.config.logits_shift, model.config.mask_token_id, tokenizer.mask_token_id) == (
            shift,
            mask_id,
            mask_id,
        )
        models[name] = model.get_input_embeddings().weight
        assert len(models[name]) == max(300, mask_id + 1)
    original = load_checkpoint(folder / "ar", causal=True)[0].get_input_embeddings().weight
    assert not torch.equal(models["base"][:300], original) and not torch.equal(models["sft"], models["base"])

    stage("decode", "--checkpoint", "sft", "--decoder", "conv", folder=folder)
    answers = read_jsonl(folder / "build/answers/sft-conv.jsonl")
    assert len(answers) == 3
    assert all(mask_id not in row["tokens"] and row["leftover_masks"] == 0 for row in answers)
    assert all(0 <= token < 300 for row in answers for token in row["tokens"])


def test_the_data_must_have_the_checkpoints_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With an entry for its mask here and none there, they are two."""
    folder = prepared(tmp_path)
    tokenizer = load_tokenizer(folder / "ar", "<|reserved|>")
    tokenizer.save_pretrained(folder / "other")
    params = load_yaml((folder / "params.yaml").read_text())
    params["tokenizer"]["path"] = "other"
    (folder / "params.yaml").write_text(dump_yaml(params))
    stage("prepare", folder=folder)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        stage("base", folder=folder)
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "base.checkpoint (ar) has another tokenizer than the data; set tokenizer.source: given" in told


def test_a_denoiser_is_not_adapted_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = prepared(tmp_path, base={"checkpoint": str(ROOT / "data/base/mdlm")})
    stage("prepare", folder=folder)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        stage("base", folder=folder)
    assert "an autoregressive model is needed here; give the path of one" in capsys.readouterr().err
