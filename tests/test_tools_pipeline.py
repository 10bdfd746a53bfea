"""tools/pipeline.py: the stages of dvc.yaml without DVC, within a budget."""

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
from commands import commands
from workspaces import ROOT, TINY

from dlm.errors import UserError

FILES = ("dvc.yaml", "sweeps/pipeline.yaml")
# What no stage needs; tests/test_tools_quarter_hour.py runs them all without it.
ABSENT = ("mlflow", "sqlalchemy", "dvc", "vl_convert", "openai", "datasets", "gguf", "psutil", "rich")


def ordered(file: str) -> list[str]:
    """But for the runs of other profiles, which call this very script."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    return [name for name, _ in commands(ROOT / file, params) if not name.startswith(pipeline.OTHER)]


def names(file: str) -> set[str]:
    return set(ordered(file))


def test_its_stages_are_those_of_dvc() -> None:
    """Whose own list is the lock file of the last whole run; test_end_to_end.py has the sweeps'."""
    lock = yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"]
    found = dict(commands(ROOT / "dvc.yaml", yaml.safe_load((ROOT / "params.yaml").read_text())))
    assert set(found) == set(lock)
    assert all(f"python {' '.join(words)}" == lock[name]["cmd"] for name, words in found.items())


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
    monkeypatch.setattr(sys, "argv", ["tools/pipeline.py", *words])
    try:
        pipeline.main()
    finally:
        torch.set_flush_denormal(False)  # a stage's process sets it; hypothesis draws subnormal numbers


def test_a_whole_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Every stage but those that no time is left for, which another run makes up; what it took, on disk."""
    (tmp_path / "data").symlink_to(ROOT / "data")
    real = pipeline.Run.note
    first = ordered(FILES[1])[0]

    def watched(self: pipeline.Run, name: str, outcome: pipeline.Outcome) -> None:
        if name == first:
            self.deadline = 0.0  # nothing begins after it
        real(self, name, outcome)

    monkeypatch.setattr(pipeline.Run, "note", watched)
    words = ["--profile", "builtin", "--jobs", "2", *arguments(**TINY)]
    run(monkeypatch, tmp_path, *words)
    found = json.loads((tmp_path / "results/run.json").read_text())
    assert set(found["skipped"]) == names(FILES[1]) - {first} and found["failed"] == []
    assert {row["stage"] for row in found["stages"]} == names("dvc.yaml") | {first}
    cells = {name for name in names("dvc.yaml") if name.startswith("decode@")}
    assert {f"decode@{cell}" for cell in found["decoding"]} == cells
    assert found["command"].startswith("python tools/pipeline.py --profile builtin --jobs 2 --set ")
    assert found["hardware"]["torch"] == torch.__version__
    params = yaml.safe_load((tmp_path / "results/params.yaml").read_text())
    assert found["trained"]["sft"]["step"] == params["sft"]["training"]["steps"] + params["r2ft"]["training"]["steps"]
    assert (tmp_path / "results/report.html").is_file() and not (tmp_path / "results/cells.md").exists()
    assert re.search(r"no time was left for .*fluency", capfd.readouterr().out)

    monkeypatch.setattr(pipeline.Run, "note", real)
    with pytest.raises(UserError, match="was begun with other parameters"):
        run(monkeypatch, tmp_path, *words, "--resume", "--set", "seed=3")
    run(monkeypatch, tmp_path, *words, "--resume")
    again = json.loads((tmp_path / "results/run.json").read_text())
    assert (again["skipped"], again["failed"]) == ([], [])
    assert again["trained"] == found["trained"]
    times = {row["stage"]: row["seconds"] for row in again["stages"]}
    assert {row["stage"]: row["seconds"] for row in found["stages"]}.items() <= times.items()  # nothing ran twice
    assert set(times) == names("dvc.yaml") | names(FILES[1])


def test_cells_without_a_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The run was cut off: what was evaluated has a table, in the report's order."""
    monkeypatch.chdir(tmp_path)
    shown = {"results": "results", "decoders": ["top_k", "conv"]}
    made = pipeline.Run(tmp_path / "run", {"report": shown}, seconds=100)
    lines = ROOT / "results/builtin/table.json" if (ROOT / "results/builtin").is_dir() else ROOT / "results/table.json"
    rows = [row for row in json.loads(lines.read_text()) if row["decoder"] == "conv"]
    for checkpoint in ("r2ft", "sft"):
        path = tmp_path / f"run/build/evaluation/{checkpoint}-conv.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([row for row in rows if row["checkpoint"] == checkpoint]))
    made.write_results()
    table = (tmp_path / "results/cells.md").read_text()
    assert "| sft" in table and table.index("| sft") < table.index("| r2ft")
    made.done["report"] = 1.0
    (tmp_path / "results/cells.md").unlink()
    made.write_results()
    assert not (tmp_path / "results/cells.md").exists()


