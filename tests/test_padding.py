"""Rainbow Padding: one EOS and then pad tokens in turn, on training canvases and behind what a decoder writes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SENTENCES, TableDenoiser, tiny_model
from transformers import PreTrainedTokenizerFast

from dlm.data.padding import add_padding, tail
from dlm.data.tokenizer import decode as decode_text
from dlm.data.tokenizer import encode, load_tokenizer, train_tokenizer
from dlm.decoding.decoder import make_decoder
from dlm.decoding.lm import DiffusionLM
from dlm.decoding.loop import Decoded, decode, fill
from dlm.decoding.noise import row_keys
from dlm.decoding.options import decoder_options
from dlm.diffusion.forward import mask_suffix
from dlm.errors import UserError
from dlm.likelihood import score
from dlm.models.backbone import load_checkpoint, save_checkpoint
from dlm.models.interface import head, pad_cycle
from dlm.models.padding import give_padding
from dlm.training.collators import R2ftCollator, SftCollator

EOS, MASK, CYCLE = 0, 1, [7, 8, 9]
VOCAB = 10


# Training canvases


@pytest.mark.parametrize(
    ("count", "cycle", "expected"),
    [
        (0, CYCLE, []),
        (1, CYCLE, [0]),
        (6, CYCLE, [0, 7, 8, 9, 7, 8]),
        (3, [7], [0, 7, 7]),
        (3, [], [0, 0, 0]),
    ],
)
def test_what_stands_behind_an_answer(count: int, cycle: list[int], expected: list[int]) -> None:
    assert tail(count, EOS, cycle) == expected


def test_sft_counts_the_answer_its_eos_and_a_part_of_each_pad_token() -> None:
    rows = [{"prompt_ids": [2], "answer_ids": [3, 4]}, {"prompt_ids": [2, 3], "answer_ids": [4, 4, 4, 5, 6]}]
    batch = SftCollator(8, EOS, padding=0.25, cycle=CYCLE)(rows)
    assert batch["x0"].tolist() == [[2, 3, 4, 0, 7, 8, 9, 7], [2, 3, 4, 4, 4, 5, 6, 0]]
    assert batch["maskable"].tolist() == [[False] + [True] * 7, [False] * 2 + [True] * 6]
    assert batch["counts"].tolist() == [[0, 1, 1, 1, 0.25, 0.25, 0.25, 0.25], [0, 0, 1, 1, 1, 1, 1, 1]]


def test_the_chosen_side_ends_with_its_eos_and_the_rejected_one_is_as_drawn() -> None:
    """The context behind the span (rule `inside`) shows the padding that SFT has taught."""
    row = {
        "prompt_ids": [2],
        "answer_ids": [3, 4],
        "context_mask": [True, True, False, False, False, True, True, True],
        "rejected_ids": [2, 3, 3, 3, 0, 0, 0, 0],
        "rejected_mask": [False, False, True, True, True, False, False, False],
    }
    batch = R2ftCollator(8, EOS, MASK, CYCLE)([row])
    assert batch["x0"].tolist() == [[2, 3, 4, 0, 7, 8, 9, 7]]
    assert batch["xt"].tolist() == [[2, 3, 1, 1, 1, 8, 9, 7]]
    assert batch["chosen_mask"].tolist() == [[False, False, True, True, False, False, False, False]]
    assert batch["rejected"].tolist() == [row["rejected_ids"]]


def test_a_cut_counts_up_to_the_eos_before_the_pad_tokens() -> None:
    """Two tokens of answer: the cut falls before, between or behind them, each for a third of the draws."""
    x0 = torch.tensor([[2, 3, 4, 0, 7, 8]] * 3)
    maskable = torch.tensor([[False, True, True, True, True, True]] * 3)
    masked, counted = mask_suffix(x0, maskable, EOS, torch.tensor([0.1, 0.5, 0.9]))
    assert masked.sum(-1).tolist() == [5, 4, 3]
    assert counted.sum(-1).tolist() == [3, 2, 1]


# Tokenizer and model


def padded_parts(cycle: int = 3) -> tuple[Any, PreTrainedTokenizerFast, list[int]]:
    tokenizer = train_tokenizer(SENTENCES, 300)
    ids = add_padding(tokenizer, cycle)
    model = tiny_model(2, eos_scale=2.0)
    give_padding(model, tokenizer, ids, seed=5)
    return model, tokenizer, ids


def test_a_tokenizer_gains_them_once_and_no_text_has_them(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(SENTENCES, 300)
    size = len(tokenizer)
    assert add_padding(tokenizer, 0) == [] and len(tokenizer) == size
    ids = add_padding(tokenizer, 3)
    assert ids == [size, size + 1, size + 2]
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert add_padding(again, 3) == ids and again.get_vocab() == tokenizer.get_vocab()
    spelt = encode(again, ["<|pad_1|> in a text"])[0]
    assert not set(ids) & set(spelt) and decode_text(again, [*ids, *spelt]) == "<|pad_1|> in a text"


def test_an_ordinary_entry_cannot_be_padding() -> None:
    tokenizer = train_tokenizer(SENTENCES, 300)
    tokenizer.add_tokens(["<|pad_0|>"])
    with pytest.raises(UserError, match=r"tokenizer.pad_cycle: <\|pad_0\|> is an ordinary entry"):
        add_padding(tokenizer, 2)


def test_rows_are_new_and_apart_and_the_others_stay(tmp_path: Path) -> None:
    before = tiny_model(2, eos_scale=2.0).get_input_embeddings().weight.detach().clone()
    model, tokenizer, ids = padded_parts()
    weight = model.get_input_embeddings().weight
    assert torch.equal(weight[:300], before) and len(weight) == 303 and model.get_output_embeddings().weight is weight
    spread, mean = torch.std_mean(before, dim=0)
    away = ((weight[ids] - mean) / spread).detach()
    assert 0.5 < away.std() < 1.5 and len({tuple(row) for row in weight[ids].tolist()}) == 3
    save_checkpoint(tmp_path / "model", model, tokenizer)
    loaded, its_tokenizer = load_checkpoint(tmp_path / "model", causal=False)
    assert pad_cycle(loaded) == ids and len(its_tokenizer) == 303
    assert DiffusionLM.load(tmp_path / "model", "cpu").padding == ids


def test_spare_rows_become_pad_tokens() -> None:
    """A published model's rows beyond its tokenizer: the pad tokens get probability, the rows behind them none."""
    tokenizer = train_tokenizer(SENTENCES, 290)
    model = tiny_model(2)
    model.config.token_count = len(tokenizer)
    spare = model.get_input_embeddings().weight.detach().clone()
    ids = add_padding(tokenizer, 3)
    give_padding(model, tokenizer, ids, seed=5)
    weight = model.get_input_embeddings().weight
    assert len(weight) == 300 and torch.equal(weight[ids[-1] + 1 :], spare[ids[-1] + 1 :])
    assert not torch.equal(weight[ids], spare[ids])
    assert head(model)(torch.zeros(1, 32)).shape[1] == ids[-1] + 1 == 293


