"""The pipeline's stages without DVC and within a time budget, for a machine that one has for half an hour.

    python benchmarks/pipeline.py --profile english --pretraining-minutes 4 --minutes 26

The stages' own scripts run one after the other in this process, as dvc.yaml and then sweeps/dvc.yaml list them. The
number of pretraining steps is what fits the time given, by the speed that a short trial has. What the budget leaves no
time for is skipped, and what cannot be done (gaps without the builtin corpus) has failed; both are named. After an
interruption, or with more time, --resume does what is missing. MLflow is not needed and not used. Figures, table,
parameters, how long each stage took and how fast each cell was decoded lie in report.results. Beside the pipeline of
the profile: all cells on other evaluation sets (--sets), the SFT-only model trained in other ways (--variants), R2FT
trained in other ways (--rejections), a table each.
"""

import ast
import copy
import gc
import importlib.util
import itertools
import os
import runpy
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from commands import Command, commands
from common import Arguments, command_line, default_device, hardware, split_variant

from dlm.analysis.table import build_table, to_markdown
from dlm.errors import UserError, run_script
from dlm.files import read_json, write_json, write_text
from dlm.params import parse_params
from dlm.profiles import merge, render
from dlm.schema import require

ROOT = Path(__file__).parents[1]
TRIAL = (20, 80)  # steps of the two trials, whose difference is free of start-up
FITTED = ("steps", "warmup_steps", "eval_every", "save_every")  # of base.training
# Tracking, DVC, other machines; what torch for GPUs brings along.
NEEDLESS = {"mlflow", "filelock", "dvc", "vl_convert", "openai", "huggingface_hub", "triton"}


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


