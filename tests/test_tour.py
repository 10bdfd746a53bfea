"""docs/tour.md from top to bottom, and its notebook, in a clone whose dvc.lock is another machine's."""

import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from test_docs import Shell, blocks, commands, give_model
from workspaces import ROOT, TINY, Workspace, running

from dlm.pipeline.profiles import merge

PAGE = "docs/tour.md"
SMALL = {name: block for name, block in TINY.items() if name not in ("tokenizer", "model", "base", "reference")}
SMALL |= {"report": {"decoders": ["top_k", "semi_ar", "conv"]}}
SHORT = {"training": {"steps": 2, "batch_size": 4}}
CONV = {"select@conv", "decode@sft-conv", "decode@r2ft-conv", "evaluate@sft-conv", "evaluate@r2ft-conv"}
ABLATION = {f"{stage}@{checkpoint}" for stage in ("decode_ablation", "ablation") for checkpoint in ("sft", "r2ft")}


class Tour:
    """A clone, and what the steps before have left for those behind."""

    def __init__(self, folder: Path) -> None:
        self.clone = Workspace(folder)
        params = yaml.safe_load((ROOT / "params.yaml").read_text())
        merge(params, SMALL)
        self.clone.params = params
        self.clone.write(params)
        for name in ("dvc.lock", "results"):  # the author's
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, folder / name)
        (folder / ".venv").mkdir()
        (folder / ".venv/.ready").touch()  # or make would set one up
        self.clone.run("git", "add", "-A")
        self.clone.run("git", "commit", "-qm", "as published")
        self.shell = Shell(self.clone)
        self.baseline: dict[str, str] = {}

    def run(self, text: str) -> str:
        """What the command prints."""
        if text.startswith("dlm "):
            return self.shell.dlm(self.shell.expanded(text)[1:])
        return self.clone.run("bash", "-euo", "pipefail", "-c", text).stdout

    def read(self, name: str) -> str:
        return (self.clone.folder / name).read_text("utf-8")

    def hashes(self) -> dict[str, str]:
        """Output -> md5, of dvc.lock."""
        stages = yaml.safe_load(self.read("dvc.lock"))["stages"].values()
        return {out["path"]: out["md5"] for stage in stages for out in stage["outs"]}


def first_run(tour: Tour, told: str) -> None:
    assert {"base", "sft@sft", "r2ft", "report"} <= running(told)
    assert "git commit -am baseline" in told
    assert not tour.clone.stale()


def committed(tour: Tour, told: str) -> None:
    tour.clone.run("git", "add", "results")  # as published, before a run of this version was
    tour.clone.run("git", "commit", "-qm", "results", check=False)
    tour.baseline = tour.hashes()


def listed(tour: Tour, told: str) -> None:
    lines = told.splitlines()
    assert lines[0].split() == ["Path", "area", "nfe_4", "nfe_8", "quality_4", "quality_8"]
    assert max(map(len, lines)) <= 100 and any("r2ft-conv" in line for line in lines)


def one_answer(tour: Tour, told: str) -> None:
    assert len(json.loads(told)["tokens"]) == 64


def answered(tour: Tour, told: str) -> None:
    assert told.strip() and not told.startswith("error")


def wide(tour: Tour, told: str) -> None:
    assert running(told) == CONV | ABLATION | {"report"}


def moved(tour: Tour, told: str) -> None:
    paths = set(re.findall(r"results/metrics/(\S+?)\.json", told))
    assert paths == {"sft-conv", "r2ft-conv"}


def drawn(tour: Tour, told: str) -> None:
    """Both runs, by decoder."""
    page = Path(told.strip().removeprefix("file://")).read_text("utf-8")
    assert {'"rev": "HEAD"', '"rev": "workspace"', '"decoder": "conv"'} <= set(re.findall(r'"\w+": "\w+"', page))


def back(tour: Tour, told: str) -> None:
    assert tour.hashes() == tour.baseline
    assert not tour.clone.stale()


def forward(tour: Tour, told: str) -> None:
    assert tour.clone.loaded("dvc", "params", "diff", "--json")
    assert tour.hashes() != tour.baseline and not tour.clone.stale()
    tour.run("git checkout params.yaml dvc.lock results && dvc checkout")


def own_records(tour: Tour, told: str) -> None:
    assert "params.yaml is now the profile doubles" in told
    params = yaml.safe_load(tour.read("params.yaml"))
    merge(params, {**SMALL, "data": {"max_dropped": 0.9}, "base": SHORT, "reference": SHORT})
    merge(params, {"decode": {"seeds": [0], "steps": [4]}})
    tour.clone.write(params)