@pytest.mark.parametrize("cycle", [0, 2, 4])
def test_trained_pad_tokens_stay_what_they_are(cycle: int) -> None:
    model, tokenizer, ids = padded_parts()
    rows = model.get_input_embeddings().weight[ids].clone()
    give_padding(model, tokenizer, ids, seed=6)
    assert torch.equal(model.get_input_embeddings().weight[ids], rows)
    with pytest.raises(UserError, match=f"tokenizer.pad_cycle must be 3, as the model was trained, got {cycle}"):
        give_padding(model, tokenizer, add_padding(tokenizer, cycle), seed=5)


def test_a_checkpoint_must_have_the_tokens_that_it_names(tmp_path: Path) -> None:
    model, tokenizer, _ = padded_parts()
    model.config.pad_cycle_ids = [300, 5]
    save_checkpoint(tmp_path, model, tokenizer)
    with pytest.raises(UserError, match="pad_cycle_ids must be special tokens of the tokenizer"):
        load_checkpoint(tmp_path, causal=False)


# Decoding


class Written(TableDenoiser):
    """Is sure of one given token at each place of its canvas, whatever stands beside it."""

    def __init__(self, tokens: list[int]) -> None:
        super().__init__(VOCAB, MASK)
        self.tokens = torch.tensor(tokens)

    def hidden(self, canvas: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
        hidden = torch.full((*canvas.shape, VOCAB), -9.0)
        return hidden.scatter(2, self.tokens[: canvas.shape[1]].expand_as(canvas)[..., None], 9.0)


def decoded(denoiser: TableDenoiser, prompt: list[int], length: int, steps: int, **options: Any) -> Decoded[Any]:
    chosen = make_decoder(decoder_options("low_confidence", options, "decoder"))
    keys = row_keys([prompt], 0)
    return decode(
        denoiser, [prompt], chosen, gen_length=length, steps=steps, keys=keys, eos_id=EOS, ends=[6], padding=CYCLE
    )


@pytest.mark.parametrize(
    ("written", "filled"),
    [
        ([4, 0, 4, 4, 4, 4], [4, 0, 7, 8, 9, 7]),  # behind EOS the pad tokens begin
        ([4, 6, 4, 4, 4, 4], [4, 6, 7, 8, 9, 7]),  # as behind another end
        ([4, 8, 4, 4, 4, 4], [4, 8, 9, 7, 8, 9]),  # a pad token is an end, and they go on behind it
        ([9, 4, 0, 4, 4, 4], [9, 7, 8, 9, 7, 8]),
        ([4, 4, 4, 4, 4, 0], [4, 4, 4, 4, 4, 0]),
        ([4, 5, 4, 5, 4, 5], [4, 5, 4, 5, 4, 5]),
    ],
)
def test_eos_fill_goes_on_in_turn(written: list[int], filled: list[int]) -> None:
    denoiser = Written([2, *written])
    assert decoded(denoiser, [2], 6, 6, eos_fill=True).tokens.tolist() == [filled]
    assert decoded(denoiser, [2], 6, 6, eos_fill=False).tokens.tolist() == [written]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    length=st.integers(1, 9),
    steps=st.integers(1, 9),
    eos=st.sampled_from(["free", "last", "never"]),
)
def test_behind_the_first_end_nothing_is_the_models(seed: int, length: int, steps: int, eos: str) -> None:
    denoiser = TableDenoiser(VOCAB, MASK, seed)
    [row] = decoded(denoiser, [2, 3], length, steps, eos_fill=True, eos=eos).tokens.tolist()
    place = next((i for i, token in enumerate(row) if token in (EOS, 6, *CYCLE)), length - 1)
    following = {7: 8, 8: 9, 9: 7}
    for before, token in zip(row[place:], row[place + 1 :], strict=False):
        assert token == following.get(before, 7)
    if eos == "never":  # what else ends an answer may still come
        assert not {EOS, *CYCLE} & set(row[: place + 1])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), steps=st.integers(1, 9))
