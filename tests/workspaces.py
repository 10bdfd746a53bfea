"""Copies of the repository with their own git, DVC cache and tracking database, and numbers small enough for a test."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import torch
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from scripts import ROOT, stage
from warm import warm

from dlm.pipeline.profiles import merge

TINY = {
    "data": {"valid_size": 8, "eval_size": 4, "max_dropped": 0.9, "builtin": {"train_size": 60}},
    "tokenizer": {"source": "train", "vocab_size": 700},
    "model": {"hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 16},
    "base": {"init": "pretrain", "rows": "text", "training": {"steps": 2, "batch_size": 4}},
    "reference": {"init": "pretrain", "training": {"steps": 2, "batch_size": 4}},
    "sft": {"training": {"steps": 3, "batch_size": 4}},
    "negatives": {"examples": 8},
    "r2ft": {"training": {"steps": 2, "batch_size": 4}},
    "decode": {"seeds": [0, 1], "steps": [4, 8], "gen_length": 64},
    "decoding": {
        "top_k": {"top_k": [5, 1]},
        "low_confidence": {"confidence": "probability", "temperature": 0.0},
        "semi_ar": {"rule": "top_k", "variant": "stride", "block_length": 32},
        "conv": {"rule": "top_k", "kernel_size": [9, 33], "gain": "tanh"},
    },
    "select": {"prompts": 2},
    "ablation": {"prompts": 2, "steps": 8},
    "likelihood": {"records": 4, "samples": 16},
    "infill": {"prompts": 2, "seeds": [0], "steps": [2]},
    "rivals": {"prompts": 2, "passes": [2, 8]},
    "sweeps": {
        "prompts": 2,
        "steps": [4, 8],
        "size_steps": [4],
        "blocks": [32],
        "kernels": [9],
        "gains": ["tanh"],
        "top_k": [1],
        "profiles": [],
        "rejection": {"steps": 2, "every": 1, "decoders": ["top_k"]},
    },
    "evaluate": {"bootstrap_samples": 50},
}


class Workspace:
    """A copy of the repository with its own git, DVC cache and tracking database."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split("\n")
        for name in filter(None, files):
            if (ROOT / name).is_file() and not name.startswith("results/") and not name.endswith("dvc.lock"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        params = yaml.safe_load((folder / "params.yaml").read_text())
        merge(params, TINY)
        self.write(params)
        self.params = params
        self.run("git", "init", "-q")
        self.name_user()
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", "start")
        self.told = ""

    def know_sweeps(self) -> None:
        """As `make sweeps` begins."""
        shutil.copy(self.folder / "sweeps/pipeline.yaml", self.folder / "sweeps/dvc.yaml")

    def name_user(self) -> None:
        self.run("git", "config", "user.name", "t")
        self.run("git", "config", "user.email", "t@example.org")

    def at(self, folder: Path) -> Self:
        """The same with another folder."""
        other = copy.copy(self)
        other.folder = folder
        return other

    def write(self, params: dict) -> None:
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    def environment(self) -> dict[str, str]:
        bin_folder = str(Path(sys.executable).parent)
        dropped = ("DVC_ROOT", "DVC_EXP_NAME", "DVC_STAGE", "DLM_TRACKING", "MLFLOW_TRACKING_URI")
        found = {key: value for key, value in os.environ.items() if key not in dropped}
        return found | {"PATH": f"{bin_folder}:{found['PATH']}", "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"}

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """To its end. It starts at once (warm.py), and so does what it starts."""
        environment = self.environment()
        environment["PATH"] = f"{warm().bin}:{environment['PATH']}"
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done

    def start(self, *command: str) -> "subprocess.Popen[str]":
        """In the background, with nothing imported before; both of its streams in one."""
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=self.folder, env=self.environment(), **streams)

    def loaded(self, *command: str) -> Any:
        """What a command prints as JSON."""
        return json.loads(self.run(*command).stdout)

    def runs(self) -> list[Run]:
        """Those in the database of MLflow."""
        client = MlflowClient(f"sqlite:///{self.folder / 'mlflow.db'}")
        return list(client.search_runs([client.get_experiment_by_name("dlm").experiment_id]))

    def stale(self) -> set[str]:
        """The stages that `dvc repro` would run, but for `inputs`, which it always runs."""
        return set(self.loaded("dvc", "status", "--json", "dvc.yaml")) - {"inputs"}


def running(told: str) -> set[str]:
    """The stages that ran, but for `inputs`, which always does."""
    return set(re.findall(r"Running stage '(.+)':", told)) - {"inputs"}


STAGES = [
    ("inputs",),
    ("prepare",),
    ("base",),
    ("reference",),
    ("sft", "--variant", "sft"),
    ("sft", "--variant", "sft_answer"),
    ("negatives",),
    ("r2ft",),
    *(("selection", "--decoder", name, "--checkpoints", "sft") for name in ("top_k", "conv", "semi_ar")),
    *(("decode", "--checkpoint", name, "--decoder", "top_k") for name in ("sft", "r2ft")),
    *(("evaluate", "--checkpoint", name, "--decoder", "top_k") for name in ("sft", "r2ft")),
    ("evaluate", "--checkpoint", "reference", "--decoder", "nucleus"),
    *((script, "--checkpoint", name) for script in ("decode_ablation", "ablation") for name in ("sft", "r2ft")),
    *(("likelihood", "--checkpoint", name) for name in ("base", "sft", "sft_answer", "r2ft")),
    ("report",),
]


class Small(Workspace):
    """The shipped checkpoints, whose metrics differ between settings; one decoder on the axes, nothing to choose.

    R2FT, decoding and evaluation are long enough to be met at work.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        shipped = yaml.safe_load((ROOT / "params.yaml").read_text())
        self.params |= {block: shipped[block] for block in ("tokenizer", "model", "base", "reference")}
        few = {
            "reference": {"training": {"steps": 1}},
            "r2ft": {"training": {"steps": 20, "save_every": 5, "eval_every": 10}},
            "decode": {"seeds": list(range(4)), "steps": [16], "gen_length": 128},
            "decoding": {"top_k": {"top_k": 5}, "conv": {"kernel_size": 33}},
            "evaluate": {"bootstrap_samples": 5000},
            "report": {"decoders": ["top_k"]},
        }
        merge(self.params, few)
        self.write(self.params)
        # The ablation reads the choices for semi_ar and conv.
        dvc = (folder / "dvc.yaml").read_text()
        (folder / "dvc.yaml").write_text(dvc.replace("${report.decoders}", "[top_k, semi_ar, conv]", 1))

    @classmethod
    def made(cls, folder: Path, params: dict[str, Any]) -> Self:
        """One that is there already, made by another process."""
        small = cls.__new__(cls)
        small.folder, small.params, small.told = folder, params, ""
        return small

    def make(self) -> None:
        """Every stage in this process, with DVC's and git's commit; the same to the bit as `dvc repro` here."""
        threads = torch.get_num_threads()
        torch.set_num_threads(int(self.environment()["OMP_NUM_THREADS"]))
        for name, *arguments in STAGES:
            stage(name, *arguments, folder=self.folder)
        torch.set_num_threads(threads)
        self.run("dvc", "commit", "--force", "dvc.yaml")
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", "run")

    def copied(self, folder: Path) -> Self:
        """A copy without its runs in MLflow."""
        ignored = shutil.ignore_patterns("mlflow.db*", "mlartifacts", ".cache")
        shutil.copytree(self.folder, folder, symlinks=True, ignore=ignored)
        return self.at(folder)
