"""The stage block_diffusion: its parameters, its table by hand, and the stage on the shipped models."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripts import ROOT, stage
from test_adapted_base import prepared as adapted
from test_params import edited
from test_report import cell

from dlm.analysis.blocks import block_figures, block_table
from dlm.config.params import load_params, parse_params
from dlm.config.yaml import dump_yaml
from dlm.errors import UserError
from dlm.files import read_json, read_jsonl, write_json
from dlm.models.backbone import load_checkpoint
from dlm.models.interface import block_size
from dlm.pipeline.profiles import merge


def results(checkpoint: str, decoder: str) -> list[dict[str, Any]]:
    return [{**cell(checkpoint, decoder, nfe=float(steps)), "steps": steps} for steps in (16, 64)]


def test_a_row_says_what_was_chosen_or_what_the_model_has() -> None:
    """conv is chosen for the matrix alone: the block-causal model's has its own options."""
    settings = {("conv", 16): {"kernel_size": 5}, ("conv", 64): {"kernel_size": 17}}
    rows = block_table(results("sft", "conv"), settings, results("block_diffusion", "conv"), 4)
    assert [(row["checkpoint"], row["steps"], row["setting"]) for row in rows] == [
        ("sft", 16, "kernel_size 5"),
        ("sft", 64, "kernel_size 17"),
        ("block_diffusion", 16, "blocks of 4"),
        ("block_diffusion", 64, "blocks of 4"),
    ]
    (figure,) = block_figures(rows)
    for panel in figure.data["panels"]:
        shown = [(line["label"], line["checkpoint"], line["x"]) for line in panel["lines"]]
        assert shown == [("conv", "sft", [16.0, 64.0]), ("conv", "block_diffusion", [16.0, 64.0])]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"t_range": [0.8, 0.3]}, r"block_diffusion.t_range must be null, or two rates .* got \(0.8, 0.3\)$"),
        ({"t_range": [0.0, 1.0]}, r"block_diffusion.t_range must be null, or two rates above 0"),
        ({"decoders": {}}, r"block_diffusion.decoders must be a decoder or more, got {}$"),
        ({"decoders": {"top_k": {"top_k": [1, 2]}}}, r"block_diffusion.decoders.top_k must be without lists, got"),
        ({"decoders": {"semi_ar": {}}}, r"decoders.semi_ar.block_length must be 16 with variant restrict, or left out"),
        ({"block_size": 24}, r"low_confidence.block_length must divide gen_length \(128\), got 24$"),
        ({"block_size": 1}, r"low_confidence: steps must be a multiple of the 128 blocks"),
    ],
)
def test_parameters_that_cannot_be(changes: dict[str, Any], told: str) -> None:
    given = {f"block_diffusion.{name}": value for name, value in changes.items()}
    with pytest.raises(UserError, match=told):
        parse_params(dump_yaml(edited(given)), "params.yaml")


def test_the_shipped_decoders_are_inside_the_blocks() -> None:
    blocks = load_params(ROOT / "params.yaml").block_diffusion
    assert blocks.bounds is None
    for name in blocks.decoders:
        options = blocks.options(name)
        assert (options.block_length, options.variant) == (blocks.block_size, "restrict")


def prepared(folder: Path, **changes: Any) -> Path:
    """The shipped models with their data, and the numbers of two cells that were evaluated."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    few = {"steps": 1, "batch_size": 2, "eval_every": 2, "warmup_steps": 1}
    small = {
        "data": {"valid_size": 2, "eval_size": 3, "builtin": {"train_size": 40}},
        "sft": {"training": few},
        "r2ft": {"training": few},
        "decode": {"gen_length": 64, "steps": [4, 8]},
        "block_diffusion": {"beside": ["sft-conv"], **changes},
        "evaluate": {"bootstrap_samples": 20},
    }
    merge(params, small)
    params["block_diffusion"]["decoders"] = {"low_confidence": {"eos_fill": True}, "conv": {"kernel_size": 9}}
    params["data"]["builtin"]["grammar"] = str(ROOT / "data/builtin/grammar.yaml")
    params["tokenizer"]["path"] = str(ROOT / "data/base/mdlm")
    folder.mkdir(exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    stage("prepare", folder=folder)
    models = folder / "build/models"
    shutil.copytree(ROOT / "data/base/mdlm", models / "base")
    shutil.copytree(ROOT / "data/base/reference", models / "reference")
    write_json(models / "reference/training_perplexities.json", [3.0, 4.0, 5.0])
    answers = [{"id": number, "seed": 0, "answer": "Fog.", "tokens": [5]} for number in range(3)]
    (models / "reference/answers.jsonl").write_text("".join(f"{json.dumps(a)}\n" for a in answers))
    beside = [{**row, "steps": steps} for row, steps in zip(results("sft", "conv"), (4, 8), strict=True)]
    write_json(folder / "build/evaluation/sft-conv.json", beside)
    return folder


def test_the_stage(tmp_path: Path) -> None:
    """As many steps as SFT and R2FT together; a row for each decoder and budget behind the cell; a model that loads."""
    folder = prepared(tmp_path)
    stage("block_diffusion", folder=folder)
    weights, out = folder / "build/families/block_diffusion", folder / "results/block_diffusion"
    assert block_size(load_checkpoint(weights, causal=False)[0]) == 16
    assert read_json(weights / "curve.json")[-1]["step"] == 2
    rows = read_json(out / "table.json")
    assert [(row["checkpoint"], row["decoder"], row["steps"]) for row in rows] == [
        ("sft", "conv", 4),
        ("sft", "conv", 8),
        *[("block_diffusion", name, steps) for steps in (4, 8) for name in ("conv", "low_confidence")],
    ]
    own = [row for row in rows if row["checkpoint"] == "block_diffusion"]
    assert all(row["n"] == 3 and row["quality"] <= 1 and row["nfe"] > 0 for row in own)
    assert all(row["nfe"] <= row["steps"] for row in own if row["decoder"] == "low_confidence")
    assert {path.name for path in (out / "figures").iterdir()} == {
        f"passes.{ending}" for ending in ("png", "svg", "pdf", "json")
    }
    assert "figures/passes.png" in (out / "table.md").read_text()


def test_a_base_with_blocks_is_trained_as_one(tmp_path: Path) -> None:
    """An autoregressive checkpoint, adapted to blocks of 4 and trained; SFT goes by what the base is; answers."""
    folder = adapted(tmp_path, base={"block_size": 4, "anneal_steps": 0})
    stage("prepare", folder=folder)
    stage("base", folder=folder)
    stage("sft", "--variant", "sft", folder=folder)
    for name in ("base", "sft"):
        model, _ = load_checkpoint(folder / "build/models" / name, causal=False)
        assert (block_size(model), model.config.logits_shift) == (4, 1)
        curve = read_json(folder / "build/models" / name / "curve.json")
        assert curve[-1]["eval_loss"] < curve[0]["eval_loss"]
    stage("decode", "--checkpoint", "sft", "--decoder", "conv", folder=folder)
    assert len(read_jsonl(folder / "build/answers/sft-conv.jsonl")) == 3


def test_a_cell_that_was_not_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, before anything is trained."""
    folder = prepared(tmp_path, beside=["sft-conv", "sft-top_k"])
    with pytest.raises(SystemExit):
        stage("block_diffusion", folder=folder)
    assert "block_diffusion.beside: build/evaluation/sft-top_k.json is not there; evaluate sft-top_k first" in (
        capsys.readouterr().err
    )
    assert not (folder / "build/families/block_diffusion").exists()
