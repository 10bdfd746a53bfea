"""How far a stage is: a bar on a terminal, elsewhere a line every half minute."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from dlm.pipeline import processes

SECONDS = 30.0  # between two lines; what is over before says nothing


@runtime_checkable
class Advance(Protocol):
    """So many more are done, and what else is worth saying; what an earlier run did is no part of the rate."""

    def __call__(self, count: int, note: str = "", earlier: bool = False) -> None: ...


def tell(line: str) -> None:
    """A line for people on stderr. One process of several tells."""
    if processes.is_main() and sys.stderr is not None:
        print(line, file=sys.stderr, flush=True)


@contextmanager
def progress(title: str, total: int, unit: str, clock: Callable[[], float] = time.monotonic) -> Iterator[Advance]:
    """Tell on stderr how many of `total` are done, how fast it goes and how long the rest takes.

    One process of several tells.

    Args:
        title: the stage, with @cell where it has cells.
        unit: what is counted, in the plural.
    """
    if not processes.is_main() or sys.stderr is None:
        yield lambda count, note="", earlier=False: None
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

        def advance(count: int, note: str = "", earlier: bool = False) -> None:
            if earlier:
                bar.reset(task, completed=int(bar.tasks[0].completed) + count)  # the rate begins here
            else:
                bar.update(task, advance=count, note=note)

        yield advance


def _lines(title: str, total: int, unit: str, clock: Callable[[], float]) -> Advance:
    started = last_line = clock()
    done = resumed = 0

    def advance(count: int, note: str = "", earlier: bool = False) -> None:
        nonlocal done, resumed, last_line
        done, resumed, now = done + count, resumed + count * earlier, clock()
        if now - last_line >= SECONDS:
            last_line = now
            rate = (done - resumed) / (now - started)
            left = f", {(total - done) / rate:.0f} s left" if rate else ""
            print(
                f"{title}: {done} of {total} {unit}, {rate:.3g} a second{left}{note and f'; {note}'}",
                file=sys.stderr,
                flush=True,
            )

    return advance
