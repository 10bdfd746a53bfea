"""The paper's profiles through every stage, offline, on tiny random checkpoints of the same layouts."""

import json
import random
from pathlib import Path
from typing import Any

import published
import pytest
import yaml
from scripts import ROOT, stage
from transformers import GPT2Config, GPT2LMHeadModel

from dlm.decoding.lm import DiffusionLM
from dlm.files import read_json, read_jsonl
from dlm.pipeline.profiles import merge, render

WORDS = ["the", "harbour", "opens", "at", "dawn", "and", "salt", "boats", "leave", "before", "fog", "amber", "wool"]


def records(path: Path, count: int, ask: str = "Say") -> None:
    """Alpaca's fields."""
    rng = random.Random(0)
    found = [
        {"instruction": f"{ask} {n} of it.", "input": "", "output": " ".join(rng.choices(WORDS, k=rng.randint(6, 12)))}
        for n in range(count)
    ]
    path.write_text(json.dumps(found))


def smaller(profile: str, changes: dict[str, Any]) -> dict[str, Any]:
    found = yaml.safe_load(render(ROOT / "profiles", profile))
    merge(found, changes)
    return found


FEW = {"steps": 2, "batch_size": 4, "gradient_accumulation": 2, "eval_every": 1, "save_every": 2}
SMALL = {
    "data": {
        "source": "file",
        "file": {"path": "alpaca.json"},
        "evaluation": {"path": "questions.json"},
        "valid_size": 6,
        "eval_size": 3,
        "max_prompt_length": 96,
        "window": 96,
    },
    "reference": {"training": FEW},
    "sft": {"training": FEW},
    "r2ft": {"training": FEW},
    "negatives": {"z_min": 4, "z_max": 8},
    "decode": {"steps": [4, 8], "gen_length": 64},
    "decoding": {"semi_ar": {"block_length": [32, 16]}, "conv": {"kernel_size": [33, 9]}},
    "select": {"prompts": 2},
    "ablation": {"prompts": 2, "steps": 8},
    # Random like all weights here.
    "evaluate": {"bootstrap_samples": 50, "judge": {"kind": "local", "model": "judge"}},
}


def gpt2(folder: str, positions: int) -> None:
    size = published.VOCAB - 1
    config = GPT2Config(vocab_size=size, n_positions=positions, n_embd=32, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    published.gpt2(Path(folder))


def whole_pipeline(profile: str, changes: dict[str, Any]) -> None:
    """48 records, two steps, a canvas of 192; every stage, the decoders of the table."""
    records(Path("alpaca.json"), 48)
    records(Path("questions.json"), 5, "Tell")
    params = smaller(profile, SMALL)
    merge(params, changes)
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    for name in ("prepare", "base", "reference"):
        stage(name)
    stage("sft", "--variant", "sft")
    stage("sft", "--variant", "sft_answer")
    stage("negatives")
    stage("r2ft")
    for decoder in params["report"]["decoders"]:
        stage("selection", "--decoder", decoder, "--checkpoints", "sft")
    cells = [(checkpoint, decoder) for checkpoint in ("sft", "r2ft") for decoder in params["report"]["decoders"]]
    for checkpoint, decoder in cells:
        stage("decode", "--checkpoint", checkpoint, "--decoder", decoder)
        answers = list(read_jsonl(Path(f"build/answers/{checkpoint}-{decoder}.jsonl")))
        assert [answer["steps"] for answer in answers] == [4] * 3 + [8] * 3
        assert all(len(answer["commit_step"]) == 64 for answer in answers)
        stage("evaluate", "--checkpoint", checkpoint, "--decoder", decoder)
    stage("evaluate", "--checkpoint", "reference", "--decoder", "nucleus")
    for checkpoint in ("sft", "r2ft"):
        stage("decode_ablation", "--checkpoint", checkpoint)
        stage("ablation", "--checkpoint", checkpoint)
    stage("report")
    table = read_json(f"results/{profile}/table.json")
    rows = [(row["checkpoint"], row["decoder"], row["steps"]) for row in table if row["steps"] is not None]
    assert sorted(rows) == sorted((*cell, steps) for cell in cells for steps in (4, 8))
    # What is not for choice but for claim 3: the sizes of blocks and kernels.
    grid = {decoder: read_json(f"build/selection/{decoder}-grid.json") for decoder in params["report"]["decoders"]}
    assert {decoder for decoder, found in grid.items() if found} == {"semi_ar", "conv"}
    rates = {row["checkpoint"]: row["win_rate"] for row in table}
    assert rates["reference"] is None
    assert 0 < rates["sft"] < 100  # a random judge
    page = Path(f"results/{profile}/report.html").read_text()
    assert "here: LC win rate, %" in page
    assert ("LLaDA-8B-Base" in page) == (profile == "paper-large")


def test_paper_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MDLM's layout with a head of its own; GPT-2's with a tied one as reference and judge, without a chat template."""
    monkeypatch.chdir(tmp_path)
    gpt2("judge", positions=2048)
    published.mdlm(Path("mdlm"), seed=1)
    Path("mdlm/config.json").write_text(json.dumps({**published.MDLM, "model_length": 192}))
    published.gpt2(Path("gpt2"))
    gpt2("ar", positions=192)
    places = {
        "tokenizer": {"path": "gpt2"},
        "base": {"checkpoint": "mdlm", "tokenizer": "gpt2"},
        "reference": {"checkpoint": "ar"},
    }
    whole_pipeline("paper-small", places)
    assert read_json("build/models/base/config.json")["model_type"] == "mdlm_folded"
    weights = [Path(f"build/models/{name}/model.safetensors").read_bytes() for name in ("base", "sft", "r2ft")]
    assert len(set(weights)) == 3


def test_paper_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLaDA's layout in bfloat16 shards, with spare rows and a chat template; adapters alone are trained and saved. The
    judge is a chat model in bfloat16 shards, with a shared head and spare rows, too."""
    monkeypatch.chdir(tmp_path)
    published.smollm2(Path("judge"), positions=2048, spare=20)
    assert Path("judge/model.safetensors.index.json").exists()
    published.llada(Path("llada"), seed=1)
    Path("llada/config.json").write_text(json.dumps({**published.LLADA, "max_sequence_length": 192}))
    places = {
        "tokenizer": {"path": "llada"},
        "base": {"checkpoint": "llada"},
        "model": {"hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 16},
        "sft": {"lora": {"rank": 4}},
    }
    whole_pipeline("paper-large", places)
    assert read_json("build/models/base/config.json")["architectures"] == ["LlamaForCausalLM"]
    for name in ("sft", "sft_answer", "r2ft"):
        folder = Path("build/models") / name
        assert read_json(folder / "adapter_config.json")["base_model_name_or_path"] == "build/models/base"
        assert not (folder / "model.safetensors").exists()
    adapters = [Path(f"build/models/{name}/adapter_model.safetensors").read_bytes() for name in ("sft_answer", "r2ft")]
    assert adapters[0] != adapters[1]
    assert read_json("build/models/base/config.json")["token_count"] == published.VOCAB < published.ROWS
    lm = DiffusionLM.load("build/models/r2ft", device="cpu")
    assert [lm.tokenizer.convert_ids_to_tokens(i) for i in lm.ends] == ["<|endoftext|>", "<|eot_id|>"]
    assert len(lm.chat([{"role": "user", "content": "Say it."}], steps=4, gen_length=8).texts) == 1
