"""Stages shared by two processes on this machine (gloo), against one process: same losses, same tokens."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripts import ROOT, stage
from warm import warm

from dlm.decoding import answers
from dlm.files import read_json, read_jsonl, write_jsonl
from dlm.models.backbone import load_checkpoint
from dlm.pipeline import processes
from dlm.pipeline.profiles import merge

# Epochs of five whole steps, eight rows in micro-batches of two; the held-out rows fill neither batches nor processes.
FEW = {"steps": 7, "batch_size": 2, "gradient_accumulation": 4, "eval_every": 3, "save_every": 4}
TINY: dict[str, Any] = {
    "data": {
        "valid_size": 7,
        "eval_size": 5,
        "builtin": {"train_size": 45, "grammar": str(ROOT / "data/builtin/grammar.yaml")},
    },
    "tokenizer": {"source": "given", "path": str(ROOT / "data/base/mdlm")},
    "model": {"hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 16},
    "base": {"init": "random"},
    "reference": {"init": "random", "training": FEW},
    "sft": {"training": FEW, "loss_average": "example"},  # the reference's is a mean over tokens
    "negatives": {"examples": 30},
    "r2ft": {"training": {**FEW, "learning_rate": 1.0e-3}},
    "decode": {"seeds": [0, 1], "steps": [4], "gen_length": 64, "batch_size": 2},
    "decoding": {"conv": {"rule": "top_k", "kernel_size": [9, 33], "gain": "tanh"}},
    "select": {"prompts": 3},
    "ablation": {"prompts": 2, "steps": 8},
    "evaluate": {"bootstrap_samples": 20},
}


TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ALONE = {"DLM_TRACKING": "off", "OMP_NUM_THREADS": "1"}
FSDP = yaml.safe_load((ROOT / "profiles/launch/fsdp-8.yaml").read_text())["fsdp_config"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of one process, up to a cell that is decoded with chosen settings."""
    made = tmp_path_factory.mktemp("pipeline")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    merge(params, TINY)
    (made / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    for name in ("prepare", "base", "reference", "negatives"):
        stage(name, folder=made)
    stage("sft", "--variant", "sft_answer", folder=made)
    stage("r2ft", folder=made)
    stage("selection", "--decoder", "conv", "--checkpoints", "r2ft", folder=made)
    stage("decode", "--checkpoint", "r2ft", "--decoder", "conv", folder=made)
    return made


def by_torchrun(folder: Path, *script: str) -> None:
    """Run a stage's script in two processes."""
    done = subprocess.run(
        [*TWO, *script], cwd=folder, env={**os.environ, **ALONE}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def by_two(folder: Path, *script: str, **environment: str) -> str:
    """The same with the variables that torchrun sets, but processes that start at once (warm.py); what they printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [str(warm().bin / "python"), *script],
            cwd=folder,
            env={**os.environ, **ALONE, **found, **environment, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in "01"
    ]
    try:
        told = [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:
            process.terminate()
    assert [process.returncode for process in started] == [0, 0], "".join(text[-3000:] for text in told)
    return "".join(told)


def shared(folder: Path, tmp_path: Path, name: str, *arguments: str) -> Path:
    """A stage again in a copy of the folder, by two processes."""
    other = tmp_path / "shared"
    shutil.copytree(folder, other)
    by_two(other, str(ROOT / "stages" / f"{name}.py"), *arguments)
    return other


def same_training(ours: Path, theirs: Path) -> None:
    """Curves equal within 1e-5, and weights as far as AdamW lets rounding show."""
    curves = [read_json(place / "curve.json") for place in (ours, theirs)]
    assert [row.keys() for row in curves[0]] == [row.keys() for row in curves[1]]
    assert len(curves[0]) == 8
    for row, other in zip(*curves, strict=True):
        assert row == pytest.approx(other, rel=1e-5, abs=1e-5)
    weights = [load_checkpoint(place, causal=place.name == "reference")[0].state_dict() for place in (ours, theirs)]
    for name, tensor in weights[0].items():
        assert (tensor - weights[1][name]).abs().max() < 1e-4


CASES = [("sft", "--variant", "sft_answer"), ("r2ft",), ("reference",)]


@pytest.mark.parametrize("command", CASES, ids=lambda command: command[0])
def test_training_by_two_processes_equals_training_by_one(
    folder: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    other = shared(folder, tmp_path, *command)
    place = Path("build/models") / command[-1]
    same_training(folder / place, other / place)
    assert not list((other / ".cache/training").iterdir())
    if command[0] == "reference":
        found, expected = (read_jsonl(where / place / "answers.jsonl") for where in (other, folder))
        assert [(row["id"], row["seed"]) for row in found] == [(row["id"], row["seed"]) for row in expected]


def test_training_a_sharded_model(folder: Path, tmp_path: Path) -> None:
    """FSDP with the options of profiles/launch: every weight lies in two parts, the checkpoint is whole."""
    other = tmp_path / "sharded"
    shutil.copytree(folder, other)
    shutil.rmtree(other / "build/models/sft_answer")
    options = {key.upper(): str(value) for key, value in FSDP.items()}
    script = [str(ROOT / "tests/fsdp_on_cpu.py"), str(ROOT / "stages/sft.py"), "--variant", "sft_answer"]
    told = by_two(other, *script, ACCELERATE_USE_FSDP="true", **options)
    assert told.count("sharded: {'DTensor'}") == 2
    place = Path("build/models/sft_answer")
    same_training(folder / place, other / place)


def test_decoding_by_two_processes_gives_the_same_file(folder: Path, tmp_path: Path) -> None:
    cell = ("decode", "--checkpoint", "r2ft", "--decoder", "conv")
    other = shared(folder, tmp_path, *cell)
    answers = Path("build/answers/r2ft-conv.jsonl")
    assert (other / answers).read_bytes() == (folder / answers).read_bytes()
    assert not list((other / ".cache/decoding").rglob("*.jsonl"))  # each process's parts are of no more use


def test_choosing_by_two_processes_gives_the_same_files(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "chosen"
    shutil.copytree(folder, other)
    shutil.rmtree(other / "build/selection")
    by_two(other, str(ROOT / "stages/selection.py"), "--decoder", "conv", "--checkpoints", "r2ft")
    for name in ("conv.json", "conv-grid.json"):
        assert (other / "build/selection" / name).read_bytes() == (folder / "build/selection" / name).read_bytes()


def test_what_two_processes_had_finished_is_not_decoded_again(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "interrupted"
    shutil.copytree(folder, other)
    answers = other / "build/answers"
    shutil.rmtree(answers)
    answers.touch()  # where a folder should be: the answers are decoded and cannot be written
    script = (str(ROOT / "stages/decode.py"), "--checkpoint", "r2ft", "--decoder", "conv")
    with pytest.raises(AssertionError, match="nothing half written was kept"):
        by_torchrun(other, *script)
    parts = list((other / ".cache/decoding").rglob("*-of-2.jsonl"))
    assert len(parts) == 4
    for part in parts:
        write_jsonl(part, [{**row, "answer": row["answer"] + " (kept)"} for row in read_jsonl(part)])
    answers.unlink()
    by_torchrun(other, *script)
    whole = read_jsonl(folder / "build/answers/r2ft-conv.jsonl")
    assert read_jsonl(answers / "r2ft-conv.jsonl") == [{**row, "answer": row["answer"] + " (kept)"} for row in whole]


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_shares_of_prompts(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Every prompt has one process; equal prompts have the same one."""
    prompts = [[1, 2], [3], [1, 2], [4, 4], [3], [5]]
    monkeypatch.setattr(processes, "count", lambda: count)
    shares = []
    for rank in range(count):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        shares.append(answers._share(prompts))
    assert sorted(i for share in shares for i in share) == list(range(6))
    owner = {i: rank for rank, share in enumerate(shares) for i in share}
    assert owner[0] == owner[2]
    assert owner[1] == owner[4]
    assert len(set(owner.values())) == min(count, 4)
