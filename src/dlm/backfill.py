"""`dlm backfill`: MLflow runs of stages that DVC restored instead of running, from dvc.lock and what is on disk."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from dlm.errors import UserError
from dlm.files import read_json
from dlm.tracking import Run, finished_runs, stage_run

LOCKS = (Path("dvc.lock"), Path("sweeps/dvc.lock"))
# The stage of the same script whose cell has a stage of its own.
RENAMED = {"evaluate_reference": "evaluate@reference-nucleus"}


def backfill() -> list[str]:
    """Log every stage of the locks that has no finished run under the present state of params, stages and code.

    Parameters and hashes are the locks' own; curves, metrics and figures are logged as far as the outputs are on disk.

    Returns:
        The names of the runs that were made.

    Raises:
        UserError: no dvc.lock, or tracking is off.
    """
    stages = dict(_stages())
    have = finished_runs()
    made = [name for name in stages if name not in have]
    for name in made:
        entry = stages[name]
        stage, _, cell = name.partition("@")
        params = {key: value for file in (entry.get("params") or {}).values() for key, value in file.items()}
        with stage_run(stage, cell or None, params) as run:
            hashes = {f"md5.{out['path']}": out["md5"] for out in entry.get("outs") or [] if "md5" in out}
            run.tags({"backfilled": "from dvc.lock", **hashes})
            for out in entry.get("outs") or []:
                _log(run, Path(out["path"]))
            if not run.healthy:
                raise UserError("the tracking server does not answer; nothing more was backfilled")
    return made


def _stages() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The name that the stage's own run has, and its entry."""
    if not LOCKS[0].is_file():
        raise UserError(f"{LOCKS[0]}: no such file; run from the repository's root, after `dvc repro` or `dvc pull`")
    for path in LOCKS:
        if path.is_file():
            for name, entry in (yaml.safe_load(path.read_text(encoding="utf-8"))["stages"] or {}).items():
                yield RENAMED.get(name, name), entry


def _log(run: Run, out: Path) -> None:
    """What the stage would have logged of an output."""
    if (out / "curve.json").is_file():
        curve = read_json(out / "curve.json")
        run.curve(curve)
        run.metrics(curve[-1] if curve else {})
    elif out.name == "figures" or out.suffix == ".html":
        if out.exists():
            run.artifact(out)
    elif out.suffix == ".json" and out.is_file():
        found = read_json(out)
        if isinstance(found, dict):
            run.metrics({key: value for key, value in found.items() if isinstance(value, int | float)})
        elif found and isinstance(found[0], dict):
            run.table(out.stem, found)
