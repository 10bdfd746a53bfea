"""How far a stage is, on a terminal and elsewhere."""

import sys
from collections.abc import Iterator

import pytest
from transformers import TrainerState

from dlm.pipeline.progress import progress
from dlm.training.fit import TellProgress


def test_a_line_every_half_minute(capsys: pytest.CaptureFixture[str]) -> None:
    """Ten answers every ten seconds: after half a minute 30, one a second, so that 70 s are left; the end is silent."""
    seconds: Iterator[float] = iter(range(0, 1000, 10))
    with progress("decode@sft-conv", 100, "answers", clock=lambda: next(seconds)) as advance:
        for _ in range(7):
            advance(10)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "decode@sft-conv: 30 of 100 answers, 1 a second, 70 s left",
        "decode@sft-conv: 60 of 100 answers, 1 a second, 40 s left",
    ]


def test_what_is_over_soon_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("sft", 2, "steps", clock=lambda: 0.0) as advance:
        advance(1, "loss 2.000")
        advance(1)
    assert capsys.readouterr() == ("", "")


def test_what_an_earlier_run_did_is_no_part_of_the_rate(capsys: pytest.CaptureFixture[str]) -> None:
    """60 steps of the checkpoint, then 10 in 40 seconds: 0.25 a second, so that 130 take 520 s."""
    seconds = iter([0.0, 0.0, 40.0])
    with progress("sft", 200, "steps", clock=lambda: next(seconds)) as advance:
        TellProgress(advance).on_train_begin(None, TrainerState(global_step=60), None)
        advance(10)
    assert capsys.readouterr().err == "sft: 70 of 200 steps, 0.25 a second, 520 s left\n"


def test_a_note_stands_behind(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = iter([0.0, 40.0])
    with progress("sft", 200, "steps", clock=lambda: next(seconds)) as advance:
        advance(100, "loss 0.912, held out 0.886")
    assert capsys.readouterr().err == "sft: 100 of 200 steps, 2.5 a second, 40 s left; loss 0.912, held out 0.886\n"


def test_one_process_of_several_tells(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    seconds = iter([0.0, 100.0])
    with progress("sft", 2, "steps", clock=lambda: next(seconds)) as advance:
        advance(1)
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with progress("decode@sft-conv", 8, "answers") as advance:
        advance(1, earlier=True)
        advance(2, "loss 1.000")
        advance(5)
    said = capsys.readouterr().err
    assert "decode@sft-conv" in said and "8/8" in said and "answers" in said