def scripts(folder: Path, **texts: str) -> list[tuple[str, list[str]]]:
    """Stages of a line each."""
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(f"import sys\n{text}\n")
    return [(name, [str(folder / f"{name}.py")]) for name in texts]


def test_what_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    """A bug, and a user's mistake; what is done is kept, and only the rest is tried again."""
    stages = scripts(tmp_path, first="", bug="1 / 0", mistake="sys.exit(2)", last="assert '--build' in sys.argv")
    before = sys.argv
    one = pipeline.Run(tmp_path / "run", {}, seconds=100)
    one.all(stages)
    assert list(one.done) == ["first", "last"] and sys.argv is before
    assert (one.failed, one.skipped) == (["bug", "mistake"], [])
    again = pipeline.Run(tmp_path / "run", {}, seconds=100)
    assert again.done == one.done
    again.all([*stages[1:], *scripts(tmp_path, first="1 / 0")])
    assert again.done == one.done and again.failed == ["bug", "mistake"]


def test_when_the_time_is_over(tmp_path: Path) -> None:
    """The report is made all the same."""
    late = pipeline.Run(tmp_path / "run", {}, seconds=-1)
    late.all(scripts(tmp_path, decode="", report=""))
    assert (list(late.done), late.skipped, late.failed) == (["report"], ["decode"], [])


@pytest.mark.parametrize("broken", [False, True])
def test_what_fails_side_by_side(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: bool) -> None:
    """A cell that fails is told, one that no time was left for too; a process that is gone ends the run."""

    def stage(words: list[str], deadline: float) -> pipeline.Outcome:
        if words[0] == "bad" and broken:
            raise BrokenProcessPool("gone")
        known: dict[str, pipeline.Outcome] = {"bad": ("failed", 1.0), "late": ("skipped", 0.0)}
        return known.get(words[0], ("done", 1.5))

    monkeypatch.setattr(pipeline, "run_stage", stage)
    with ThreadPoolExecutor(2) as pool:
        one = pipeline.Run(tmp_path, {}, 100, pool)
        stages = [("base", ["base"]), *((f"decode@{name}", [name]) for name in ("good", "bad", "late"))]
        if broken:
            with pytest.raises(UserError, match="has ended; go on with --resume"):
                one.all(stages)
        else:
            one.all(stages)
            assert one.done == {"base": 1.5, "decode@good": 1.5}
            assert (one.failed, one.skipped) == (["decode@bad"], ["decode@late"])


@pytest.mark.parametrize("pooled", [False, True])
def test_a_gpu_that_is_spoilt_ends_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pooled: bool) -> None:
    """What came next would fail too; the stage counts as failed."""

    def fault() -> None:
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", fault)
    with ThreadPoolExecutor(1) as pool:
        one = pipeline.Run(tmp_path / "run", {}, 100, pool if pooled else None)
        with pytest.raises(UserError, match="the GPU cannot be used by this process any more; go on with --resume"):
            one.all(scripts(tmp_path, decode="1 / 0", report=""))
    assert (one.done, one.failed, one.skipped) == ({}, ["decode"], [])


def test_what_is_not_installed_is_told_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """nltk, which is imported by the last stages; none of ABSENT, which a machine with a GPU may well lack."""
    lacking = {"nltk", *ABSENT}
    for name in lacking:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="not installed: nltk;"):
        run(monkeypatch, tmp_path, "--profile", "builtin")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--profile", "nobody"], "'nobody' is not a profile"),
        (["--profile", "builtin", "--set", "seed"], "--set wants KEY=VALUE"),
        (["--profile", "builtin", "--set", "sead=1"], "sead is not a known key"),
        (["--profile", "builtin", "--set", "seed=["], r"--set seed: '\[' is not a value"),
        (["--profile", "builtin", "--folder", "."], "is there; go on with --resume"),
    ],
)
def test_what_it_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], line: str) -> None:
    with pytest.raises(UserError, match=line):
        run(monkeypatch, tmp_path, *words)
