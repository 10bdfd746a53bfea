"""Published models have more rows than their tokenizers have tokens: such ids never get probability, anywhere."""

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import published
import pytest
import torch
from test_training import TRAINING as FEW_STEPS
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dlm.config.params import load_params
from dlm.config.training import R2ftParams
from dlm.decoding.lm import DiffusionLM
from dlm.models.backbone import load_checkpoint, save_checkpoint
from dlm.models.interface import head, states, token_count
from dlm.models.reference import nucleus_answers
from dlm.negatives.corruption import NegativeRule
from dlm.negatives.draw import draw_negatives, make_rule
from dlm.training.collators import SftCollator
from dlm.training.fit import fit
from dlm.training.objectives import DiffusionTrainer
from dlm.training.r2ft import fit_r2ft, with_examples

LENGTH = 24
WRITE = {"llada": published.llada, "dream": published.dream}
every_kind = pytest.mark.parametrize("kind", WRITE)
PARAMS = load_params(Path(__file__).parents[1] / "params.yaml")
TRAINING = replace(
    FEW_STEPS,
    steps=2,
    learning_rate=1e-3,
    lr_schedule="constant",
    warmup_steps=0,
    weight_decay=0.0,
    eval_every=1,
    save_every=2,
)
ROWS = [{"id": n, "prompt_ids": [5 + n, 9, 12], "answer_ids": [20 + n, 31, 40 + n, 51][: 2 + n % 3]} for n in range(8)]


def loaded(kind: str, folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A tiny published model whose spare rows would win everywhere, were they asked."""
    WRITE[kind](folder, seed=3)
    model, tokenizer = load_checkpoint(folder, causal=False)
    with torch.no_grad():
        # The largest logits of all: the mean state, many times as long.
        ids = torch.randint(2, 290, (4, 20))
        direction = states(model, ids).flatten(0, 1).mean(0)
        model.get_output_embeddings().weight[published.VOCAB :] = 50 * direction
    return model, tokenizer


@every_kind
def test_the_head_ends_with_the_last_token(kind: str, tmp_path: Path) -> None:
    model, tokenizer = loaded(kind, tmp_path / "model")
    assert (token_count(model), model.config.vocab_size, len(tokenizer)) == (300, 320, 300)
    hidden = states(model, torch.randint(2, 290, (1, 6)))[0]
    whole = model.get_output_embeddings()(hidden)
    assert torch.equal(head(model)(hidden), whole[:, :300])
    save_checkpoint(tmp_path / "again", model, tokenizer)
    assert token_count(load_checkpoint(tmp_path / "again", causal=False)[0]) == 300


@every_kind
@pytest.mark.parametrize("decoder", ["categorical", "top_k", "low_confidence", "repetition_penalty", "remdm"])
def test_no_decoder_draws_a_spare_row(kind: str, decoder: str, tmp_path: Path) -> None:
    lm = DiffusionLM(*loaded(kind, tmp_path / "model"))
    tokens = lm.generate([[5, 9, 12], [7]], decoder, steps=4, gen_length=16).tokens
    assert tokens.max() < 300


@every_kind
def test_sft_and_r2ft_of_such_a_model(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Priors are sized by the tokenizer, losses by the tokens there are: what spare rows say changes none of them."""
    monkeypatch.chdir(tmp_path)
    model, tokenizer = loaded(kind, tmp_path / "model")
    mask_id, eos_id = tokenizer.mask_token_id, tokenizer.eos_token_id
    collator = SftCollator(LENGTH, eos_id, padding=1.0)
    make = functools.partial(DiffusionTrainer, mask_id=mask_id, data_collator=collator)
    model, curve = fit("sft", make, model, ROWS, ROWS[:4], TRAINING, 7)
    assert all(np.isfinite(row["eval_loss"]) and row["eval_loss"] < 20 for row in curve)
    counts = np.bincount(np.concatenate([row["answer_ids"] for row in ROWS]), minlength=len(tokenizer)).tolist()
    rule: NegativeRule = make_rule(PARAMS.negatives, {"token_counts": counts, "eos_id": eos_id}, 5)
    pairs = with_examples(draw_negatives(ROWS, "train", PARAMS.negatives, rule, LENGTH, 7), ROWS)
    objective = R2ftParams(launcher="python", beta_w=1.0, beta_l=1.0, margin=0.0, gamma=0.1, training=TRAINING)
    model, curve = fit_r2ft("r2ft", model, tokenizer, pairs, pairs[:4], objective, LENGTH, counts, 7)
    assert all(np.isfinite(value) for row in curve for value in row.values())
    tokens = DiffusionLM(model, tokenizer).generate([[5, 9, 12]], steps=4, gen_length=16).tokens[0].tolist()
    assert max(tokens) < 300


def test_the_reference_answers_without_spare_rows(tmp_path: Path) -> None:
    model, tokenizer = loaded("dream", tmp_path / "model")
    model.config.is_causal = True
    answers = nucleus_answers(
        model, tokenizer, ROWS[:2], seeds=[0], gen_length=8, batch_size=2, top_p=0.95, temperature=1.0
    )
    assert max(max(answer["tokens"], default=0) for answer in answers) < 300
