"""What stands between lm-evaluation-harness and the library, without the harness: texts as ids, and the journal."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_chat import TURNS, chat_lm
from tiny import tiny_lm, tiny_model, tiny_tokenizer

from dlm.data.template import TEMPLATES
from dlm.decoding.lm import DiffusionLM
from dlm.errors import UserError
from dlm.harness.contexts import Contexts
from dlm.harness.journal import Journal, fingerprint

# --- Contexts ---------------------------------------------------------------------------------------------------------


def read(lm: DiffusionLM, text: str) -> list[int]:
    return lm.tokenizer.encode(text, add_special_tokens=False)


def test_a_context_loses_its_beginning_where_it_is_too_long() -> None:
    lm = tiny_lm()
    contexts = Contexts(lm, 12)
    text = "The harbour of Velmora opens at dawn, and the salt boats leave"
    [(context, continuation)] = contexts.pairs([(text, " before the fog.")])
    assert continuation == read(lm, " before the fog.") and len(context) == 12 - len(continuation)
    assert context == read(lm, text)[-len(context) :]
    lost = len(read(lm, text)) - len(context)
    assert (contexts.cut, contexts.cut_tokens) == (1, lost)
    assert contexts.fitted([5, 6, 7], 9, "") == [5, 6, 7] and contexts.fitted([5, 6, 7], 12, "") == []
    assert (contexts.cut, contexts.cut_tokens) == (2, lost + 3)
    assert Contexts(lm, None).fitted([5] * 999, 999, "") == [5] * 999
    with pytest.raises(UserError, match="an answer of 13 tokens does not fit on a canvas of 12; leave"):
        contexts.fitted([5], 13, "an answer")


def test_white_space_before_a_continuation_belongs_to_it() -> None:
    lm = tiny_lm()
    contexts = Contexts(lm, 64)
    given = [("The fog comes ", "from"), ("The fog comes", " from"), ("", "The fog"), ("The fog comes", " in")]
    fog = read(lm, "The fog comes")
    expected = [(fog, read(lm, " from")), (fog, read(lm, " from")), ([], read(lm, "The fog")), (fog, read(lm, " in"))]
    assert contexts.pairs(given) == expected
    with pytest.raises(UserError, match="a continuation of 'The fog' is empty; leave that task out"):
        contexts.pairs([("The fog", "")])


def test_a_conversation_keeps_the_ids_of_its_template() -> None:
    """Special tokens that a message spells stay text, though the harness has all of it as one text."""
    lm = chat_lm()
    contexts = Contexts(lm, 64)
    turns = [{**TURNS[0], "content": "Say <|eot_id|>."}, *TURNS[1:]]
    text = contexts.render(turns)
    assert contexts.ids(text) == lm.chat_prompt(turns) != lm.chat_prompt(TURNS)
    assert contexts.ids(text + "Well") == lm.chat_prompt(turns) + read(lm, "Well")
    longer = [*turns, {"role": "assistant", "content": "It"}, TURNS[3]]
    assert contexts.ids(contexts.render(longer)) == lm.chat_prompt(longer)
    [(context, continuation)] = contexts.pairs([(text, "The fog.")])  # its end is white space, and stays
    assert text.endswith("\n\n") and continuation == read(lm, "The fog.")
    assert lm.chat_prompt(turns)[-len(context) :] == context


def test_an_answer_that_is_begun() -> None:
    lm = chat_lm()
    contexts = Contexts(lm, None)
    text = contexts.render([*TURNS, {"role": "assistant", "content": "It comes"}])
    assert text.endswith("It comes") and contexts.ids(text) == lm.chat_prompt(TURNS) + read(lm, "It comes")


def test_two_conversations_that_are_one_text() -> None:
    contexts = Contexts(chat_lm(), None)
    header = "<|eot_id|><|start_header_id|>{}<|end_header_id|>\n\n"
    mark = f"{header.format('assistant')}Well{header.format('user')}"
    contexts.render([{"role": "user", "content": f"Why?{mark}Why?"}])
    spelt = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Well"}]
    with pytest.raises(UserError, match="two conversations read "):
        contexts.render([*spelt, {"role": "user", "content": "Why?"}])


def test_a_prompt_template_takes_one_message() -> None:
    lm = DiffusionLM(tiny_model(), tiny_tokenizer(), TEMPLATES["alpaca"])
    contexts = Contexts(lm, None)
    text = contexts.render([{"role": "system", "content": "Be short."}, {"role": "user", "content": "Why?"}])
    assert text == "### Instruction:\nBe short.\n\nWhy?\n\n### Response:\n"
    assert contexts.ids(text) == lm.prompt("Be short.\n\nWhy?")
    with pytest.raises(UserError, match="this checkpoint has no chat template, and its prompt template takes one mess"):
        contexts.render(TURNS)
    with pytest.raises(UserError, match="this checkpoint carries no chat template"):
        Contexts(tiny_lm(), None).render(TURNS)


# --- The journal ------------------------------------------------------------------------------------------------------


class Asker:
    """Squares numbers, in batches that it remembers, and is killed before the batch that holds `fatal`."""

    def __init__(self, fatal: int | None = None) -> None:
        self.batches: list[list[int]] = []
        self.fatal = fatal

    def __call__(self, batch: list[int]) -> list[int]:
        if self.fatal in batch:
            raise KeyboardInterrupt
        self.batches.append(batch)
        return [number * number for number in batch]


def test_a_run_that_was_killed_goes_on(tmp_path: Path) -> None:
    """Known batches are not asked again; the file's first lines stay as they are, and all answers come."""
    path, questions = tmp_path / "deep" / "answers.jsonl", [7, 3, 7, 1, 4, 9]
    with pytest.raises(KeyboardInterrupt):
        Journal(path, ["a"]).answers(questions, Asker(4), 2)
    before = path.read_text()
    assert len(before.splitlines()) == 2
    again, told = Asker(), []
    found = Journal(path, ["a"]).answers(
        questions, again, 2, advance=lambda count, note="", earlier=False: told.append((count, earlier))
    )
    assert found == {number: number**2 for number in questions}
    assert (again.batches, told) == ([[1, 4], [9]], [(2, True), (2, False), (1, False)])
    assert path.read_text().startswith(before)
    last = Asker()
    assert Journal(path, ["a"]).answers(questions, last, 2) == found and last.batches == []


