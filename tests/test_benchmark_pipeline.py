"""The pipeline without DVC: the same stages, within a budget."""

import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pipeline
import pytest
import torch
import yaml
from workspaces import ROOT, TINY

from dlm.errors import UserError


def ordered(file: str) -> list[str]:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    return [name for name, _ in pipeline.commands(ROOT / file, params)]


def names(file: str) -> set[str]:
    return set(ordered(file))


@pytest.mark.parametrize("file", ["dvc", "sweeps/dvc"])
def test_its_stages_are_those_of_dvc(file: str) -> None:
    """Whose own list is the lock file of the last whole run."""
    lock = yaml.safe_load((ROOT / f"{file}.lock").read_text())["stages"]
    assert names(f"{file}.yaml") == set(lock)
    commands = dict(pipeline.commands(ROOT / f"{file}.yaml", yaml.safe_load((ROOT / "params.yaml").read_text())))
    assert all(f"python {' '.join(words)}" == lock[name]["cmd"] for name, words in commands.items())


def arguments(**blocks: dict) -> list[str]:
    """--set for every number of the blocks."""
    found = []
    for name, block in blocks.items():
        for key, value in block.items():
            if isinstance(value, dict):
                found += arguments(**{f"{name}.{key}": value})
            else:
                found += ["--set", f"{name}.{key}={json.dumps(value)}"]
    return found


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DLM_TRACKING", "off")
    monkeypatch.setattr(sys, "argv", ["benchmarks/pipeline.py", *words])
    try:
        pipeline.main()
    finally:
        torch.set_flush_denormal(False)  # a stage's process sets it; hypothesis draws subnormal numbers


VARIANTS = ["--variants", "answer_only:sft.supervise_padding=false", "crops:sft.crop_share=0.5,sft.training.steps=2"]


SETS = ["--sets", "fewer:data.eval_size=3", "--rejections", "long:sweeps.rejection.steps=3"]