class Runner:
    """Runs stages in a folder of their own, and keeps there which are done: a second one goes on from them."""

    def __init__(self, folder: Path, params: dict[str, Any], seconds: float) -> None:
        self.folder, self.params = folder, params
        self.deadline = time.monotonic() + seconds
        self.times: dict[str, float] = {}
        self.step: float | None = None  # seconds of a step of pretraining, once it is known
        self.skipped: list[str] = []
        self.failed: list[str] = []
        self.others: dict[str, Runner] = {}
        self.tables: dict[str, list[dict[str, Any]]] = {}
        if self.state.is_file():
            kept = read_json(self.state)
            self.times, self.step = kept["times"], kept["step"]
            begun = yaml.safe_load((folder / "params.yaml").read_text())
            ours, theirs = params["base"]["training"], begun["base"]["training"]
            known, other = (ours, theirs) if self.step is None else (theirs, ours)  # a trial has steps of its own
            other |= {key: known[key] for key in FITTED}
            if params != begun:
                raise UserError(f"{folder}: was begun with other parameters; give the same or another --folder")

    @property
    def state(self) -> Path:
        return self.folder / "state.json"

    def keep(self) -> None:
        write_json(self.state, {"times": self.times, "step": self.step})

    def run(self, name: str, words: list[str], build: Path | None = None) -> float:
        """One stage; its seconds. Raises what the stage raises, SystemExit for a user's mistake."""
        place = ["--params", str(self.write_params()), "--build", str(build or self.folder / "build")]
        before, started = sys.argv, time.monotonic()
        sys.argv = [*words, *place]
        try:
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        finally:
            sys.argv = before
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        seconds = time.monotonic() - started
        print(f"{name}: {seconds:.1f} s", flush=True)
        return seconds

    def write_params(self) -> Path:
        path = self.folder / "params.yaml"
        write_text(path, yaml.safe_dump(self.params, sort_keys=False))
        return path

    def one(self, name: str, words: list[str]) -> None:
        """One stage, unless it is done."""
        if name not in self.times:
            self.times[name] = self.run(name, words)
            self.keep()

    def all(self, stages: Sequence[Command]) -> None:
        """Every stage that there is time for."""
        for name, words in stages:
            if name not in self.times and time.monotonic() > self.deadline:
                self.skipped.append(name)
                continue
            try:
                self.one(name, words)
            except SystemExit:  # its line is on stderr
                self.failed.append(name)
            except Exception:  # the others' results are worth having
                traceback.print_exc()
                self.failed.append(name)

    def everyone(self) -> Iterator[tuple[str, "Runner"]]:
        """This run and those beside it, each with what its stages' names begin with."""
        yield "", self
        yield from ((f"{name}: ", other) for name, other in self.others.items())

    def variant(self, name: str, changes: Mapping[str, Any]) -> None:
        """The SFT-only model with other parameters, on the same base, decoded and evaluated."""
        decoders = self.params["sweeps"]["rejection"]["decoders"]
        stages = [("sft", ["stages/sft.py", "--variant", "sft"])] + [
            (f"{stage}-{decoder}", [f"stages/{stage}.py", "--checkpoint", "sft", "--decoder", decoder])
            for decoder in decoders
            for stage in ("decode", "evaluate")
        ]
        other = self.beside(name, changes, ["data", "models/base", "models/reference"], stages)
        rows = self.tables.setdefault("variants", self.cells("sft", decoders))
        rows += [{**row, "checkpoint": f"sft, {name}"} for row in other.cells("sft", decoders)]

    def evaluation_set(self, name: str, changes: Mapping[str, Any]) -> None:
        """The same checkpoints and decoders on other prompts."""
        wanted = ("decode@", "evaluate@")
        stages = [command for command in commands(ROOT / "dvc.yaml", self.params) if command[0].startswith(wanted)]
        other = self.beside(name, changes, ["models"], [("prepare", ["stages/prepare.py"]), *stages])
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
        other = Runner(self.folder / "beside" / name, changed(self.params, changes), self.deadline - time.monotonic())
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
        return [read_json(path) for path in paths if path.is_file()]

    def fit_pretraining(self, seconds: float) -> None:
        """Set base.training to as many steps as fit, after two short trials. `prepare` has run."""
        settings, found = self.params["base"]["training"], []
        for steps in TRIAL:
            settings |= {"steps": steps, "eval_every": steps, "save_every": steps}
            scratch = self.folder / "trial"
            shutil.rmtree(scratch, ignore_errors=True)
            (scratch / "models").mkdir(parents=True)
            (scratch / "data").symlink_to(self.folder / "build" / "data")
            found.append(self.run(f"trial of {steps} steps", ["stages/base.py"], scratch))
            shutil.rmtree(scratch)
        step = max((found[1] - found[0]) / (TRIAL[1] - TRIAL[0]), 1e-6)
        steps = max(int(seconds / step), TRIAL[1])
        every = max(steps // 10, 1)
        warmup = min(settings["warmup_steps"], steps // 10)
        settings |= {"steps": steps, "warmup_steps": warmup, "eval_every": every, "save_every": every}
        self.step = step
        self.write_params()
        self.keep()


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_argument("--profile", default="english", help="a file of profiles/")
    parser.add_argument(
        "--pretraining-minutes", type=float, default=4.0, help="of the base, and again of the reference"
    )
    parser.add_argument("--minutes", type=float, default=26.0, help="after which no further stage starts")
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
    params = yaml.safe_load(render(ROOT / "profiles", arguments.profile))
    for change in arguments.set:
        key, separator, value = change.partition("=")
        require(bool(separator), "--set", "KEY=VALUE", change)
        params = changed(params, {key: yaml.safe_load(value)})
    parse_params(yaml.safe_dump(params), f"profile {arguments.profile}")
    for name, changes in itertools.chain.from_iterable(block.items() for block in beside):
        parse_params(yaml.safe_dump(changed(params, changes)), name)
    if lacking := missing_packages():
        raise UserError(f"not installed: {', '.join(lacking)}; a stage would end there: see requirements.lock")
    folder: Path = arguments.folder.resolve()
    if folder.exists() and not arguments.resume:
        raise UserError(f"{folder}: is there; go on with --resume, remove it or name another --folder")
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("DLM_TRACKING", "off")
    runner = Runner(folder, params, arguments.minutes * 60)
    (first, words), *rest = commands(ROOT / "dvc.yaml", params)
    runner.one(first, words)
    if runner.step is None:
        runner.fit_pretraining(arguments.pretraining_minutes * 60)
    try:
        runner.all(rest)
        for name, changes in sets.items():
            runner.evaluation_set(name, changes)
        for name, changes in variants.items():
            runner.variant(name, changes)
        for name, changes in rejections.items():
            runner.rejection(name, changes)
        runner.all(list(commands(ROOT / "sweeps/dvc.yaml", params)))
    finally:
        write_results(Path(params["report"]["results"]), runner)


def write_results(out: Path, runner: Runner) -> None:
    """What the run took, and its parameters."""
    training = runner.params["base"]["training"]
    tokens = training["batch_size"] * training["gradient_accumulation"] * runner.params["base"]["sequence_length"]
    steps = training["steps"]
    assert runner.step is not None
    times = {prefix + name: seconds for prefix, one in runner.everyone() for name, seconds in one.times.items()}
    skipped = [prefix + name for prefix, one in runner.everyone() for name in one.skipped]
    failed = [prefix + name for prefix, one in runner.everyone() for name in one.failed]
    facts = {
        "command": command_line(),
        "hardware": hardware(default_device()),
        "pretraining": {"steps": steps, "tokens": steps * tokens, "tokens_per_s": tokens / runner.step},
        "stages": [{"stage": name, "seconds": seconds} for name, seconds in times.items()],
        "decoding": {path.stem: read_json(path) for path in sorted((runner.folder / "build/speed").glob("*.json"))},
        "skipped": skipped,
        "failed": failed,
    }
    write_json(out / "run.json", facts)
    for name, rows in runner.tables.items():
        if rows:
            table = build_table(rows)
            write_json(out / f"{name}.json", table)
            write_text(out / f"{name}.md", to_markdown(table))
    write_text(out / "params.yaml", yaml.safe_dump(runner.params, sort_keys=False))
    print(f"{len(times)} stages in {sum(times.values()):.0f} s")
    for words, names in (("no time was left for", skipped), ("failed:", failed)):
        if names:
            print(words, ", ".join(names))


if __name__ == "__main__":
    run_script(main)
