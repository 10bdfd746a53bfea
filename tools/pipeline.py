"""The stages of dvc.yaml, then of sweeps/pipeline.yaml, in their order and within a time budget: without DVC or MLflow.

    python tools/pipeline.py --profile smollm2 --base-minutes 3 --minutes 9

A stage that no time is left for is skipped; one that fails stops no other. Both are named at the end, and the same
command with --resume does them. report.results gets what the stages write, params.yaml and run.json; without a report
cells.md has the cells that there are. Other prompts or another training are a run of their own:
--set data.evaluation.name=wiki --set report.results=results/wiki --folder build/wiki.
"""

import argparse
import contextlib
import gc
import itertools
import math
import multiprocessing
import os
import runpy
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Literal

import torch
from commands import Command, commands
from packages import missing_packages

from dlm.pipeline.start import run_script
from dlm.analysis.table import build_table, to_markdown
from dlm.config.params import parse_params
from dlm.config.yaml import dump_yaml, load_yaml, setting
from dlm.errors import UserError
from dlm.files import read_json, write_json, write_text
from dlm.pipeline import processes
from dlm.pipeline.hardware import command_of, hardware
from dlm.pipeline.profiles import merge, render

ROOT = Path(__file__).parents[1]
# With cells, of which none trains.
SIDE_BY_SIDE = ("select", "decode", "evaluate", "decode_ablation", "ablation", "likelihood", "settings", "distance")
CLOSING = ("evaluate_reference", "report")  # seconds, and what the run is for: they start whatever the time
OTHER = "other_profile@"  # it calls this script
Outcome = tuple[Literal["done", "skipped", "failed", "spoilt"], float]  # and the seconds


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--profile", default="english", help="a file of profiles/ (default: english)")
    made.add_argument("--base-minutes", type=float, help="of the base's training (default: as the profile says)")
    made.add_argument("--minutes", type=float, default=26.0, help="after which no further stage starts (default: 26)")
    made.add_argument("--jobs", type=int, default=1, help="cells that train nothing, so many at once")
    made.add_argument("--folder", type=Path, default=Path("build/pipeline"), help="for checkpoints and answers")
    made.add_argument("--resume", action="store_true", help="go on in --folder, with the same parameters")
    made.add_argument("--no-sweeps", action="store_true", help="dvc.yaml alone")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another value of params.yaml")
    return made


def parameters(arguments: argparse.Namespace) -> dict[str, Any]:
    """The profile with the values of --base-minutes and --set, checked."""
    params = load_yaml(render(ROOT / "profiles", arguments.profile))
    minutes = arguments.base_minutes
    for text in [*arguments.set, *([] if minutes is None else [f"base.training.minutes={minutes}"])]:
        key, block = setting(text, "--set")
        for name in reversed(key.split(".")):
            block = {name: block}
        merge(params, block)
    parse_params(dump_yaml(params), f"profile {arguments.profile}")
    return params


def run_stage(words: Sequence[str], deadline: float) -> Outcome:
    """One stage in this process; spoilt: it failed in a way that leaves the process's GPU of no use."""
    started, before = time.monotonic(), sys.argv
    if started > deadline:
        return "skipped", 0.0
    what: Literal["done", "failed"] = "failed"
    sys.argv = list(words)
    try:
        with contextlib.suppress(SystemExit):  # a user's mistake; its line is on stderr
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
            what = "done"
    except Exception:  # the others' results are worth having
        traceback.print_exc()
    finally:
        sys.argv = before
    gc.collect()
    try:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.ones(1, device="cuda").sum().item()
    except RuntimeError:
        return "spoilt", time.monotonic() - started
    return what, time.monotonic() - started


