"""Conversations as records: each answer with what stands before it, and all of a conversation in one split."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_prepare import BYTES, DATA, TEMPLATE

from dlm.data.records import Record
from dlm.errors import UserError
from dlm.sources.conversations import ROLES
from dlm.sources.prepare import deal, fit_splits, left_out, load_splits
from dlm.sources.readers import load_hub, read_records

ALPACA = {"instruction": "instruction", "input": "input", "output": "output"}
Turns = list[tuple[str, str | None]]
Conversation = list[dict[str, Any]]


def openai(turns: Turns) -> Conversation:
    return [{"role": who, "content": said} for who, said in turns]


def sharegpt(turns: Turns) -> Conversation:
    names = {"user": "human", "assistant": "gpt"}
    return [{"from": names.get(who, who), "value": said} for who, said in turns]


LAYOUTS: dict[str, Callable[[Turns], Conversation]] = {"messages": openai, "conversations": sharegpt}
TURNS: Turns = [
    ("user", " Name a port.\r\n"),
    ("assistant", "Velmora."),
    ("user", "Another?"),
    ("assistant", " Tessin. "),
]
RECORDS = [
    Record("Name a port.", "", "Velmora.", opening="Name a port."),
    Record(
        "User: Name a port.\n\nAssistant: Velmora.\n\nUser: Another?", "", "Tessin.", opening="Name a port."
    ),
]  # fmt: skip


def put(folder: Path, rows: list[dict[str, Any]], name: str = "chats.jsonl") -> Path:
    path = folder / name
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(folder: Path, *conversations: Any, require_output: bool = True) -> tuple[list[Record], dict[str, int]]:
    rows = [{"messages": conversation} for conversation in conversations]
    return read_records(put(folder, rows), ALPACA, require_output=require_output)


@pytest.mark.parametrize("name", ["chats.jsonl", "chats.parquet"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_answer_is_a_record(tmp_path: Path, layout: str, name: str) -> None:
    """In both layouts, under the well-known name of the column or any that is given, beside other columns."""
    conversation = LAYOUTS[layout](TURNS)
    rows = [{layout: conversation, "id": 3}]
    records, counts = read_records(put(tmp_path, rows, name), ALPACA)
    assert records == RECORDS
    assert counts == {"read": 2, "empty_instruction": 0, "empty_output": 0, "duplicate": 0, "kept": 2}
    rows = [{"dialog": conversation, "output": "other"}]
    assert read_records(put(tmp_path, rows, name), {**ALPACA, "instruction": "dialog"})[0] == RECORDS


def test_records_beside_conversations_are_records(tmp_path: Path) -> None:
    """Where the columns that are asked for are there, they are read."""
    rows = [{"instruction": "Name a port.", "output": "Velmora.", "messages": openai(TURNS)}]
    assert read_records(put(tmp_path, rows), ALPACA)[0] == [Record("Name a port.", "", "Velmora.")]


def test_conversations_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    put(tmp_path / "set", [{"messages": openai(TURNS), "n": 1}], "train.jsonl")
    assert load_hub(str(tmp_path / "set"), None, "train", ALPACA)[0] == RECORDS


def test_a_system_prompt_stands_before_the_question(tmp_path: Path) -> None:
    (first, second), _ = read(tmp_path, openai([("system", "Be brief."), *TURNS]))
    assert first == Record("Be brief.\n\nName a port.", "", "Velmora.", opening="Be brief.\n\nName a port.")
    assert second.instruction == "Be brief.\n\nUser: Name a port.\n\nAssistant: Velmora.\n\nUser: Another?"
    assert second.opening == first.opening


def test_what_is_no_answer(tmp_path: Path) -> None:
    """A greeting and an afterthought are context alone; an empty answer and a conversation without any are counted."""
    greeted = openai([("assistant", "Hello!"), *TURNS[:2], ("assistant", "A fine town.")])
    silent = openai([("user", "Well?"), ("assistant", None)])
    records, counts = read(tmp_path, greeted, silent, openai([("user", "Anyone?")]), [], None)
    asked = "Assistant: Hello!\n\nUser: Name a port."
    assert records == [Record(asked, "", "Velmora.", opening=asked)]
    assert counts == {"read": 5, "empty_instruction": 3, "empty_output": 1, "duplicate": 0, "kept": 1}


def test_what_a_tool_says_is_answered_too(tmp_path: Path) -> None:
    turns: Turns = [("user", "How warm?"), ("assistant", None), ("tool", "21"), ("assistant", "21 degrees.")]
    records, counts = read(tmp_path, openai(turns))
    assert [(r.instruction, r.output) for r in records] == [("User: How warm?\n\nTool: 21", "21 degrees.")]
    assert counts["empty_output"] == 1


def test_text_in_parts(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Name "}, {"type": "text", "text": "a port."}]
    found, _ = read(tmp_path, [{"role": "user", "content": parts}, {"role": "assistant", "content": "Velmora."}])
    assert found == RECORDS[:1]


def test_a_last_question_is_an_evaluation_prompt(tmp_path: Path) -> None:
    (*_, last), counts = read(tmp_path, openai(TURNS[:3]), require_output=False)
    assert last == replace(RECORDS[1], output="") and counts["kept"] == 2


@pytest.mark.parametrize(
    ("conversation", "told"),
    [
        ("Hello", "record 2: not a list of turns but a str; write [{role, content}, ...]"),
        (["Hello"], "record 2: turn 1: not an object but a str; write {role, content} or {from, value}"),
        ([{"content": "Hello"}], f"record 2: turn 1: said by None; known: {', '.join(ROLES)}"),
        (openai([("user", "a"), ("bo\nt", "b")]), "record 2: turn 2: said by 'bo\\nt'; known: "),
        ([{"role": "user", "content": 3}], "record 2: turn 1: holds a int; convert it to text"),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}],
            "record 2: turn 1: has a part that is no text; leave such conversations out",
        ),
        (openai([("user", "\ud83c"), ("assistant", "b")]), "column 'messages' holds half a surrogate pair; remove it"),
    ],
)
def test_what_is_no_conversation(tmp_path: Path, conversation: Any, told: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, openai(TURNS), conversation)
    assert told in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(str(tmp_path / "chats.jsonl"))


def chats(count: int) -> list[dict[str, Any]]:
    """Of two answers each; every third begins as the one before."""
    return [{"messages": openai([("user", f"ask {i - (i % 3 == 2)}"), ("assistant", f"a {i}"),
                                 ("user", "And?"), ("assistant", f"b {i}")])} for i in range(count)]  # fmt: skip


def test_a_conversation_stays_in_one_split(tmp_path: Path) -> None:
    """What begins alike does, too: a later prompt would show the first one's answer."""
    records, _ = read_records(put(tmp_path, chats(30)), ALPACA)
    splits = deal(records, replace(DATA, valid_size=4, eval_size=5), 42)
    openings = {name: {record.opening for record in split} for name, split in splits.items()}
    assert [len(openings[name]) for name in ("eval", "valid", "train")] == [5, 4, 11]
    assert len(set.union(*openings.values())) == 20
    assert all(record.instruction == record.opening for name in ("eval", "valid") for record in splits[name])
    assert len({record.instruction for record in splits["train"]}) > 11


def test_a_conversation_that_begins_with_an_evaluation_prompt_is_not_trained_on(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"messages": [{"role": "user", "content": "ASK 4"}]}\n')
    file = replace(DATA.file, path=str(put(tmp_path, chats(12))), eval_path=str(prompts), columns=ALPACA)
    data = replace(DATA, source="file", file=file, valid_size=2, eval_size=1, max_prompt_length=200)
    records, counts = load_splits(data, 42)
    splits, dropped = fit_splits(records, TEMPLATE, BYTES, data)
    assert [e.record.instruction for e in splits["eval"]] == ["ASK 4"]
    assert "ask 4" not in {e.record.opening for name in ("train", "valid") for e in splits[name]}
    assert left_out(counts, splits, dropped, data) == ["records left out: evaluation prompts as well 4 (16.7%)"]
