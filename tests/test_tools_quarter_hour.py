"""tools/quarter_hour.sh rehearsed: the whole of it on a tiny model, in a folder of its own."""

import json
import lzma
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import commands
from pipeline import OTHER
from test_adapt import causal_model, saved
from test_convert import write_gguf
from test_tools_pipeline import ABSENT, FILES, arguments
from tiny import SENTENCES
from workspaces import ROOT

from dlm.config.yaml import load_yaml
from dlm.data.text import pack
from dlm.data.tokenizer import load_tokenizer
from dlm.files import read_json, write_json
from dlm.models.backbone import load_checkpoint, save_checkpoint

MODEL = "data/input/smollm2-135m-instruct"
FEW = {"steps": 3, "batch_size": 4, "eval_every": 2, "save_every": 2, "warmup_steps": 1, "compile": False}
TINY: dict[str, Any] = {
    "data": {"valid_size": 4, "eval_size": 3, "max_prompt_length": 24, "window": 32},
    "template": {"prompt": "{instruction}\n", "prompt_with_input": "{instruction}\n{input}\n"},
    "base": {
        "text": "data/input/rows.npy",
        "held_out": 0.2,
        "sequence_length": 16,
        "training": {**FEW, "minutes": 1},
    },
    "reference": {"training": {**FEW, "minutes": 1}},
    "sft": {"training": FEW},
    "negatives": {"examples": 8, "z_min": 8, "z_max": 12},
    "r2ft": {"training": FEW},
    "decode": {"steps": [4], "gen_length": 16, "batch_size": 8},
    "decoding": {
        "semi_ar": {"block_length": 8},
        "conv": {"kernel_size": [5, 3]},
        "conv_low_confidence": {"kernel_size": 5},
    },
    "select": {"prompts": 2},
    "ablation": {"prompts": 2, "steps": 8},
    "rivals": {"prompts": 2, "passes": [2, 8]},
    "block_diffusion": {"block_size": 8, "beside": ["sft-top_k", "sft-conv"]},
    "sweeps": {
        "prompts": 2,
        "steps": [4],
        "size_steps": [4],
        "blocks": [8],
        "kernels": [5],
        "gains": ["tanh"],
        "top_k": [1],
        "rejection": {"steps": 2, "every": 1, "decoders": ["top_k"], "negatives": {"default": {}}},
    },
    "evaluate": {"bootstrap_samples": 20},
    "report": {"decoders": ["top_k", "conv"]},
}


def parts(folder: Path) -> Path:
    """What is brought there, but for the model."""
    saved(folder / "ar")
    tokenizer = load_tokenizer(folder / "ar")
    made = folder / "parts"
    made.mkdir()
    rows = np.array(pack(tokenizer, SENTENCES * 6, 16), dtype=np.uint16)
    np.save(folder / "rows.npy", rows)
    (made / "rows.npy.xz").write_bytes(lzma.compress((folder / "rows.npy").read_bytes()))
    records = [{"instruction": f"Say {i}.", "input": "", "output": SENTENCES[i % 4][: 8 + i % 9]} for i in range(24)]
    (made / "alpaca_data.json.xz").write_bytes(lzma.compress(json.dumps(records).encode()))
    write_json(
        made / "alpaca_eval_questions.json", [{**row, "instruction": f"Tell {i}."} for i, row in enumerate(records)]
    )
    return made


