"""The pipeline's stages without DVC and within a time budget, for a machine that one has for half an hour.

    python benchmarks/pipeline.py --profile smollm2 --base-minutes 3 --minutes 9

The stages' own scripts run as dvc.yaml and then sweeps/dvc.yaml list them, with the decoders of report.decoders; one
after the other in this process, but for cells under --jobs. The base is trained for the time given; other trainings
have a time of their own with --set sft.training.minutes=1. What the budget leaves no time for is skipped, and what
cannot be done (gaps without the builtin corpus) has failed; both are named. After an interruption, or with more time,
--resume does what is missing or has failed. MLflow is not needed and not used. Figures, table, parameters, how long
each stage took and how fast each cell was decoded lie in report.results; where a cell is missing, cells.md has the
others. Beside the pipeline of the profile: all cells on other evaluation sets (--sets), the SFT-only model trained in
other ways (--variants), R2FT trained in other ways (--rejections), a table each.
"""

import ast
import contextlib
import copy
import gc
import importlib.util
import itertools
import multiprocessing
import os
import runpy
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from commands import Command, commands
from common import Arguments, command_line, default_device, hardware, split_variant, value_of

from dlm.analysis.table import build_table, to_markdown
from dlm.config.params import parse_params
from dlm.config.schema import require
from dlm.config.yaml import dump_yaml, load_yaml
from dlm.errors import UserError
from dlm.files import read_json, write_json, write_text
from dlm.pipeline.profiles import merge, render
from dlm.pipeline.start import run_script

ROOT = Path(__file__).parents[1]
SIDE_BY_SIDE = ("select", "decode", "evaluate", "ablation", "settings", "distance")  # with cells: none trains
CLOSING = ("evaluate_reference", "report")  # seconds, and what the run is for: they start whatever the time
# Tracking, DVC, other machines and the hub; what torch for GPUs brings along.
NEEDLESS = {"mlflow", "filelock", "dvc", "vl_convert", "openai", "huggingface_hub", "datasets", "triton"}


