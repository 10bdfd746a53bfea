"""`dlm backfill`: MLflow runs of stages that DVC restored instead of running, from dvc.lock and what is on disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlm.config.decoding import decoder_blocks
from dlm.data.splits import read_split
from dlm.errors import UserError
from dlm.files import read_json, read_jsonl
from dlm.pipeline import records
from dlm.pipeline.locks import locked_stages
from dlm.pipeline.run import Run
from dlm.pipeline.tracking import finished_stages, run_name, stage_run

# The stage of the same script whose cell has a stage of its own.
RENAMED = {"evaluate_reference": "evaluate@reference-nucleus"}
UNTRACKED = "inputs"
OF_THE_REPORT = ("table.json", "claims.json")  # log_report has logged them
BUILD = Path("build")
Entry = Mapping[str, Any]


def backfill() -> list[str]:
    """Log every stage of the locks that has no finished run under the present state of params, stages and code; what
    decode and evaluate did of a cell as one run.

    Parameters and hashes are the locks' own; curves, metrics and figures are logged as far as the outputs are on disk.

    Returns:
        The names of the runs that were made.

    Raises:
        UserError: no dvc.lock, or tracking is off.
    """
    stages = {RENAMED.get(name, name): entry for name, entry in locked_stages()}
    have, made = finished_stages(), []
    for name, entry in stages.items():
        stage, _, cell = name.partition("@")
        decoded = stages.get(f"decode@{cell}", {}) if stage == "evaluate" else {}
        if name in have or name == UNTRACKED or (stage == "decode" and f"evaluate@{cell}" in stages):
            continue
        params = {**_params(decoded), **_params(entry)}
        if stage in ("decode", "evaluate"):
            params |= _cell_params(cell, params)
        with stage_run(stage, cell or None, params, watch=False) as run:
            outs = [*(decoded.get("outs") or []), *(entry.get("outs") or [])]
            hashes = {f"md5.{out['path']}": out["md5"] for out in outs if "md5" in out}
            run.tags({"backfilled": "from dvc.lock", **hashes})
            _log_inputs(run, stage, cell, params)
            for out in outs:
                _log(run, Path(out["path"]), params)
            if not run.healthy:
                raise UserError("the tracking server does not answer; nothing more was backfilled")
        made.append(run_name(stage, cell or None))
    return made


def _params(entry: Entry) -> dict[str, Any]:
    return {key: value for file in (entry.get("params") or {}).values() for key, value in file.items()}


def _cell_params(cell: str, params: Mapping[str, Any]) -> dict[str, Any]:
    checkpoint, decoder = _parts(cell)
    key = f"decoding.{decoder}"
    blocks = decoder_blocks({decoder: params[key]}, "dvc.lock: decoding") if key in params else {}
    return records.cell_params(BUILD, checkpoint, decoder, blocks.get(decoder), _budgets(params))


def _budgets(params: Mapping[str, Any]) -> list[int]:
    """decode tracks the block, evaluate one key of it."""
    return list(params.get("decode", {}).get("steps") or params.get("decode.steps") or [])


def _parts(cell: str) -> tuple[str, str]:
    """Checkpoint and decoder."""
    checkpoint, _, decoder = cell.partition("-")
    return checkpoint, decoder


def _log_inputs(run: Run, stage: str, cell: str, params: Mapping[str, Any]) -> None:
    if stage == "prepare" and "data" in params:
        records.log_source(run, params["data"])
    elif stage != "base" or params.get("base", {}).get("init") not in ("checkpoint", "random"):
        records.log_inputs(run, stage, BUILD, cell)


def _log_samples(run: Run, answers: Path, checkpoint: str, decoder: str) -> None:
    if (BUILD / records.EVAL).is_file() and not run.went_on:
        prompts = {row["id"]: row["prompt"] for row in read_split(BUILD / "data", "eval", ["id", "prompt"])}
        records.log_samples(run, read_jsonl(answers), prompts, checkpoint, decoder)


def _log(run: Run, out: Path, params: Mapping[str, Any]) -> None:
    """What the stage would have logged of an output."""
    if (out / "curve.json").is_file():
        records.log_checkpoint(run, out, read_json(out / "curve.json"))
        if (out / "answers.jsonl").is_file():
            _log_samples(run, out / "answers.jsonl", "reference", "nucleus")
    elif out.name == "report.html" and out.is_file():
        records.log_report(run, out.parent)
    elif out.name in OF_THE_REPORT or (out.parent.name == "selection" and not out.stem.endswith("-grid")):
        pass
    elif out.suffix == ".jsonl" and out.is_file():
        if out.parent.name == "answers":
            _log_samples(run, out, *_parts(out.stem))
    elif out.suffix == ".json" and out.is_file():
        found = read_json(out)
        if out.parent.name == "evaluation":
            records.log_scores(run, BUILD, found, _budgets(params))
        elif out.parent.name == "ablation":
            records.log_ablation(run, found)
        elif out.parent.name == "likelihood":
            records.log_likelihood(run, found)
        elif isinstance(found, dict):
            run.metrics({key: value for key, value in found.items() if isinstance(value, int | float)})
        elif found and isinstance(found[0], dict):
            stage = {"selection": "selection", "sweeps": out.stem.partition("-")[0]}
            run.table(stage.get(out.parent.name, out.stem), found)
