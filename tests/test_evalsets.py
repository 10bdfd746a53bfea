"""The paper's evaluation sets, each from rows in its own layout."""

import json
from pathlib import Path
from typing import Any

import pytest

from dlm.blocks import EvaluationSetParams
from dlm.data.evalsets import CHAIN_OF_THOUGHT, SETS, read_evaluation_set
from dlm.data.records import Record
from dlm.errors import UserError

ROWS: dict[str, tuple[str, list[dict[str, Any]], tuple[str, str]]] = {
    "alpaca_eval": (
        "sets.json",
        [{"instruction": "Name a port.", "output": "Velmora.", "generator": "g", "dataset": "d", "id": 0}],
        ("Name a port.", "Velmora."),
    ),
    "mt_bench": (
        "sets.jsonl",
        [{"question_id": 81, "category": "writing", "turns": ["Write a line.", "Again."]}],
        ("Write a line.", ""),
    ),
    "wiki": ("sets.json", [{"instruction": "Explain fog.", "output": "", "id": "f", "category": "c"}],
             ("Explain fog.", "")),
    "arena_hard": (
        "sets.jsonl",
        [{"uid": "u", "category": "c", "cluster": "x", "prompt": "Sort a list."}],
        ("Sort a list.", ""),
    ),
    "gsm8k": (
        "sets.jsonl",
        [{"question": "How many?", "answer": "2 boats carry 3 each.\n2*3=<<2*3=6>>6000\n#### 6,000"}],
        ("How many?", "6000"),
    ),
}  # fmt: skip


def put(folder: Path, file: str, rows: list[dict[str, Any]]) -> str:
    path = folder / file
    lines = "\n".join(map(json.dumps, rows))
    path.write_text(lines if file.endswith("l") else json.dumps(rows), encoding="utf-8")
    return str(path)


def test_every_set_is_tested() -> None:
    assert set(ROWS) == set(SETS)


@pytest.mark.parametrize("name", SETS)
def test_rows_of_the_layout(tmp_path: Path, name: Any) -> None:
    """Twice the same row under two ids: every prompt is kept, in order, with its place."""
    file, (row,), (instruction, output) = ROWS[name]
    rows = [row, {key: 82 if key == "question_id" else "v" if key == "uid" else value for key, value in row.items()}]
    found = read_evaluation_set(EvaluationSetParams(name, put(tmp_path, file, rows), False))
    assert found == [Record(instruction, "", output, {"set": name, "place": place}) for place in (0, 1)]


def test_chain_of_thought_is_asked_for_behind_the_question(tmp_path: Path) -> None:
    file, rows, _ = ROWS["gsm8k"]
    (found,) = read_evaluation_set(EvaluationSetParams("gsm8k", put(tmp_path, file, rows), True))
    assert found.instruction == f"How many?\n\n{CHAIN_OF_THOUGHT}"


def test_another_sets_file(tmp_path: Path) -> None:
    path = put(tmp_path, "a.jsonl", ROWS["gsm8k"][1])
    with pytest.raises(UserError, match=r"record 1 is not one of arena_hard .*; set data\.evaluation\.path"):
        read_evaluation_set(EvaluationSetParams("arena_hard", path, False))


def test_wiki_needs_a_copy() -> None:
    with pytest.raises(UserError, match=r"wiki is not on the hub; set data\.evaluation\.path"):
        read_evaluation_set(EvaluationSetParams("wiki", None, False))


def test_an_id_that_comes_twice(tmp_path: Path) -> None:
    path = tmp_path / "arena.jsonl"
    path.write_text("".join(json.dumps({"uid": uid, "prompt": "Say it."}) + "\n" for uid in ("a", "b", "a")))
    with pytest.raises(UserError, match=r"arena.jsonl: records 1 and 3 have the same id a; keep one"):
        read_evaluation_set(EvaluationSetParams("arena_hard", str(path), False))
