"""Perplexity under the reference, and under a causal LM that reads texts with a tokenizer of its own."""

import math
from pathlib import Path

import pytest
import torch
from tiny import SHAPE, tiny_model, tiny_tokenizer

from dlm.data.records import Record
from dlm.data.splits import Example, read_split, write_examples
from dlm.data.tokenizer import encode, train_tokenizer
from dlm.evaluation.scoring.relevance import shared_frame
from dlm.evaluation.scoring.scorer import Scorer, load_scorer, training_perplexities
from dlm.models.backbone import new_backbone, save_checkpoint

PROMPT, ANSWER = "Describe the harbour:", " the salt boats leave before the fog"


def by_hand(model: torch.nn.Module, before: list[int], after: list[int]) -> float:
    with torch.no_grad():
        log_p = model(torch.tensor([before + after])).logits[0].log_softmax(-1)
    nll = [-log_p[len(before) + i - 1, token].item() for i, token in enumerate(after)]
    return math.exp(sum(nll) / len(nll))


OTHER = "Describe the fog:"


def build(folder: Path) -> Path:
    """Training rows of two prompts, which share "Describe the" and ":"."""
    rows = [
        Example(Record("x", "", ANSWER), text, *encode(tiny_tokenizer(), [text, ANSWER])) for text in (PROMPT, OTHER)
    ]
    (folder / "data/training").mkdir(parents=True, exist_ok=True)
    write_examples(folder / "data/training/train.parquet", rows)
    return folder


def test_the_reference_reads_ids_and_brings_its_perplexities(tmp_path: Path) -> None:
    model = tiny_model(causal=True)
    save_checkpoint(tmp_path / "models" / "reference", model, tiny_tokenizer())
    scorer = load_scorer(build(tmp_path), None, model, 0)
    assert tiny_tokenizer().decode(scorer.frame) == "Describe the:"
    before, after = encode(tiny_tokenizer(), [PROMPT, ANSWER])
    found = scorer.perplexities([{"prompt_ids": before}] * 2, [{"tokens": after}, {"tokens": []}], 8)
    assert found == [pytest.approx(by_hand(model, before, after), rel=1e-4), None]


def test_another_model_reads_texts(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["other words make other pieces of the boats and the fog"], 280)
    model = new_backbone(SHAPE, tokenizer, 3, causal=True).eval()
    save_checkpoint(tmp_path / "other", model, tokenizer)
    folder = build(tmp_path)
    scorer = load_scorer(folder, str(tmp_path / "other"), torch.nn.Identity(), 0)
    known = training_perplexities(scorer, read_split(folder / "data/training", "train"))
    before, after = encode(tokenizer, [PROMPT, ANSWER])
    assert (before, after) != tuple(encode(tiny_tokenizer(), [PROMPT, ANSWER]))
    rows = [{"answer": text, "tokens": [1]} for text in (" the fog", ANSWER, "")]
    found = scorer.perplexities([{"prompt": PROMPT, "prompt_ids": [1]}] * 3, rows, 8)
    expected = pytest.approx(by_hand(model, before, after), rel=1e-4)
    assert found[1:] == [expected, None] and known[0] == expected and len(known) == 2
    assert list(scorer.frame) == shared_frame(encode(tokenizer, [PROMPT, OTHER])) != []
    assert found[0] == pytest.approx(by_hand(model, before, *encode(tokenizer, [" the fog"])), rel=1e-4)


def test_what_exceeds_the_positions_is_left_out() -> None:
    model, tokenizer = tiny_model(causal=True), tiny_tokenizer()
    before, after = encode(tokenizer, [PROMPT, ANSWER * 20])
    (found,) = Scorer(model, tokenizer.eos_token_id, tokenizer).perplexities(
        [{"prompt": PROMPT}], [{"answer": ANSWER * 20}], 8
    )
    assert len(before) + len(after) > SHAPE.max_length
    assert found == pytest.approx(by_hand(model, before, after[: SHAPE.max_length - len(before)]), rel=1e-4)