def own_run(tour: Tour, told: str) -> None:
    """Of step 6: the page has a table, and an edit of the file is seen."""
    assert "twice" in tour.read("results/doubles/report.html")
    with (tour.clone.folder / "data/input/doubles.jsonl").open("a") as file:
        file.write(json.dumps({"instruction": "What is twice a?", "output": "Twice a is 2a."}) + "\n")
    assert "prepare" in running(tour.clone.run("dvc", "repro", "--dry", "--force", "prepare").stdout)
    assert "prepare" in running(tour.clone.run("dvc", "repro", "prepare").stdout)


def own_base(tour: Tour, told: str) -> None:
    """Of step 7: with other weights `base` runs again."""
    weights = tour.clone.folder / "data/input/my-model/model.safetensors"
    assert "base" in running(told)
    tensors = load_file(weights)
    name, tensor = next(iter(tensors.items()))
    save_file({**tensors, name: tensor * 2}, weights)
    assert "base" in running(tour.clone.run("dvc", "repro", "base").stdout)


def shared(tour: Tour, told: str) -> None:
    """Of step 9: a clone has every output without computing."""
    colleague = tour.clone.folder.parent / "colleague"
    subprocess.run(["git", "clone", "-q", str(tour.clone.folder), str(colleague)], check=True)
    there = tour.clone.at(colleague)
    there.run("dvc", "remote", "modify", "local", "url", str(tour.clone.folder / ".cache/dvc-remote"))
    there.run("dvc", "pull", "dvc.yaml")
    assert not there.stale()


def nothing(tour: Tour, told: str) -> None:
    """Said by no output: what follows shows it."""


Check = Callable[[Tour, str], None]
ELSEWHERE = ("source .venv/bin/activate", "make ui")  # test_docs.py says why
GENERATE = 'dlm generate build/models/r2ft "Describe Velmora: its trade and the local food."'
STEPS: dict[str, Check] = {
    "make repro": first_run,
    "git commit -qam baseline": committed,
    "dvc metrics show": listed,
    "head -n 1 build/answers/r2ft-conv.jsonl": one_answer,
    GENERATE: answered,
    "dvc exp run -S decoding.conv.kernel_size=65 -n wide": wide,
    "dvc metrics diff": moved,
    "dvc plots diff": drawn,
    "git checkout params.yaml dvc.lock results && dvc checkout": back,
    "dvc exp apply wide": forward,
    "make profile NAME=doubles": own_records,
    "dvc repro": own_run,
    "cp -r data/base/mdlm data/input/my-model": nothing,
    "dvc exp run -S base.checkpoint=data/input/my-model -n mine base": own_base,
    f"{GENERATE} --block mine": answered,
    "dvc push --run-cache dvc.yaml": shared,
}


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Tour:
    return Tour(tmp_path_factory.mktemp("tour") / "clone")


def steps(tour: Tour) -> Iterator[str]:
    """The page's commands; what stands between them in Python and YAML comes in where it stands."""
    for block in blocks(PAGE):
        if block.language == "python":
            with contextlib.chdir(tour.clone.folder):
                exec(compile(block.text, f"{PAGE}:{block.line}", "exec"), {})
        elif block.lines[0].startswith("# profiles/"):
            (tour.clone.folder / block.lines[0].removeprefix("# ")).write_text(block.text)
        elif block.language == "yaml":
            params = json.loads(json.dumps(tour.clone.params))
            merge(params, {"decoding": yaml.safe_load(block.text)})
            tour.clone.write(params)
        yield from (command.text for command in commands(block))


def test_the_page(tour: Tour) -> None:
    """Every command does what the page says of it."""
    done = []
    for text in steps(tour):
        if text not in ELSEWHERE:
            STEPS[text](tour, tour.run(text))
            done.append(text)
    assert list(dict.fromkeys(done)) == list(STEPS)


def test_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """All of its cells, on the shipped base, which knows the sentences; it is stored without what it printed."""
    cells = [
        cell
        for cell in json.loads((ROOT / "docs/tour.ipynb").read_text("utf-8"))["cells"]
        if cell["cell_type"] == "code"
    ]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "results").mkdir()
    shutil.copy(ROOT / "results/table.json", tmp_path / "results")
    give_model(tmp_path)
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    names: dict = {}
    for cell in cells:
        exec("".join(cell["source"]), names)
    plt.close("all")
    told = capsys.readouterr().out
    assert "forward passes" in told and "░" in told and "Velmora" in told
    assert [kernel for kernel in ("  5 ", " 17 ", " 65 ") if kernel not in told] == []
    assert names["out"].gaps[0][0].strip()
    assert isinstance(names["made"]["conv"].commit_step, torch.Tensor)
