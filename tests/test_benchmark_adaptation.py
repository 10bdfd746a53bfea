"""Ways to adapt a model, side by side: the benchmark's own files and figures, on a tiny one."""

import json
import sys
from pathlib import Path

import adaptation
import pytest
from test_adapt import saved
from tiny import SENTENCES

from dlm.errors import UserError


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["benchmarks/adaptation.py", *words])
    adaptation.main()


def test_three_ways_on_equal_tokens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Annealing does not change what held-out rows are seen with: both shifted ways start at the same figure."""
    saved(tmp_path / "ar")
    (tmp_path / "text.txt").write_text("\n\n".join(SENTENCES * 30))
    small = ["--steps", "4", "--batch-size", "2", "--length", "16", "--held-out-rows", "2", "--learning-rate", "0.01"]
    run(monkeypatch, tmp_path, "--model", "ar", "--text", "text.txt", *small, "--out", "out/tiny")
    found = json.loads((tmp_path / "out/tiny.json").read_text())
    assert found["tokens"] == 4 * 2 * 16
    shifted, annealed, in_place = found["rows"]
    assert [(row["logits_shift"], row["anneal_steps"]) for row in found["rows"]] == [(1, 0), (1, 2), (0, 0)]
    assert all(list(row["held_out"]) == ["0", "1", "2", "3", "4"] for row in found["rows"])
    assert shifted["held_out"]["0"] == annealed["held_out"]["0"] != in_place["held_out"]["0"]
    assert shifted["held_out"]["4"] != annealed["held_out"]["4"]
    table = (tmp_path / "out/tiny.md").read_text()
    assert "| shifted, as before | full after 2 of 4 steps |" in table and table in capsys.readouterr().out


def test_too_few_steps_to_look_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--steps must be at least 4, got 3"):
        run(monkeypatch, tmp_path, "--model", "ar", "--text", "text.txt", "--steps", "3", "--out", "out/tiny")
