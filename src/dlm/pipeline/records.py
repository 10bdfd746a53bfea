"""What the runs of MLflow hold, from what stages leave: the same for a stage that runs and for `dlm backfill`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dlm.config.decoding import DecoderBlock
from dlm.decoding.options import RULES, DecoderOptions
from dlm.errors import UserError
from dlm.files import read_json
from dlm.pipeline.locks import md5
from dlm.pipeline.run import Run, guarded

SAMPLES = 20
TRAIN, VALID, EVAL = "data/training/train.parquet", "data/training/valid.parquet", "data/eval.parquet"
# Of each stage: what a dataset is for -> files below build/.
INPUTS = {
    "base": {"training": [TRAIN], "validation": [VALID]},
    "reference": {"training": [TRAIN], "validation": [VALID], "evaluation": [EVAL]},
    "sft": {"training": [TRAIN], "validation": [VALID]},
    "negatives": {"training": [TRAIN], "validation": [VALID]},
    "r2ft": {"training": [TRAIN, "negatives/train.parquet"], "validation": [VALID, "negatives/valid.parquet"]},
    "select": {"validation": [VALID]},
    "decode": {"evaluation": [EVAL]},
    "evaluate": {"evaluation": [EVAL, "answers/{cell}.jsonl"]},
    "decode_ablation": {"evaluation": [EVAL]},
    "ablation": {"evaluation": [EVAL, "ablation/{cell}.jsonl"]},
    "likelihood": {"validation": [VALID]},
}
# An option, the value with which it is off, and the options that say nothing then.
OFF = (
    ("kernel_size", None, {"kernel_size", "kernel", "gain", "conv_mult"}),
    ("block_length", None, {"block_length", "variant"}),
    ("suffix", "full", {"suffix_window", "suffix_scale", "suffix_sigma"}),
)
Row = Mapping[str, Any]


def cell_params(
    build: Path, checkpoint: str, decoder: str, block: DecoderBlock | None, budgets: Sequence[int]
) -> dict[str, Any]:
    """What identifies a cell, and its decoder's settings, under the same names for every cell.

    `kernel_size` is the value at the most steps, the step whose scores MLflow shows; `kernel_size_S16` that at 16: for
    these the options that stand in the block. What says nothing about a decoder is left out: the gain of no window.

    Args:
        block: decoding.<decoder>; None for the reference.
        budgets: the numbers of steps S, rising.
    """
    params: dict[str, Any] = {"checkpoint": checkpoint, "decoder": decoder}
    if block is None:
        return params
    told = {steps: _told(options) for steps, options in _settings(build, block, budgets).items()}
    for steps, options in told.items():
        params |= {f"{name}_S{steps}": options[name] for name in options if name in {"rule", *block.values}}
    return params | (told[max(told)] if told else {})


def _told(options: DecoderOptions) -> dict[str, Any]:
    """What says something about a decoder."""
    rule = next(name for name, kind in RULES.items() if kind is type(options))
    named = {"rule": rule, **asdict(options)}
    silent = {name for switch, off, names in OFF if named[switch] == off for name in names}
    return {name: value for name, value in named.items() if name not in silent}


def _settings(build: Path, block: DecoderBlock, budgets: Sequence[int]) -> dict[int, DecoderOptions]:
    """A decoder's options at each budget, as far as they are known (the stage select's choice)."""
    if len(block.candidates) == 1:
        return dict.fromkeys(budgets, block.options[0])
    path = build / "selection" / f"{block.name}.json"
    try:
        chosen = {choice["steps"]: choice["options"] for choice in read_json(path)}
        return {steps: block.changed(**chosen[steps]) for steps in budgets if steps in chosen}
    except (UserError, LookupError, TypeError):  # not there, or chosen among other candidates
        return {}


@guarded
def log_inputs(run: Run, stage: str, build: Path, cell: str = "") -> None:
    """The datasets that a stage reads, as far as they are there."""
    for context, names in INPUTS.get(stage, {}).items():
        run.inputs(context, *(build / name.format(cell=cell) for name in names))


@guarded
def log_source(run: Run, data: Mapping[str, Any]) -> None:
    """Where the records come from, by the block `data` of params.yaml; what is on the hub has no hash."""
    place = {"builtin": data["builtin"].get("grammar"), "file": data["file"].get("path")}.get(data["source"])
    if place:
        run.inputs("training", place)


@guarded
def log_checkpoint(run: Run, folder: Path, curve: Sequence[Row]) -> None:
    """A trained checkpoint as a model of MLflow, its curve, and where that ended on held-out data as the model's."""
    run.trained(folder)
    for row in curve[-1:]:
        run.model_metrics({name: row[name] for name in row if name == "step" or name.startswith("eval_")})
    run.curve([*curve[:-1], *({name: row[name] for name in row if not name.startswith("eval_")} for row in curve[-1:])])


