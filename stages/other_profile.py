"""The whole pipeline on another profile, in a folder of its own: what one task or one base cannot show (sweeps)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from dlm.pipeline.start import run_script, stage_arguments, start_stage
from dlm.errors import UserError
from dlm.files import atomic_directory, read_json
from dlm.pipeline.records import log_profile
from dlm.pipeline.tracking import stage_run

ROOT = Path(__file__).parents[1]
RECORD = "run.json"  # with durations: no output
MINUTES = 600  # after which no further stage would start


def main() -> None:
    parser = stage_arguments(__doc__)
    parser.add_argument("--profile", required=True, help="a file of profiles/, one of params.yaml: sweeps.profiles")
    arguments = parser.parse_args()
    params = start_stage(arguments)
    name, folder = arguments.profile, arguments.build / "profiles" / arguments.profile
    results = Path(params.report.results) / name
    with stage_run("other_profile", cell=name, params={"profile": name}) as run:
        made = run_profile(name, folder)
        with atomic_directory(results) as whole:
            shutil.copytree(made, whole, dirs_exist_ok=True, ignore=shutil.ignore_patterns(RECORD))
        log_profile(run, results)
        run.outputs([results])


def run_profile(name: str, folder: Path) -> Path:
    """The stages of dvc.yaml on a profile, from the first on; where the report lies. Trainings go on where they were.

    Raises:
        UserError: a stage failed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    results = folder / "results"
    words = ["--profile", name, "--folder", str(folder), "--set", f"report.results={results}"]
    command = [sys.executable, str(ROOT / "tools/pipeline.py"), *words, "--no-sweeps", "--minutes", str(MINUTES)]
    # Its stages are none of this pipeline's: no runs in MLflow, no rows in the table of times.
    untracked = {key: value for key, value in os.environ.items() if key != "DVC_STAGE"} | {"DLM_TRACKING": "off"}
    ended = subprocess.run(command, env=untracked)
    told = read_json(results / RECORD) if ended.returncode == 0 else {"failed": ["all of it"], "skipped": []}
    if missing := told["failed"] + told["skipped"]:
        raise UserError(f"profile {name}: not done: {', '.join(missing)}; the lines above say why")
    return results


if __name__ == "__main__":
    run_script(main)
