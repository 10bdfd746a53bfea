"""Gaps with context on both sides: canvases cut by hand, figures against counts by hand, the stage end to end."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from scripts import ROOT, stage
from test_tokenizer import PREFIXING

from dlm.data.tokenizer import decode, encode, encode_answers, load_tokenizer
from dlm.evaluation.bidirectional import Gap, make_gap, score_gap
from dlm.evaluation.builtin.grammar import load_grammar
from dlm.evaluation.slots import SlotJudge
from dlm.files import read_json
from dlm.pipeline.profiles import merge

GRAMMAR = load_grammar(ROOT / "data/builtin/grammar.yaml")
JUDGE = SlotJudge(GRAMMAR)
TOKENIZER = load_tokenizer(ROOT / "data/base/mdlm")
EOS, MASK = TOKENIZER.eos_token_id, TOKENIZER.mask_token_id
TOPIC = next(iter(GRAMMAR.topics))
SLOTS = tuple(GRAMMAR.attributes)[:4]


def fact(slot: str) -> str:
    """The slot's first sentence, with the topic's own value."""
    attribute = GRAMMAR.attributes[slot]
    clause = attribute.sentences[0].format(topic=TOPIC, value=attribute.values[GRAMMAR.topics[TOPIC][slot]])
    return clause[0].upper() + clause[1:] + "."


ANSWER = [fact(slot) for slot in SLOTS]


def row(sentences: list[str]) -> dict[str, Any]:
    text = " ".join(sentences)
    return {"id": 3, "prompt_ids": [7, 8], "answer_ids": encode(TOKENIZER, [text])[0], "output": text}


def gap_of(sentences: list[str], task: Any, length: int = 192) -> Gap | None:
    return make_gap(row(sentences), {"topic": TOPIC, "slots": list(SLOTS)}, task, JUDGE, TOKENIZER, length)


@pytest.mark.parametrize(("task", "left", "right"), [("infill", 2, 3), ("goal", 1, 3)])
def test_a_canvas(task: str, left: int, right: int) -> None:
    """Of four sentences, the third is masked, or all between the first and the last; the rest stands as it was."""
    gap = gap_of(ANSWER, task)
    assert gap is not None
    whole = [7, 8, *row(ANSWER)["answer_ids"]]
    masked = [i for i, token in enumerate(gap.ids) if token == MASK]
    assert masked == list(range(masked[0], masked[-1] + 1))
    assert decode(TOKENIZER, whole[masked[0] : masked[-1] + 1]).strip() == " ".join(ANSWER[left:right])
    assert [t for t in gap.ids[: len(whole)] if t != MASK] == [
        t for i, t in enumerate(whole) if i not in range(masked[0], masked[-1] + 1)
    ]
    assert gap.ids[len(whole) :] == [EOS] * (192 - len(whole))
    assert (gap.left, gap.right, gap.facts) == (" ".join(ANSWER[:left]), " ".join(ANSWER[right:]), right - left)


@pytest.mark.parametrize("name", PREFIXING)
def test_a_canvas_of_a_tokenizer_that_puts_spaces_before_texts(name: str) -> None:
    """The answer as it was read, its gap and nothing else masked."""
    tokenizer = PREFIXING[name]()
    [whole] = encode_answers(tokenizer, ["Describe it.\n"], [" ".join(ANSWER)])
    answer = {"id": 3, "prompt_ids": [7, 8], "answer_ids": whole, "output": " ".join(ANSWER)}
    gap = make_gap(answer, {"topic": TOPIC, "slots": list(SLOTS)}, "infill", JUDGE, tokenizer, 600)
    assert gap is not None
    canvas = gap.ids[2 : 2 + len(whole)]
    mask_id = tokenizer.mask_token_id
    masked = [i for i, token in enumerate(canvas) if token == mask_id]
    assert masked == list(range(masked[0], masked[-1] + 1))
    assert canvas == [mask_id if i in masked else token for i, token in enumerate(whole)]
    [sentence] = encode(tokenizer, [ANSWER[2]])
    assert tokenizer.decode([whole[i] for i in masked]).strip() == tokenizer.decode(sentence).strip()


def test_what_makes_no_gap() -> None:
    """Two sentences; a middle that states nothing that was asked; a canvas too short."""
    closing = GRAMMAR.closings[0].format(topic=TOPIC)
    silent = closing[0].upper() + closing[1:] + "."
    assert gap_of(ANSWER[:2], "infill") is None
    assert gap_of([ANSWER[0], silent, ANSWER[1]], "infill") is None
    assert gap_of(ANSWER, "infill", length=len(row(ANSWER)["answer_ids"]) + 2) is None


def scores(filled: str) -> tuple[float, float, float]:
    gap = gap_of(ANSWER, "goal")
    assert gap is not None
    found = score_gap(gap, filled, JUDGE)
    return found["slot_error_rate"], found["well_formed"], found["right_context"]


def test_figures_by_hand() -> None:
    """The gap has two facts to state; the right context states the fourth."""
    assert scores(f" {ANSWER[1]} {ANSWER[2]}") == (0, 1, 1)
    assert scores(f" {ANSWER[2]} {ANSWER[1]}") == (0, 1, 1)  # their order does not count
    assert scores(f" {ANSWER[1]}") == (0.5, 1, 1)  # one is missing
    assert scores(f" {ANSWER[1]} {ANSWER[3]}") == (1, 1, 0)  # one is missing, and the right context's is said twice
    assert scores(f" {ANSWER[1]} {ANSWER[0]}") == (1, 1, 1)  # the left context's is said twice
    assert scores(f" {ANSWER[1]} {ANSWER[2][:-1]}")[2] == 0  # no end of a sentence before the right context
    assert scores(f" Fog fog. {ANSWER[1]}") == (0.5, 0.5, 1)
    assert scores("") == (1, 0, 0)


def test_the_stage(tmp_path: Path) -> None:
    """The shipped base as both checkpoints: every row of the grid, with shares, in JSON and as a table. It judges by
    the grammar that was prepared."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    places = {
        "data": {"valid_size": 2, "eval_size": 12, "builtin": {"train_size": 40}},
        "infill": {"prompts": 4, "seeds": [0, 1], "steps": [4]},
        "evaluate": {"bootstrap_samples": 20},
    }
    merge(params, places)
    params["data"]["builtin"]["grammar"] = str(ROOT / "data/builtin/grammar.yaml")
    params["tokenizer"]["path"] = str(ROOT / "data/base/mdlm")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    stage("prepare", folder=tmp_path)
    (tmp_path / "build/models").mkdir()
    for name in ("sft", "r2ft"):
        (tmp_path / "build/models" / name).symlink_to(ROOT / "data/base/mdlm")
    params["data"]["builtin"]["grammar"] = "gone.yaml"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    stage("infill", folder=tmp_path)
    rows = read_json(tmp_path / "results/infill/table.json")
    decoders = params["infill"]["decoders"]
    assert [(r["checkpoint"], r["task"], r["decoder"]) for r in rows] == [
        (checkpoint, task, decoder)
        for checkpoint in ("sft", "r2ft")
        for task in ("infill", "goal")
        for decoder in decoders
    ]
    assert all(r["n"] == 2 * r["prompts"] and 0 <= r["well_formed"] <= 1 and 0 <= r["right_context"] <= 1 for r in rows)
    assert rows[: len(rows) // 2] == [{**r, "checkpoint": "sft"} for r in rows[len(rows) // 2 :]]  # the same weights
    table = (tmp_path / "results/infill/table.md").read_text()
    assert table.count("\n") == 2 + len(rows)