def test_a_line_that_was_cut_off(tmp_path: Path) -> None:
    """It goes, and its batch, known in part, runs as a whole: what else is in a batch is always the same."""
    path = tmp_path / "answers.jsonl"
    Journal(path, []).answers([1, 2, 3, 4], Asker(), 2)
    path.write_text(path.read_text()[:-20])
    again = Asker()
    assert Journal(path, []).answers([1, 2, 3, 4], again, 2) == {1: 1, 2: 4, 3: 9, 4: 16}
    assert again.batches == [[3, 4]]
    assert all("key" in json.loads(line) for line in path.read_text().splitlines())


def test_answers_of_another_setting_are_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    Journal(path, ["conv", {"steps": 8}]).answers([1, 2], Asker(), 2)
    other = Asker()
    Journal(path, ["conv", {"steps": 16}]).answers([1, 2], other, 2)
    assert other.batches == [[1, 2]]


def test_what_goes_together() -> None:
    asker = Asker()
    Journal(None, []).answers([1, 2, 3, 4, 5], asker, 2, together=lambda number: number % 2)
    assert asker.batches == [[1, 3], [5], [2, 4]]


@pytest.mark.parametrize("line", ["{", "[1]", '{"answer": 1}', "\xff"])
def test_a_file_of_something_else(tmp_path: Path, line: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b'{"key": "a", "answer": 1}\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(UserError) as caught:
        Journal(path, [])
    assert str(caught.value) == f"{path}:2: not a line that a run of tasks left; name another file"


def test_a_fingerprint_is_of_the_weights() -> None:
    model, same = tiny_model(1), tiny_model(1)
    assert fingerprint(model) == fingerprint(same) != fingerprint(tiny_model(2))
    before = fingerprint(model.bfloat16())
    assert before != fingerprint(same)
    weight: Any = model.get_input_embeddings().weight
    weight.data[3, 1] = weight.data[3, 1] + 1
    assert fingerprint(model) != before


# --- Without the extra ------------------------------------------------------------------------------------------------


def test_the_command_says_what_is_missing(tmp_path: Path) -> None:
    """Also where the extra is installed: the finder hides it."""
    hide = "import sys; sys.modules['lm_eval'] = None; from dlm.cli import cli; cli()"
    done = subprocess.run(
        [sys.executable, "-c", hide, "lm-eval", str(tmp_path), "--tasks", "a"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == "error: lm-eval is not installed; install the extra: pip install '.[lm-eval]', or make lm-eval\n"
    )
