"""How far a stage is: a bar on a terminal, elsewhere a line every half minute."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from dlm.pipeline import processes

SECONDS = 30.0  # between two lines; what is over before says nothing


class Advance(Protocol):
    """So many more are done, and what else is worth saying."""

    def __call__(self, count: int, note: str = "") -> None: ...


@contextmanager
def progress(title: str, total: int, unit: str, clock: Callable[[], float] = time.monotonic) -> Iterator[Advance]:
    """Tell on stderr how many of `total` are done, how fast it goes and how long the rest takes.

    One process of several tells.

    Args:
        title: the stage, with @cell where it has cells.
        unit: what is counted, in the plural.
    """
    if not processes.is_main() or sys.stderr is None:
        yield lambda count, note="": None
    elif sys.stderr.isatty():
        with _bar(title, total, unit) as advance:
            yield advance
    else:
        yield _lines(title, total, unit, clock)


@contextmanager
def _bar(title: str, total: int, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit} {{task.fields[note]}}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=4) as bar:
        task = bar.add_task(title, total=total, note="")
        yield lambda count, note="": bar.update(task, advance=count, note=note)


def _lines(title: str, total: int, unit: str, clock: Callable[[], float]) -> Advance:
    started = told = clock()
    done = 0

    def advance(count: int, note: str = "") -> None:
        nonlocal done, told
        done, now = done + count, clock()
        if now - told >= SECONDS:
            told = now
            rate = done / (now - started)
            left = f", {(total - done) / rate:.0f} s left" if rate else ""
            print(
                f"{title}: {done} of {total} {unit}, {rate:.3g} a second{left}{note and f'; {note}'}",
                file=sys.stderr,
                flush=True,
            )

    return advance