class Run:
    """A run in a folder of its own, which keeps what is done: another run with --resume goes on from there."""

    def __init__(self, folder: Path, params: dict[str, Any], seconds: float, pool: Executor | None = None) -> None:
        self.folder, self.params, self.pool = folder, params, pool
        self.deadline = time.monotonic() + seconds
        self.state = folder / "state.json"
        self.done: dict[str, float] = read_json(self.state) if self.state.is_file() else {}
        self.skipped: list[str] = []
        self.failed: list[str] = []
        kept = folder / "params.yaml"
        if self.done and params != load_yaml(kept.read_text(encoding="utf-8")):
            raise UserError(f"{folder}: was begun with other parameters; give the same or another --folder")
        write_text(kept, dump_yaml(params))
        self.place = ["--params", str(kept), "--build", str(folder / "build")]

    def all(self, stages: Sequence[Command]) -> None:
        """Every stage that is not done and that there is time for."""
        missing = [(name, [*words, *self.place]) for name, words in stages if name not in self.done]
        for kind, group in itertools.groupby(missing, key=lambda stage: stage[0].partition("@")[0]):
            if self.pool is not None and kind in SIDE_BY_SIDE:
                self.together(self.pool, list(group))
            else:
                for name, words in group:
                    self.note(name, run_stage(words, math.inf if name in CLOSING else self.deadline))

    def together(self, pool: Executor, cells: Sequence[Command]) -> None:
        try:
            waiting = {pool.submit(run_stage, words, self.deadline): name for name, words in cells}
            for future in as_completed(waiting):
                self.note(waiting[future], future.result())
        except BrokenProcessPool:
            raise UserError("a process that decodes or evaluates has ended; go on with --resume") from None

    def note(self, name: str, outcome: Outcome) -> None:
        what, seconds = outcome
        if what == "done":
            print(f"{name}: {seconds:.1f} s", flush=True)
            self.done[name] = seconds
            write_json(self.state, self.done)
        else:
            (self.skipped if what == "skipped" else self.failed).append(name)
        if what == "spoilt":
            raise UserError("the GPU cannot be used by this process any more; go on with --resume")

    def write_results(self) -> None:
        """What the run took, and its parameters; the cells that there are, where there is no report."""
        out, build = Path(self.params["report"]["results"]), self.folder / "build"
        curves = {path.parent.name: read_json(path) for path in sorted(build.glob("models/*/curve.json"))}
        facts = {
            "command": command_of("tools/pipeline.py"),
            "hardware": hardware(processes.device()),
            "trained": {name: curve[-1] for name, curve in curves.items() if curve},
            "stages": [{"stage": name, "seconds": seconds} for name, seconds in self.done.items()],
            "decoding": {path.stem: read_json(path) for path in sorted(build.glob("speed/*.json"))},
            "skipped": self.skipped,
            "failed": self.failed,
        }
        write_json(out / "run.json", facts)
        write_text(out / "params.yaml", dump_yaml(self.params))
        paths = [build / f"evaluation/{c}-{d}.json" for c in ("sft", "r2ft") for d in self.params["report"]["decoders"]]
        rows = [row for path in paths if path.is_file() for row in read_json(path)]
        if rows and "report" not in self.done:
            write_text(out / "cells.md", to_markdown(build_table(rows)))
        print(f"{len(self.done)} stages in {sum(self.done.values()):.0f} s")
        for told, names in (("no time was left for", self.skipped), ("failed:", self.failed)):
            if names:
                print(told, ", ".join(names))


def main() -> None:
    arguments = parser().parse_args()
    params = parameters(arguments)
    if lacking := missing_packages():
        raise UserError(f"not installed: {', '.join(lacking)}; a stage would end there: see requirements.lock")
    folder: Path = arguments.folder.resolve()
    if folder.exists() and not arguments.resume:
        raise UserError(f"{folder}: is there; go on with --resume, remove it or name another --folder")
    os.environ.setdefault("DLM_TRACKING", "off")
    with contextlib.ExitStack() as stack:
        pool = None
        if arguments.jobs > 1:
            pool = ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn"))
            stack.callback(pool.shutdown, cancel_futures=True)
            for _ in range(arguments.jobs):
                pool.submit(time.sleep, 0.1)  # their imports take place beside the first trainings
        run = Run(folder, params, arguments.minutes * 60, pool)
        stack.callback(run.write_results)
        for file in ("dvc.yaml",) if arguments.no_sweeps else ("dvc.yaml", "sweeps/pipeline.yaml"):
            run.all([stage for stage in commands(ROOT / file, params) if not stage[0].startswith(OTHER)])


if __name__ == "__main__":
    run_script(main)