def quarter_hour(work: Path, *words: object) -> "subprocess.CompletedProcess[str]":
    """The script with this Python, on one thread."""
    environment = {**os.environ, "WORK": str(work), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    script = ROOT / "tools/quarter_hour.sh"
    return subprocess.run(
        [str(script), *map(str, words)], env=environment, cwd=work.parent, capture_output=True, text=True
    )


def packed(archive: Path) -> set[str]:
    with tarfile.open(archive) as found:
        return {entry.name for entry in found if entry.isfile()}


def test_a_rehearsal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Everything that is worth keeping is left in files; what cannot be done (gaps without the builtin corpus) stops
    nothing; what is in data/input already stays; none of ABSENT is there."""
    made, work = parts(tmp_path), tmp_path / "work"
    model, tokenizer = load_checkpoint(tmp_path / "ar", causal=True)
    save_checkpoint(work / MODEL, model, tokenizer)
    own = [{"instruction": f"Ask {i}.", "output": "The fog."} for i in range(5)]
    write_json(work / "data/input/alpaca_eval_questions.json", own)
    words = ["parts", "out", 30, *arguments(**TINY)]
    (tmp_path / "lacks").mkdir()
    (tmp_path / "lacks/sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({ABSENT}))\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lacks"))
    ended = quarter_hour(work, *words)
    out, log = tmp_path / "out", (tmp_path / "out/log.txt").read_text()
    assert ended.returncode == 0, log[-3000:] + ended.stderr[-3000:]
    assert {path.name for path in out.iterdir()} == {"answers.tar.xz", "figures.tar.xz", "log.txt", "results.tar.xz"}
    assert re.search("unpacked after .* s\\n", log) and re.search("ended after .* s\\n", log)
    assert "cp:" not in log + ended.stderr and "Traceback" not in log
    assert "data.source must be builtin for the infill stage" in log
    assert {path.name for path in work.iterdir()} == {".cache", "build", "data", "results"}
    assert read_json(work / "data/input/alpaca_eval_questions.json") == own
    assert (work / "data/input/rows.npy").read_bytes() == lzma.decompress((made / "rows.npy.xz").read_bytes())

    results = read_json(work / "results/smollm2/run.json")
    assert "infill" in results["failed"] and results["skipped"] == []
    done = {row["stage"] for row in results["stages"]}
    params = load_yaml((work / "results/smollm2/params.yaml").read_text())
    stages = {name for file in FILES for name, _ in commands(ROOT / file, params) if not name.startswith(OTHER)}
    assert done == stages - {"infill"}
    assert results["trained"]["base"]["step"] == 3
    cells = [f"{checkpoint}-{decoder}" for checkpoint in ("sft", "r2ft") for decoder in ("top_k", "conv")]
    assert sorted(results["decoding"]) == sorted(cells)
    kept = packed(out / "results.tar.xz")
    assert {f"results/smollm2/{name}" for name in ("run.json", "table.md", "report.html")} <= kept
    folder = "build/quarter_hour"
    answers = {f"{folder}/build/answers/{cell}.jsonl" for cell in cells}
    answers |= {f"{folder}/build/ablation/{checkpoint}.jsonl" for checkpoint in ("sft", "r2ft")}
    assert packed(out / "answers.tar.xz") == answers | {f"{folder}/build/models/reference/answers.jsonl"}
    figures = packed(out / "figures.tar.xz")
    expected = ["params.yaml", "state.json", "build/models/base/curve.json", "build/evaluation/reference-nucleus.json"]
    expected += [f"build/{kind}/{cell}.json" for kind in ("evaluation", "speed") for cell in cells]
    expected += [
        "build/evaluation/ablation/sft.json",
        "build/data/training/vocabulary.json",
        "build/selection/conv.json",
        "build/selection/conv-grid.json",
    ]
    expected += ["build/sweeps/settings-r2ft.json"]
    assert {f"{folder}/{name}" for name in expected} <= figures
    assert not any(name.endswith((".safetensors", "tokenizer.json")) for name in figures)


def test_a_model_in_parts_and_a_mistake(tmp_path: Path) -> None:
    """The parts are joined and converted; then nothing runs, the log says why, and so does the exit status."""
    made, work = parts(tmp_path), tmp_path / "work"
    work.mkdir()
    write_gguf(tmp_path / "tiny.gguf", causal_model("llama", 300))
    raw = (tmp_path / "tiny.gguf").read_bytes()
    for number, start in enumerate(range(0, len(raw), 50_000)):
        (made / f"SmolLM2.gguf.{number:02}").write_bytes(raw[start : start + 50_000])
    assert len(list(made.glob("SmolLM2.gguf.*"))) > 1
    ended = quarter_hour(work, "parts", "out", 1, "--set", "sead=1")
    assert ended.returncode == 2
    assert "sead is not a known key" in (tmp_path / "out/log.txt").read_text()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["log.txt"]
    model, _ = load_checkpoint(work / MODEL, causal=True, dtype="auto")
    assert model.dtype == torch.bfloat16
    original = causal_model("llama", 300).get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight, original.bfloat16())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["parts", "out"], "error: give PARTS OUT MINUTES"),
        (["none", "out", 1], "none: No such file"),
        (["parts", "out", 1], "SmolLM2.gguf"),
    ],
)
def test_what_is_not_there(tmp_path: Path, words: list[object], told: str) -> None:
    """No time given, no such folder, no parts of a model in it."""
    (tmp_path / "work").mkdir()
    (tmp_path / "parts").mkdir()
    ended = quarter_hour(tmp_path / "work", *words)
    assert ended.returncode == 2
    assert told in ended.stdout + ended.stderr
    assert not (tmp_path / "work/build").exists()