@guarded
def log_scores(run: Run, build: Path, results: Sequence[Row], budgets: Sequence[int]) -> None:
    """A cell's scores: each over the steps, and the headline under a name for each number of steps (`budgets` for the
    reference, which has none)."""
    first = results[0]
    run.decodes(build / "models" / first["checkpoint"])
    run.curve([{**scores(row), "step": row["steps"] or 0} for row in results])
    at = [(row, steps) for row in results for steps in (budgets if row["steps"] is None else [row["steps"]])]
    headline = {f"{name}_S{steps}": row[name] for row, steps in at for name in ("quality", "nfe")}
    rounded = {  # as in DVC's metrics
        name: round(value, 4) for name, value in {**headline, "area": first["area"]}.items() if value is not None
    }
    prompts = build / EVAL
    digest = md5(prompts) if prompts.is_file() else ""
    run.model_metrics(rounded, f"prompts, by {first['decoder']}", digest)
    run.params({name: first[name] for name in ("gen_length", "n", "prompts")})


def scores(row: Row) -> dict[str, Any]:
    """What was measured, each with an interval beside it, but for the area, which is no one budget's."""
    measured = {name: row[name] for name in row if f"{name}_ci" in row and name != "area"}
    return measured | {name: row[name] for name in ("judge_failed",) if name in row}


@guarded
def log_ablation(run: Run, rows: Sequence[Row]) -> None:
    """The scores of every variant, and all of it as a table."""
    run.metrics({row["variant"]: scores(row) for row in rows})
    run.table("ablation", rows)


@guarded
def log_likelihood(run: Run, row: Row) -> None:
    """The bound of a checkpoint, of its model, too."""
    run.model_metrics({name: row[name] for name in ("nll", "nll_standard_error")})


@guarded
def log_samples(run: Run, answers: Iterable[Row], prompts: Mapping[int, str], checkpoint: str, decoder: str) -> None:
    """The first answers with the most steps, beside their prompts."""
    answers = list(answers)
    most = max((answer.get("steps") or 0 for answer in answers), default=0)
    rows = [
        {"prompt": prompts[a["id"]], "answer": a["answer"], "checkpoint": checkpoint, "decoder": decoder, "steps": most}
        for a in answers
        if (a.get("steps") or 0) == most
    ]
    run.table("samples", rows[:SAMPLES])


@guarded
def log_report(run: Run, results: Path) -> None:
    """Scores, figures and page, on the report's run and on the pipeline's; there they are in the description, too."""
    log_profile(run, results)
    run.parent.describe(headline_table(log_results(run.parent, results)))


@guarded
def log_profile(run: Run, results: Path) -> None:
    """What a report's folder has, another profile's for one, on the run of its stage alone."""
    log_results(run, results)
    if (results / "table.json").is_file():
        run.table("table", read_json(results / "table.json"))


def log_results(run: Run, results: Path) -> dict[str, dict[str, float]]:
    """The scores by cell, which it gives back, the figures and the page of a report's folder."""
    metrics = (results / "metrics").glob("*.json")
    files = sorted(metrics, key=lambda path: (path.stem.startswith("reference"), path.stem))
    cells = {path.stem: {_budget(name): value for name, value in read_json(path).items()} for path in files}
    run.metrics(cells)
    for path in (results / "figures", results / "report.html"):
        if path.exists():
            run.artifact(path)
    return cells


def _budget(name: str) -> str:
    """quality_64 of DVC's metrics is quality_S64 here: a decoder's own names may end in numbers."""
    return re.sub(r"_(\d+)$", r"_S\1", name)


def headline_table(cells: Mapping[str, Mapping[str, float]]) -> str:
    """The table of the README, in Markdown: a line a cell."""
    names = list(dict.fromkeys(name for values in cells.values() for name in values))
    lines = [["cell", *names], ["---", *("---:" for _ in names)]]
    lines += [
        [cell, *(f"{values[name]:.2f}" if name in values else "" for name in names)] for cell, values in cells.items()
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
