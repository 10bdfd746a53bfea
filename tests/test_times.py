"""Where the time went, by a clock of the test's own."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from dlm.pipeline import processes, times

STAGES = [  # its process starts, its work begins, its work is over, it tells
    ("prepare", 101, 103, 109, 110),
    ("decode@a", 110, 114, 119, 120),
    ("decode@b", 121, 123, 123.5, 124),
    ("infill", 124, 124, 124, 124),  # over at once
]


def run_stages(monkeypatch: pytest.MonkeyPatch, began: float, passed: float = 0) -> None:
    """A DVC that began then, and its stages."""
    monkeypatch.setattr(processes, "dvc", lambda: SimpleNamespace(create_time=lambda: began))
    for name, started, opened, closed, ended in STAGES:
        monkeypatch.setattr(processes, "STARTED", passed + started)
        monkeypatch.setattr(times, "time", SimpleNamespace(time=lambda ended=ended: passed + ended))
        times.record(name, passed + opened, passed + closed)


def table(shown: str) -> dict[str, list[str]]:
    """A row's name and figures."""
    rows = [re.match(r" *(.+?)((?: +[\d.]+)+) *$", line) for line in shown.splitlines()]
    return {row[1]: row[2].split() for row in rows if row}


def test_each_stage_with_its_runs_its_seconds_and_its_start_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    stages = {"prepare": ["1", "9.0", "3.0"], "decode": ["2", "13.0", "7.5"], "infill": ["1", "0.0", "0.0"]}
    run_stages(monkeypatch, began=100)
    monkeypatch.setattr(times, "time", SimpleNamespace(time=lambda: 130))
    times.show()
    assert table(capsys.readouterr().out) == {**stages, "between the stages (DVC)": ["8.0"], "all": ["30.0"]}
    times.show_last()
    assert capsys.readouterr().out == ""  # once

    run_stages(monkeypatch, began=100)  # nobody asked; so it is forgotten with the next
    run_stages(monkeypatch, began=1099, passed=1000)
    times.show_last()
    assert table(capsys.readouterr().out) == {**stages, "between the stages (DVC)": ["3.0"], "all": ["25.0"]}


@pytest.mark.parametrize("why", ["no DVC", "another process of the stage"])
def test_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, why: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes, "dvc", lambda: None if why == "no DVC" else SimpleNamespace())
    monkeypatch.setattr(processes, "is_main", lambda: why == "no DVC")
    times.record("prepare", 1, 2)
    assert not list(tmp_path.iterdir())
