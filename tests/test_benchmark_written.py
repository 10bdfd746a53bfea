"""Kinds of tokens by distance, read off a run's answers: the benchmark's own files, by hand."""

import json
import sys
from pathlib import Path

import pytest
import written
from test_scorer import build

from dlm.data.records import Record
from dlm.data.splits import Example, write_examples
from dlm.files import write_json, write_jsonl

ROOT = Path(__file__).parents[1]


def test_shares_by_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prompt 5 6; 7 alone is frequent. Bins of two: `7 5 | 9 9` is half frequent and half the prompt's, then one new
    word and one that has come before; the real answer `8 7` has half of its words frequent.
    Of two budgets that at which claims are judged."""
    folder = build(tmp_path)
    example = Example(Record("ask", "", "say"), "ask", [5, 6], [8, 7])
    write_examples(folder / "data" / "eval.parquet", [example])
    counts = [0] * 300
    counts[7] = 9
    write_json(folder / "data/training/vocabulary.json", {"token_counts": counts, "eos_id": 0})
    answers = [{"id": 0, "steps": steps, "tokens": tokens} for steps, tokens in ((16, [8]), (64, [7, 5, 9, 9]))]
    write_jsonl(folder / "answers" / "sft-conv.jsonl", answers)
    params = (ROOT / "params.yaml").read_text().replace("high_prior_tokens: 100", "high_prior_tokens: 1")
    (tmp_path / "params.yaml").write_text(params)
    words = ["--params", "params.yaml", "--build", str(folder), "--width", "2", "--out", "out/written"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmarks/written.py", *words])
    written.main()
    found = json.loads((tmp_path / "out/written.json").read_text())["shares"]
    assert list(found) == ["real", "sft-conv"]
    values = {name: {kind: [c["value"] for c in cells[:3]] for kind, cells in found[name].items()} for name in found}
    assert values["sft-conv"]["high_prior"] == [0.5, 0.0, None]
    assert values["sft-conv"]["repetition"] == [0.5, 0.5, None]
    assert values["sft-conv"]["other"] == [0.0, 0.5, None]
    assert values["real"]["high_prior"] == [0.5, None, None]
    table = (tmp_path / "out/written.md").read_text()
    assert "| share of " in table and table in capsys.readouterr().out
