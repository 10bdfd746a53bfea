"""How long each stage took, and where a whole `dvc repro` spent its time."""

import contextlib
import time
from pathlib import Path

from dlm import processes
from dlm.files import read_json, write_json

TIMES = Path(".cache/times")


def record(stage: str, opened: float, closed: float) -> None:
    """Leave how long a stage took for `show`; it never fails.

    Args:
        stage: its name, with @cell where it has cells.
        opened, closed: time.time() when its own work began and ended: the rest is imports, parameters and tracking.
    """
    if processes.dvc() is None or not processes.is_main():
        return
    seconds = time.time() - processes.STARTED
    row = {"dvc": processes.dvc().pid, "seconds": seconds, "start_up": seconds - (closed - opened)}
    with contextlib.suppress(OSError):
        write_json(TIMES / f"{stage}.json", row)


def show() -> None:
    """Print where the time of the present `dvc repro` went, stage by stage; nothing outside of DVC."""
    if processes.dvc() is None:
        return
    from rich.console import Console
    from rich.table import Table

    began = processes.dvc().create_time()
    found: dict[str, list[dict[str, float]]] = {}
    for path in sorted(TIMES.glob("*.json"), key=lambda path: path.stat().st_mtime):
        row = read_json(path)
        if row["dvc"] == processes.dvc().pid and path.stat().st_mtime > began:
            found.setdefault(path.stem.partition("@")[0], []).append(row)
    grid = Table("where the time went", box=None)
    for heading in ("runs", "seconds", "of which start-up"):
        grid.add_column(heading, justify="right")
    for stage, rows in found.items():
        grid.add_row(
            stage, str(len(rows)), *(f"{sum(row[name] for row in rows):.1f}" for name in ("seconds", "start_up"))
        )
    everything, stages = time.time() - began, sum(row["seconds"] for rows in found.values() for row in rows)
    grid.add_row("between the stages (DVC)", "", f"{everything - stages:.1f}")
    grid.add_row("all", "", f"{everything:.1f}")
    console = Console()
    console.print()
    console.print(grid)
