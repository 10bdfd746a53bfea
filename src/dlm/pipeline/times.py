"""How long each stage took, and where a whole `dvc repro` spent its time.

`python -m dlm.pipeline.times` tells it of the last one that did not: where the report in git is up to date already, as
in a fresh clone, its stage does not run, and nothing is said at the end.
"""

import contextlib
import time
from pathlib import Path

from dlm.files import read_json, write_json
from dlm.pipeline import processes

TIMES = Path(".cache/stage_times")


def record(stage: str, opened: float, closed: float) -> None:
    """Leave how long a stage took for `show`; it never fails.

    Args:
        stage: its name, with @cell where it has cells.
        opened, closed: time.time() when its own work began and ended: the rest is imports, parameters and tracking.
    """
    if processes.dvc() is None or not processes.is_main():
        return
    seconds = time.time() - processes.STARTED
    began = processes.dvc().create_time()
    row = {"began": began, "ended": time.time(), "seconds": seconds, "start_up": seconds - (closed - opened)}
    with contextlib.suppress(OSError):
        write_json(TIMES / f"{stage}.json", row)


def show() -> None:
    """Print where the time of the present `dvc repro` went, stage by stage; nothing outside of DVC."""
    if processes.dvc() is not None:
        _tell(processes.dvc().create_time(), time.time())


def show_last() -> None:
    """The same of the last `dvc repro`, if it has not been told."""
    rows = [read_json(path) for path in TIMES.glob("*.json")]
    if rows:
        last = max(rows, key=lambda row: row["ended"])
        _tell(last["began"], last["ended"])


def _tell(began: float, ended: float) -> None:
    """Print the table of the DVC that began then, and forget all rows."""
    from rich.console import Console
    from rich.table import Table

    by_stage: dict[str, list[dict[str, float]]] = {}
    for path in sorted(TIMES.glob("*.json"), key=lambda path: path.stat().st_mtime):
        row = read_json(path)
        if row["began"] == began:
            by_stage.setdefault(path.stem.partition("@")[0], []).append(row)
        path.unlink()
    grid = Table("where the time went", box=None)
    for heading in ("runs", "seconds", "of which start-up"):
        grid.add_column(heading, justify="right")
    for stage, rows in by_stage.items():
        grid.add_row(
            stage, str(len(rows)), *(f"{sum(row[name] for row in rows):.1f}" for name in ("seconds", "start_up"))
        )
    everything, stages = ended - began, sum(row["seconds"] for rows in by_stage.values() for row in rows)
    grid.add_row("between the stages (DVC)", "", f"{everything - stages:.1f}")
    grid.add_row("all", "", f"{everything:.1f}")
    console = Console()
    console.print()
    console.print(grid)


if __name__ == "__main__":
    show_last()
