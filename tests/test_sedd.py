"""SEDD beside the SFT-only model: the table by hand, and the stage."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripts import ROOT, stage
from test_params import edited

from dlm.analysis.sedd import NAMES, VALUES, to_markdown
from dlm.config.params import load_params, parse_params
from dlm.config.yaml import dump_yaml
from dlm.data.splits import read_split
from dlm.decoding.options import RULES
from dlm.errors import UserError
from dlm.files import read_json, read_jsonl, write_json, write_jsonl
from dlm.models.backbone import load_checkpoint
from dlm.models.interface import score_offset
from dlm.pipeline.profiles import merge


def test_the_table_by_hand() -> None:
    """Two numbers of steps; the paper's lines with ours at the one that is asked for; the first and last evaluation."""
    rows: list[dict[str, Any]] = [
        {
            **{"checkpoint": checkpoint, "decoder": decoder, "steps": steps},
            **{name: steps / 100 for name in VALUES},
            **{f"{name}_ci": [0.0, 1.0] for name in VALUES},
        }
        for checkpoint, decoder in NAMES
        for steps in (16, 64)
    ]
    rows[0] |= {"win_rate": None, "quality_ci": None}
    curve = [
        {"step": 0, "eval_loss": 2.5, "eval_nll": 2.0, "eval_penalty": 0.125, "eval_log_total": -0.5},
        {"step": 5, "loss": 1.0},
        {"step": 10, "eval_loss": 1.25, "eval_nll": 1.0, "eval_penalty": 0.0, "eval_log_total": 0.0625},
    ]
    table = to_markdown(rows, curve, 64)
    assert "| NELBO, `categorical` | 16 | 0.16 | – | 0.2 [0.0, 1.0] |" in table
    assert "| score entropy, `tweedie` | 64 | 0.64 [0.00, 1.00] | 0.6 [0.0, 1.0] |" in table
    assert "| SEDD, SFT | categorical | no | 6.04 | 7.34 | 0.64 | 0.64 |" in table
    assert "| MDLM, SFT | categorical | no | 32.16 | 31.79 | 0.64 | 0.64 |" in table
    assert "R2FT" not in table and "0.16" not in table.split("Table 1")[1]
    assert "| 0 | 2.500 | 2.000 | 0.125 | -0.500 |\n| 10 | 1.250 | 1.000 | 0.000 | 0.062 |" in table


def test_the_block() -> None:
    """The options are those of both decoders, and of the lengths that they are for."""
    params = load_params(ROOT / "params.yaml")
    assert type(params.sedd.decoder("tweedie")) is RULES["tweedie"] and not params.sedd.decoder("categorical").eos_fill
    for options, told in (
        ({"score_offset": 2.0}, r"sedd.options.score_offset is not a known key"),  # not of categorical
        ({"kernel_size": 4}, r"sedd.options.kernel_size must be odd"),
        ({"block_length": 48}, r"sedd.options.block_length must divide gen_length \(128\), got 48"),
    ):
        with pytest.raises(UserError, match=told):
            parse_params(dump_yaml(edited({"sedd.options": options})), "params.yaml")


def test_the_stage(tmp_path: Path) -> None:
    """The shipped models: a model that says what its logits mean, a row for each cell, its answers."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    places = {
        "data": {"valid_size": 4, "eval_size": 3, "builtin": {"train_size": 40}},
        "decode": {"gen_length": 64, "steps": [4, 8]},
        "sft": {"training": {"batch_size": 4, "eval_every": 2, "save_every": 2, "warmup_steps": 0}},
        "sedd": {"steps": 2},
        "evaluate": {"bootstrap_samples": 20},
    }
    merge(params, places)
    params["data"]["builtin"]["grammar"] = str(ROOT / "data/builtin/grammar.yaml")
    params["tokenizer"]["path"] = str(ROOT / "data/base/mdlm")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    stage("prepare", folder=tmp_path)
    models = tmp_path / "build/models"
    for name in ("base", "sft"):
        shutil.copytree(ROOT / "data/base/mdlm", models / name)
    shutil.copytree(ROOT / "data/base/reference", models / "reference")
    write_json(models / "reference/training_perplexities.json", [3.0, 4.0, 5.0])
    asked = [row["id"] for row in read_split(tmp_path / "build/data", "eval", ["id"])]
    write_jsonl(models / "reference/answers.jsonl", [{"id": i, "seed": 0, "answer": "Fog."} for i in asked])
    stage("sedd", folder=tmp_path)
    model, _ = load_checkpoint(tmp_path / "build/families/sedd", causal=False)
    offset = score_offset(model)
    assert offset is not None and 0 < offset < 100
    found = read_json(tmp_path / "results/sedd/table.json")
    cells = [(row["checkpoint"], row["decoder"], row["steps"]) for row in found["rows"]]
    assert cells == [(*cell, steps) for cell in NAMES for steps in (4, 8)]
    assert all(row["n"] == len(asked) and 0 <= row["win_rate"] <= 100 for row in found["rows"])
    assert found["training"][0]["eval_log_total"] < 0  # the mean of T is 1 on training records, that of log T less
    assert (tmp_path / "results/sedd/table.md").read_text() == to_markdown(found["rows"], found["training"], 8)
    answers = read_jsonl(tmp_path / "build/families/sedd-answers.jsonl")
    assert len(answers) == len(cells) * len(asked) and {row["nfe"] for row in answers if row["steps"] == 4} <= {
        1,
        2,
        3,
        4,
    }