def test_a_whole_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Every stage but those that no time is left for; other training and other prompts; what it took, on disk."""
    (tmp_path / "data").symlink_to(ROOT / "data")
    real = pipeline.Runner.done

    def watched(self: pipeline.Runner, name: str, seconds: float) -> None:
        if name == "infill":
            self.deadline = 0.0  # nothing begins after it
        real(self, name, seconds)

    monkeypatch.setattr(pipeline.Runner, "done", watched)
    words = ["--profile", "builtin", "--jobs", "2", *arguments(**TINY), *VARIANTS, *SETS]
    run(monkeypatch, tmp_path, *words)
    found = json.loads((tmp_path / "results/run.json").read_text())
    assert set(found["skipped"]) == names("sweeps/dvc.yaml") - {"infill"}
    parts = ["sft", "decode@top_k", "evaluate@top_k"]
    beside = {f"{name}: {part}" for name in ("answer_only", "crops") for part in parts}
    cells = [name for name in ordered("dvc.yaml") if name.startswith(("decode@", "evaluate@"))]
    beside |= {f"fewer: {name}" for name in ("prepare", *cells)} | {"long: rejection"}
    assert {row["stage"] for row in found["stages"]} == names("dvc.yaml") | beside | {"infill"}
    assert {f"decode@{cell}" for cell in found["decoding"]} == {name for name in cells if name.startswith("decode@")}
    fewer = json.loads((tmp_path / "results/fewer.json").read_text())
    shown = [f"evaluate@{row['checkpoint']}-{row['decoder']}" for row in fewer]
    evaluated = [name for name in cells if name.startswith("evaluate@")]
    by_checkpoint = [[name for name in evaluated if f"@{checkpoint}-" in name] for checkpoint in ("sft", "r2ft")]
    assert shown == [name for names in by_checkpoint for _ in TINY["decode"]["steps"] for name in names]
    assert {row["n"] for row in fewer} == {3 * 2}
    looks = json.loads((tmp_path / "results/long.json").read_text())
    assert [row["checkpoint"] for row in looks] == [f"r2ft, {steps} steps" for steps in range(4)]
    rows = json.loads((tmp_path / "results/variants.json").read_text())
    cells = [(row["checkpoint"], row["decoder"], row["steps"]) for row in rows]
    labels = ("sft", "sft, answer_only", "sft, crops")
    assert cells == [(label, "top_k", steps) for label in labels for steps in TINY["decode"]["steps"]]
    params = yaml.safe_load((tmp_path / "results/params.yaml").read_text())
    assert found["trained"]["sft"]["step"] == params["sft"]["training"]["steps"] + params["r2ft"]["training"]["steps"]
    assert (tmp_path / "results/report.html").is_file() and (tmp_path / "results/infill/table.md").is_file()
    assert re.search(r"no time was left for .*fluency", capfd.readouterr().out)

    monkeypatch.setattr(pipeline.Runner, "done", real)
    with pytest.raises(UserError, match="was begun with other parameters"):
        run(monkeypatch, tmp_path, *words, "--resume", "--set", "seed=3")
    run(monkeypatch, tmp_path, *words, "--resume")
    again = json.loads((tmp_path / "results/run.json").read_text())
    assert (again["skipped"], again["failed"]) == ([], [])
    assert again["trained"] == found["trained"]
    times = {row["stage"]: row["seconds"] for row in again["stages"]}
    assert {row["stage"]: row["seconds"] for row in found["stages"]}.items() <= times.items()  # nothing ran twice
    assert set(times) == names("dvc.yaml") | beside | names("sweeps/dvc.yaml")


def test_what_fails_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    raised = {"crash": RuntimeError("a bug"), "mistake": SystemExit(2)}

    def run(words: list[str], place: list[str]) -> float:
        if words[0] in raised:
            raise raised[words[0]]
        return 1.5

    monkeypatch.setattr(pipeline, "run_stage", run)
    runner = pipeline.Runner(tmp_path, {}, seconds=100)
    runner.all([(name, [name]) for name in ("first", "crash", "mistake", "last")])
    assert runner.times == {"first": 1.5, "last": 1.5}
    assert (runner.failed, runner.skipped) == (["crash", "mistake"], [])


@pytest.mark.parametrize("broken", [False, True])
def test_what_fails_side_by_side(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: bool) -> None:
    """A cell that fails is told, one that no time was left for too; a process that is gone ends the run."""

    def in_time(words: list[str], place: list[str], deadline: float) -> float | None:
        if words[0] == "bad":
            raise BrokenProcessPool("gone") if broken else RuntimeError("a bug")
        return None if words[0] == "late" else 1.5

    monkeypatch.setattr(pipeline, "run_in_time", in_time)
    monkeypatch.setattr(pipeline, "run_stage", lambda words, place: 2.5)
    with ThreadPoolExecutor(2) as pool:
        runner = pipeline.Runner(tmp_path, {}, 100, pool)
        stages = [("base", ["base"]), *((f"decode@{name}", [name]) for name in ("good", "bad", "late"))]
        if broken:
            with pytest.raises(UserError, match="has ended; go on with --resume"):
                runner.all(stages)
        else:
            runner.all(stages)
            assert runner.times == {"base": 2.5, "decode@good": 1.5}
            assert (runner.failed, runner.skipped) == (["decode@bad"], ["decode@late"])


@pytest.mark.parametrize("spoilt", [False, True])
def test_a_worker_whose_gpu_is_spoilt_ends(monkeypatch: pytest.MonkeyPatch, spoilt: bool) -> None:
    """Another mistake travels as text; a mistake of the user's has told its line already."""
    raised: list[BaseException] = [ValueError("a bug")]

    def run(words: list[str], place: list[str]) -> float:
        raise raised[0]

    def check() -> None:
        if spoilt:
            raise UserError("spoilt")

    def ended(status: int) -> None:
        raise KeyboardInterrupt(status)  # stands for the end of the process

    monkeypatch.setattr(pipeline, "run_stage", run)
    monkeypatch.setattr(pipeline, "check_gpu", check)
    monkeypatch.setattr(pipeline.os, "_exit", ended)
    with pytest.raises(KeyboardInterrupt if spoilt else RuntimeError, match="1" if spoilt else "ValueError: a bug"):
        pipeline.run_in_time(["x"], [], float("inf"))
    raised[0] = SystemExit(2)
    with pytest.raises(RuntimeError, match="its line is above"):
        pipeline.run_in_time(["x"], [], float("inf"))
    assert pipeline.run_in_time(["x"], [], 0.0) is None


def test_what_is_not_installed_is_told_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """mlflow may be missing, nltk not, which is imported by the last stages."""
    real = pipeline.importlib.util.find_spec
    monkeypatch.setattr(
        pipeline.importlib.util, "find_spec", lambda name: None if name in {"nltk", "mlflow"} else real(name)
    )
    with pytest.raises(UserError, match="not installed: nltk;"):
        run(monkeypatch, tmp_path, "--profile", "builtin")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--profile", "nobody"], "'nobody' is not a profile"),
        (["--profile", "builtin", "--set", "seed"], "--set must be KEY=VALUE"),
        (["--profile", "builtin", "--set", "sead=1"], "sead is not a known key"),
        (["--profile", "builtin", "--set", "seed=["], r"--set seed: '\[' is not a value"),
        (["--profile", "builtin", "--variants", "crops:sft.crop_share"], "written name:key=value"),
        (["--profile", "builtin", "--sets", "few:data.eval_sise=3"], "few: data.eval_sise is not a known key"),
        (["--profile", "builtin", "--folder", "."], "is there; go on with --resume"),
    ],
)
def test_what_it_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], line: str) -> None:
    with pytest.raises(UserError, match=line):
        run(monkeypatch, tmp_path, *words)