def test_a_gap_takes_no_barred_token(seed: int, steps: int) -> None:
    denoiser = TableDenoiser(VOCAB, MASK, seed)
    canvas = [2, 1, 1, 3, 1, 1, 1, 4]
    chosen = make_decoder(decoder_options("categorical", {}, "decoder"))
    keys = row_keys([canvas], seed)
    out = fill(denoiser, [canvas], chosen, gen_length=8, steps=steps, keys=keys, eos_id=EOS, barred=CYCLE)
    assert not {MASK, *CYCLE} & set(out.tokens[0].tolist())


def sure_of_padding() -> DiffusionLM:
    """A model in whose answers pad tokens come up every few positions."""
    model, tokenizer, ids = padded_parts()
    with torch.no_grad():
        model.get_input_embeddings().weight[ids] *= 1.5
    return DiffusionLM(model, tokenizer)


@pytest.mark.parametrize("options", [{}, {"eos_fill": True}])
def test_answers_end_at_pad_tokens_and_hold_none(options: dict[str, Any]) -> None:
    lm, drafts = sure_of_padding(), list[str]()
    prompts, size = ["The harbour", "In Velmora", "The fog"], {"gen_length": 24, "steps": 12}
    watch = lm.drafts(lambda _, rows: drafts.extend(rows))
    out = lm.generate(prompts, "low_confidence", temperature=1.0, watch=watch, trace=True, **size, **options)
    assert out.trace is not None and set(out.trace.token.tolist()) & set(lm.padding)  # they were written
    assert not set(out.tokens.ravel().tolist()) & set(lm.padding)
    assert not any("pad_" in text for text in [*out.texts, *drafts])


def test_gaps_hold_none_and_neither_do_scored_answers() -> None:
    lm = sure_of_padding()
    out = lm.infill(["The [MASK:12] opens [MASK:8] at dawn."], "categorical", steps=6)
    assert not set(out.tokens[0].tolist()) & set(lm.padding)
    with pytest.raises(UserError, match="answer 0 must be without masks and padding"):
        score(lm, ["The"], [[5, lm.padding[0]]])
