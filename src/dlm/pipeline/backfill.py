"""`dlm backfill`: MLflow runs of stages that DVC restored instead of running, from dvc.lock and what is on disk."""

from pathlib import Path

from dlm.errors import UserError
from dlm.files import read_json
from dlm.pipeline.locks import locked_stages
from dlm.pipeline.tracking import Run, finished_runs, stage_run

# The stage of the same script whose cell has a stage of its own.
RENAMED = {"evaluate_reference": "evaluate@reference-nucleus"}
UNTRACKED = "inputs"


def backfill() -> list[str]:
    """Log every stage of the locks that has no finished run under the present state of params, stages and code.

    Parameters and hashes are the locks' own; curves, metrics and figures are logged as far as the outputs are on disk.

    Returns:
        The names of the runs that were made.

    Raises:
        UserError: no dvc.lock, or tracking is off.
    """
    stages = {RENAMED.get(name, name): entry for name, entry in locked_stages()}
    have = finished_runs()
    made = [name for name in stages if name not in have and name != UNTRACKED]
    for name in made:
        entry = stages[name]
        stage, _, cell = name.partition("@")
        params = {key: value for file in (entry.get("params") or {}).values() for key, value in file.items()}
        with stage_run(stage, cell or None, params, watch=False) as run:
            hashes = {f"md5.{out['path']}": out["md5"] for out in entry.get("outs") or [] if "md5" in out}
            run.tags({"backfilled": "from dvc.lock", **hashes})
            for out in entry.get("outs") or []:
                _log(run, Path(out["path"]))
            if not run.healthy:
                raise UserError("the tracking server does not answer; nothing more was backfilled")
    return made


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
        content = read_json(out)
        if isinstance(content, dict):
            run.metrics({key: value for key, value in content.items() if isinstance(value, int | float)})
        elif out.parent.name == "evaluation":
            for row in content:
                run.metrics({key: value for key, value in row.items() if isinstance(value, int | float)}, row["steps"])
        elif content and isinstance(content[0], dict):
            run.table(out.stem, content)