def missing_packages() -> list[str]:
    """What the stages and the library import, wherever in their text, and is not installed."""
    imported = set()
    for file in [*(ROOT / "src").rglob("*.py"), *(ROOT / "stages").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    return sorted(name for name in imported - NEEDLESS if importlib.util.find_spec(name) is None)


def changed(params: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with other values, by dotted names: {"sft.crop_share": 0.01}."""
    found: dict[str, Any] = copy.deepcopy(dict(params))
    for name, value in changes.items():
        for key in reversed(name.split(".")):
            value = {key: value}
        merge(found, value)
    return found


def check_gpu() -> None:
    """Raises UserError where a fault has spoilt this process's GPU: what comes next would fail too."""
    try:
        if torch.cuda.is_available():
            torch.ones(1, device="cuda").sum().item()
    except RuntimeError:
        raise UserError("the GPU cannot be used by this process any more; go on with --resume") from None


def run_stage(words: Sequence[str], place: Sequence[str]) -> float:
    """One stage in this process; its seconds. Raises what the stage raises, SystemExit for a user's mistake."""
    before, started = sys.argv, time.monotonic()
    sys.argv = [*words, *place]
    try:
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    finally:
        sys.argv = before
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return time.monotonic() - started


def run_in_time(words: Sequence[str], place: Sequence[str], deadline: float) -> float | None:
    """`run_stage` in a process of a pool; None where no time was left. Raises RuntimeError for whatever goes wrong, or
    ends the process where its GPU cannot be used any more: it would fail every other cell too."""
    if time.monotonic() > deadline:
        return None
    try:
        return run_stage(words, place)
    except SystemExit:
        raise RuntimeError(f"{' '.join(words)}: its line is above") from None
    except Exception:
        told = traceback.format_exc()
        try:
            check_gpu()
        except UserError:
            os._exit(1)
        raise RuntimeError(told) from None  # as text: not every exception finds its way between processes


class Runner:
    """Runs stages in a folder of their own, and keeps there which are done: a second one goes on from them."""

    def __init__(self, folder: Path, params: dict[str, Any], seconds: float, pool: Executor | None = None) -> None:
        self.folder, self.params, self.pool = folder, params, pool
        self.deadline = time.monotonic() + seconds
        self.times: dict[str, float] = {}
        self.skipped: list[str] = []
        self.failed: list[str] = []
        self.others: dict[str, Runner] = {}
        self.tables: dict[str, list[dict[str, Any]]] = {}
        if self.state.is_file():
            self.times = read_json(self.state)
            if params != load_yaml((folder / "params.yaml").read_text()):
                raise UserError(f"{folder}: was begun with other parameters; give the same or another --folder")

    @property
    def state(self) -> Path:
        return self.folder / "state.json"

    def keep(self) -> None:
        write_json(self.state, self.times)

    def place(self) -> list[str]:
        """The options of a stage's script that say where it reads and writes."""
        path = self.folder / "params.yaml"
        write_text(path, dump_yaml(self.params))
        return ["--params", str(path), "--build", str(self.folder / "build")]

    def done(self, name: str, seconds: float) -> None:
        print(f"{name}: {seconds:.1f} s", flush=True)
        self.times[name] = seconds
        self.keep()

    def all(self, stages: Sequence[Command]) -> None:
        """Every stage that is not done and that there is time for; cells that train nothing side by side in a pool."""
        missing = [stage for stage in stages if stage[0] not in self.times]
        for kind, group in itertools.groupby(missing, key=lambda stage: stage[0].partition("@")[0]):
            if self.pool is not None and kind in SIDE_BY_SIDE:
                self.together(self.pool, list(group))
            else:
                for name, words in group:
                    self.one(name, words)

    def one(self, name: str, words: list[str]) -> None:
        if time.monotonic() > self.deadline and name not in CLOSING:
            self.skipped.append(name)
            return
        try:
            self.done(name, run_stage(words, self.place()))
        except SystemExit:  # its line is on stderr
            self.failed.append(name)
        except Exception:  # the others' results are worth having
            traceback.print_exc()
            self.failed.append(name)
            check_gpu()

    def together(self, pool: Executor, group: Sequence[Command]) -> None:
        place = self.place()
        waiting = {pool.submit(run_in_time, words, place, self.deadline): name for name, words in group}
        for future in as_completed(waiting):
            name = waiting[future]
            try:
                seconds = future.result()
            except BrokenProcessPool:
                raise UserError("a process that decodes or evaluates has ended; go on with --resume") from None
            except Exception:
                traceback.print_exc()
                self.failed.append(name)
            else:
                if seconds is None:
                    self.skipped.append(name)
                else:
                    self.done(name, seconds)

    def everyone(self) -> Iterator[tuple[str, "Runner"]]:
        """This run and those beside it, each with what its stages' names begin with."""
        yield "", self
        yield from ((f"{name}: ", other) for name, other in self.others.items())

    def variant(self, name: str, changes: Mapping[str, Any]) -> None:
        """The SFT-only model with other parameters, on the same base, decoded and evaluated."""
        decoders = self.params["sweeps"]["rejection"]["decoders"]
        stages = [("sft", ["stages/sft.py", "--variant", "sft"])] + [
            (f"{stage}@{decoder}", [f"stages/{stage}.py", "--checkpoint", "sft", "--decoder", decoder])
            for stage in ("decode", "evaluate")
            for decoder in decoders
        ]
        other = self.beside(name, changes, ["data", "models/base", "models/reference", "selection"], stages)
        rows = self.tables.setdefault("variants", self.cells("sft", decoders))
        rows += [{**row, "checkpoint": f"sft, {name}"} for row in other.cells("sft", decoders)]

    def evaluation_set(self, name: str, changes: Mapping[str, Any]) -> None:
        """The same checkpoints and decoders on other prompts."""
        wanted = ("decode@", "evaluate@")
        stages = [command for command in commands(ROOT / "dvc.yaml", self.params) if command[0].startswith(wanted)]
        other = self.beside(name, changes, ["models", "selection"], [("prepare", ["stages/prepare.py"]), *stages])
        decoders = self.params["report"]["decoders"]
        self.tables[name] = [row for checkpoint in ("sft", "r2ft") for row in other.cells(checkpoint, decoders)]

    def rejection(self, name: str, changes: Mapping[str, Any]) -> None:
        """R2FT at other rates or for longer, what it writes at every look."""
        stage = ("rejection", ["stages/rejection.py", "--negatives", "default"])
        path = self.beside(name, changes, ["data", "models"], [stage]).folder / "build/sweeps/rejection-default.json"
        length = self.params["decode"]["gen_length"]
        self.tables[name] = [
            {**row, "checkpoint": f"r2ft, {row['r2ft_steps']} steps", "gen_length": length}
            for row in (read_json(path)["rows"] if path.is_file() else [])
        ]

    def beside(
        self, name: str, changes: Mapping[str, Any], shared: Sequence[str], stages: Sequence[Command]
    ) -> "Runner":
        """Stages with other parameters and some of this run's artefacts, in a folder of their own."""
        seconds = self.deadline - time.monotonic()
        other = Runner(self.folder / "beside" / name, changed(self.params, changes), seconds, self.pool)
        for part in shared:
            place = other.folder / "build" / part
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.exists():
                place.symlink_to(self.folder / "build" / part)
        other.all(stages)
        self.others[name] = other
        return other

    def cells(self, checkpoint: str, decoders: Sequence[str]) -> list[dict[str, Any]]:
        """The figures of a checkpoint's cells, as far as they are there."""
        paths = [self.folder / "build" / "evaluation" / f"{checkpoint}-{decoder}.json" for decoder in decoders]
        return [row for path in paths if path.is_file() for row in read_json(path)]


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_argument("--profile", default="english", help="a file of profiles/")
    parser.add_argument("--base-minutes", type=float, help="of the base's training (default: as the profile says)")
    parser.add_argument("--minutes", type=float, default=26.0, help="after which no further stage starts")
    parser.add_argument("--jobs", type=int, default=1, help="decode and evaluate so many cells at once (default: 1)")
    parser.add_argument("--folder", type=Path, default=Path("build/pipeline"), help="for checkpoints and answers")
    parser.add_argument("--resume", action="store_true", help="go on in --folder, with the same parameters")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another value of params.yaml")
    for name, told in (
        ("--sets", "all cells on another set, in NAME.md: wiki:data.evaluation.name=wiki,data.evaluation.path=FILE"),
        ("--variants", "SFT with other parameters, beside it in variants.md: crops:sft.crop_share=0.01"),
        ("--rejections", "R2FT otherwise, looked at on the way, in NAME.md: long:sweeps.rejection.steps=1000"),
    ):
        parser.add_argument(name, nargs="*", default=[], metavar="NAME:KEY=VALUE,...", help=told)
    arguments = parser.parse_args()
    beside = [dict(map(split_variant, given)) for given in (arguments.sets, arguments.variants, arguments.rejections)]
    sets, variants, rejections = beside
    params = load_yaml(render(ROOT / "profiles", arguments.profile))
    for change in arguments.set:
        key, separator, value = change.partition("=")
        require(bool(separator), "--set", "KEY=VALUE", change)
        params = changed(params, {key: value_of(value, f"--set {key}")})
    if arguments.base_minutes is not None:
        params = changed(params, {"base.training.minutes": arguments.base_minutes})
    parse_params(dump_yaml(params), f"profile {arguments.profile}")
    for name, changes in itertools.chain.from_iterable(block.items() for block in beside):
        parse_params(dump_yaml(changed(params, changes)), name)
    if lacking := missing_packages():
        raise UserError(f"not installed: {', '.join(lacking)}; a stage would end there: see requirements.lock")
    folder: Path = arguments.folder.resolve()
    if folder.exists() and not arguments.resume:
        raise UserError(f"{folder}: is there; go on with --resume, remove it or name another --folder")
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("DLM_TRACKING", "off")
    with contextlib.ExitStack() as stack:
        pool = None
        if arguments.jobs > 1:
            started = ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn"))
            pool = stack.enter_context(started)
            for _ in range(arguments.jobs):
                pool.submit(time.sleep, 0.1)  # their imports take place beside the first trainings
        runner = Runner(folder, params, arguments.minutes * 60, pool)
        stack.callback(write_results, Path(params["report"]["results"]), runner)
        runner.all(list(commands(ROOT / "dvc.yaml", params)))
        for name, changes in sets.items():
            runner.evaluation_set(name, changes)
        for name, changes in variants.items():
            runner.variant(name, changes)
        for name, changes in rejections.items():
            runner.rejection(name, changes)
        runner.all(list(commands(ROOT / "sweeps/dvc.yaml", params)))


def trained(runner: Runner) -> dict[str, dict[str, float]]:
    """How many steps each model took, and what its held-out figures were at the end."""
    curves = {path.parent.name: read_json(path) for path in sorted(runner.folder.glob("build/models/*/curve.json"))}
    return {name: curve[-1] for name, curve in curves.items() if curve}


def write_results(out: Path, runner: Runner) -> None:
    """What the run took, and its parameters."""
    times = {prefix + name: seconds for prefix, one in runner.everyone() for name, seconds in one.times.items()}
    skipped = [prefix + name for prefix, one in runner.everyone() for name in one.skipped]
    failed = [prefix + name for prefix, one in runner.everyone() for name in one.failed]
    facts = {
        "command": command_line(),
        "hardware": hardware(default_device()),
        "trained": trained(runner),
        "stages": [{"stage": name, "seconds": seconds} for name, seconds in times.items()],
        "decoding": {path.stem: read_json(path) for path in sorted((runner.folder / "build/speed").glob("*.json"))},
        "skipped": skipped,
        "failed": failed,
    }
    write_json(out / "run.json", facts)
    if not (out / "table.json").is_file():
        decoders = runner.params["report"]["decoders"]
        runner.tables["cells"] = [row for checkpoint in ("sft", "r2ft") for row in runner.cells(checkpoint, decoders)]
    for name, rows in runner.tables.items():
        if rows:
            table = build_table(rows)
            write_json(out / f"{name}.json", table)
            write_text(out / f"{name}.md", to_markdown(table))
    write_text(out / "params.yaml", dump_yaml(runner.params))
    print(f"{len(times)} stages in {sum(times.values()):.0f} s")
    for words, names in (("no time was left for", skipped), ("failed:", failed)):
        if names:
            print(words, ", ".join(names))


if __name__ == "__main__":
    run_script(main)
