"""The study of relevance: its numbers by hand, its spoilings, and the script on a tiny model."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import relevance as study
from tiny import tiny_model, tiny_tokenizer

from dlm.data.records import Record
from dlm.data.tokenizer import encode
from dlm.errors import UserError
from dlm.files import write_json
from dlm.models.backbone import save_checkpoint

ROOT = Path(__file__).parents[1]
OUTPUT = "The fog comes early. The boats leave before it."


def test_auc_by_hand() -> None:
    """Of 3 1 against 2 1: 3 beats both, 1 loses once and ties once: 2.5 of 4. What is undefined is the lowest."""
    assert study.auc(np.array([3.0, 1.0]), np.array([2.0, 1.0])) == 2.5 / 4
    assert study.auc(np.array([3.0, 1.0]), study.numbers([None, 2.0])) == 0.75


def test_forms_by_hand() -> None:
    """4 2 -1 3 nats, the 2nd and the 4th copied, the 4th frequent."""
    nats, copied = np.array([4.0, 2.0, -1.0, 3.0]), np.array([False, True, False, True])
    frequent = np.array([False, False, False, True])
    found = [form(nats, copied, frequent) for form in study.FORMS.values()]
    assert found == [2.0, 2.0, 1.5, 0.75, 3.0]
    copy = [form(nats, np.ones(4, dtype=bool), frequent) for form in study.FORMS.values()]
    assert copy == [2.0, 3.0, None, 0.0, 0.0]


def test_closeness_by_hand() -> None:
    """The even real ones are 1 and 3: mean 2, deviation 1. The odd ones are 2 and 5, the spoilt 0 and 2."""
    found = study.near({study.REAL: np.array([1.0, 2.0, 3.0, 5.0]), "a": np.array([9.0, 0.0, 9.0, 2.0])})
    assert [list(row) for row in found.values()] == [[0.0, -3.0], [-2.0, 0.0]]


def test_spoilings() -> None:
    records = [Record("Describe the fog.", "north", OUTPUT), Record("Name a town.", "", "Velmora it is. Yes.")]
    found = study.spoilt(records, tiny_tokenizer(), random.Random(0))
    assert found["another's"] == [records[1].output, OUTPUT]
    assert found["a third"] == ["The fog comes", "Velmora"]
    assert found["prompt copied"] == ["Describe the fog.\nnorth", "Name a town."]
    assert [sorted(text.split()) for text in found["words shuffled"]] == [sorted(r.output.split()) for r in records]
    again = found["first sentence again and again"][0]
    assert again.startswith("The fog comes early. The fog comes early.")
    assert len(encode(tiny_tokenizer(), [again])[0]) == len(encode(tiny_tokenizer(), [OUTPUT])[0])


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["relevance.py", *map(str, words)])
    study.main()


def test_the_script_writes_its_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(study, "OTHERS", 4)
    save_checkpoint(tmp_path / "model", tiny_model(causal=True), tiny_tokenizer())
    rows = [{"instruction": f"Describe {n}.", "input": "", "output": f"{OUTPUT} {n}"} for n in range(8)]
    write_json(tmp_path / "data.json", rows)
    paths = ["--model", tmp_path / "model", "--data", tmp_path / "data.json", "--out", tmp_path / "study"]
    words = [*paths, "--answers", 4, "--tokens", 2, 60, "--starts", 0, "--device", "cpu", "--threads", 1]
    run(monkeypatch, *words)
    found = json.loads((tmp_path / "study.json").read_text())
    assert found["settings"]["frame"] == "### Instruction:\nDescribe .\n\n### Response:\n"
    assert {row["context"] for row in found["rows"]} == {"–", "<|endoftext|>", "frame"}
    assert len(found["rows"]) == 1 + 2 * (len(study.FORMS) + 1)
    for row in found["rows"]:
        assert all(0 <= one["auc"] <= 1 for one in row["spoilt"].values()) and len(row["spoilt"]) == 5
    text = (tmp_path / "study.md").read_text()
    assert str(tmp_path) not in text and text.count("\n| ") == 2 + len(found["rows"])
    with pytest.raises(UserError, match="--answers 5: 4 of "):
        run(monkeypatch, *paths, "--answers", 5, "--tokens", 2, 60)
    with pytest.raises(UserError, match="--starts must be token ids, below 300"):
        run(monkeypatch, *paths, "--starts", 300)
