"""Block diffusion: who sees whom, the noise of blocks, one pass over noised and clean against a loop over blocks."""

import functools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_adapt import causal_model, plain_tokenizer, saved
from test_training import EOS, LENGTH, MASK, TRAIN, TRAINING, VALID, arguments, tiny_model
from torch import Tensor
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedModel

from dlm.diffusion.blocks import CLIPPED, FULL, block_nelbo, block_times, clipped_range
from dlm.errors import UserError
from dlm.models.adapt import adapt, make_block_causal
from dlm.models.backbone import load_checkpoint, save_checkpoint
from dlm.models.blocks import block_causal, block_numbers, doubled
from dlm.models.interface import block_size, doubled_states, head, states
from dlm.training import blocks as training_blocks
from dlm.training.blocks import BlockDiffusionTrainer, answer_blocks
from dlm.training.collators import PackedCollator, SftCollator
from dlm.training.fit import fit
from dlm.training.objectives import DiffusionTrainer


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints go below the working directory."""
    monkeypatch.chdir(tmp_path)


def pattern(rows: str) -> list[list[bool]]:
    """`x` sees, `.` does not; a row a word."""
    return [[letter == "x" for letter in row] for row in rows.split()]


# Masks


def test_blocks_are_counted_from_the_answer() -> None:
    """Answers from place 3 and from place 0; blocks of 2: the first prompt's first block is a short one."""
    maskable = torch.tensor([[False, False, False, True, True, True, True], [True] * 7])
    assert answer_blocks(maskable, 2).tolist() == [[-2, -1, -1, 0, 0, 1, 1], [0, 0, 1, 1, 2, 2, 3]]
    assert answer_blocks(maskable, 1).tolist() == [[-3, -2, -1, 0, 1, 2, 3], list(range(7))]
    assert answer_blocks(torch.zeros(1, 3, dtype=torch.bool), 2).tolist() == [[0, 0, 1]]  # a crop in its prompt


def test_the_masks_by_hand() -> None:
    """Two places of a prompt, three of an answer; blocks of 2."""
    blocks = block_numbers(torch.arange(5)[None] - 2, 2)
    assert blocks.tolist() == [[-1, -1, 0, 0, 1]]
    assert block_causal(blocks)[0].tolist() == pattern("xx... xx... xxxx. xxxx. xxxxx")
    assert doubled(blocks)[0].tolist() == pattern(
        "xx........ xx........ ..xx.xx... ..xx.xx... ....xxxxx. "  # noised: its own block, clean ones before it
        ".....xx... .....xx... .....xxxx. .....xxxx. .....xxxxx"
    )


@given(st.integers(1, 9), st.integers(0, 9), st.integers(1, 10))
def test_masks_of_any_size(length: int, start: int, size: int) -> None:
    """Blocks of 1 are a causal mask, blocks of the canvas none; no noised position is seen but by its block."""
    offset = torch.arange(length)[None] - start
    assert torch.equal(block_causal(block_numbers(offset, 1))[0], torch.ones(length, length).tril().bool())
    if start == 0:
        assert block_causal(block_numbers(offset, length)).all()
    blocks = block_numbers(offset, size)
    sees = doubled(blocks)[0]
    assert torch.equal(sees[length:, length:], block_causal(blocks)[0]) and not sees[length:, :length].any()
    assert torch.equal(sees[:length, :length], blocks[0][:, None] == blocks[0])
    assert torch.equal(sees[:length, length:] | sees[:length, :length], block_causal(blocks)[0])
    assert not (sees[:length, length:] & sees[:length, :length]).any()


# Noise


def test_clipped_ranges() -> None:
    assert [clipped_range(size) for size in (1, 2, 4, 5, 16)] == [(1, 1), *[(0.45, 0.95)] * 2, *[(0.3, 0.8)] * 2]
    assert clipped_range(17) == clipped_range(1024) == FULL == (1e-3, 1.0)
    assert all(0 < low <= high <= 1 for low, high in CLIPPED.values())


@settings(max_examples=60, derandomize=True)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 5), st.integers(0, 2**31))
def test_times_cover_the_range_evenly_for_every_block(parts: list[int], size: int, seed: int) -> None:
    """A global batch in parts, the rows' answers at different places: one time a block; blocks of one number take one
    time each from equal cells of the range; how the batch is cut changes nothing."""
    total, length, bounds = sum(parts), 12, (0.3, 0.8)
    starts = (torch.arange(total) * 5 % 4)[:, None]
    blocks = block_numbers(torch.arange(length) - starts, size)
    whole = block_times(torch.arange(total), total, blocks, bounds, torch.Generator().manual_seed(seed))
    first = 0
    for count in parts:
        at = torch.arange(first, first + count)
        part = block_times(at, total, blocks[at], bounds, torch.Generator().manual_seed(seed))
        assert torch.equal(part, whole[at])
        first += count
    assert float(whole.min()) >= 0.3 - 1e-6 and float(whole.max()) <= 0.8 + 1e-6
    for number in range(int(blocks.min()), int(blocks.max()) + 1):
        own = [set(row[chosen].tolist()) for row, chosen in zip(whole, blocks == number, strict=True)]
        assert all(len(times) <= 1 for times in own)
        if all(own):
            grid = (torch.tensor([times.pop() for times in own]).double() - 0.3) / 0.5 * total
            apart = (grid - grid[0] - torch.arange(total) + 0.5) % total - 0.5
            assert float(apart.abs().max()) < 1e-3


def test_times_of_the_whole_range_and_of_blocks_of_one() -> None:
    blocks = torch.arange(50)[None]
    t = block_times(torch.tensor([0]), 1, blocks, (0.0, 1.0), torch.Generator().manual_seed(0))
    assert float(t.min()) >= 1e-3 and float(t.max()) <= 1 and t.unique().numel() == 50
    assert block_times(torch.tensor([0]), 1, blocks, clipped_range(1), torch.Generator()).eq(1).all()


def test_the_bound_by_hand() -> None:
    """Two blocks of 2 at t 0.5 and 0.25: (1 + 2) / 0.5 + 3 / 0.25 = 18."""
    nll, t = torch.tensor([[1.0, 2.0, 3.0, 0.0]]), torch.tensor([[0.5, 0.5, 0.25, 0.25]])
    assert block_nelbo(nll, t).tolist() == [18.0]


# One pass


def alone(model: PreTrainedModel, clean: Tensor, noised: Tensor, blocks: Tensor, number: int) -> Tensor:
    """Log-probabilities of one row's block by itself: the clean blocks before it and the block, noised, and no more.

    Where position i is predicted at i - 1 that is the state at i - 1 in the same pass.
    """
    seen = blocks <= number
    row = torch.where(blocks == number, noised, clean)[seen]
    unseen = blocks[seen][:, None] < blocks[seen]
    added = torch.zeros(unseen.shape).masked_fill(unseen, torch.finfo(torch.float32).min)
    hidden = model.get_decoder()(
        input_ids=row[None], attention_mask=added[None, None], use_cache=False
    ).last_hidden_state[0]
    if getattr(model.config, "logits_shift", 0):
        hidden = torch.cat([hidden[:1], hidden[:-1]])
    logits = model.get_output_embeddings()(hidden)[blocks[seen] == number].clone()
    logits[:, MASK] = -math.inf
    return logits.log_softmax(-1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("size", [1, 3, 8, LENGTH])
def test_the_loss_is_that_of_a_loop_over_blocks(
    monkeypatch: pytest.MonkeyPatch, size: int, shift: int, attention: str
) -> None:
    """Σ over rows and blocks of (1/t) Σ_masked -log p, each block in a pass of its own, in training and held out."""
    drawn: list[Any] = []

    def mask_tokens(*given: Any) -> Any:
        drawn.append((given[1], *real(*given)))
        return drawn[-1][1:]

    real = training_blocks.mask_tokens
    monkeypatch.setattr(training_blocks, "mask_tokens", mask_tokens)
    model = tiny_model()
    model.set_attn_implementation(attention)
    model.config.logits_shift = shift
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # fresh weights hardly see what stands around
    collator = SftCollator(LENGTH, EOS, padding=0.25)
    trainer = BlockDiffusionTrainer(
        model=model, args=arguments(), mask_id=MASK, data_collator=collator, eval_dataset=TRAIN[:4], block_size=size
    )
    batch = collator(TRAIN[:4])
    blocks = answer_blocks(batch["maskable"], size)
    for held_out in ({}, {"place": torch.arange(4)}):
        loss = trainer.compute_loss(model, {**batch, **held_out})
        t, xt, masked = drawn.pop()
        total = torch.zeros(())
        for b in range(4):
            for number in range(int(blocks[b].max()) + 1):
                inside = blocks[b] == number
                log_p = alone(model, batch["x0"][b], xt[b], blocks[b], number)
                true = log_p.gather(-1, batch["x0"][b][inside][:, None])[:, 0]
                weight = (masked[b] * batch["counts"][b])[inside] / t[b][inside][0]
                total = total - (true.masked_fill(weight == 0, 0) * weight).sum()
        assert int(masked.sum()) > 4
        assert loss.item() == pytest.approx(total.item() / batch["counts"].sum().item(), rel=1e-5)


def test_held_out_times_are_those_of_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training draws from the clipped range of its size, or what it is told; held-out rows from all of it."""
    times: list[Tensor] = []

    def block_times(*given: Any) -> Tensor:
        times.append(real(*given))
        return times[-1]

    real = training_blocks.block_times
    monkeypatch.setattr(training_blocks, "block_times", block_times)
    collator = PackedCollator()
    rows = [{"ids": list(range(2, 26))}] * 4
    for size, told, low, high in ((4, None, 0.45, 0.95), (4, (0.6, 0.7), 0.6, 0.7), (1, None, 1.0, 1.0)):
        model = tiny_model()
        trainer = BlockDiffusionTrainer(
            model=model,
            args=arguments(),
            mask_id=MASK,
            data_collator=collator,
            eval_dataset=rows,
            block_size=size,
            t_range=told,
        )
        trainer.compute_loss(model, collator(rows))
        trainer.compute_loss(model, {**collator(rows), "place": torch.arange(4)})
        trained, held_out = times[-2:]
        assert float(trained.min()) >= low - 1e-6 and float(trained.max()) <= high + 1e-6
        assert (float(held_out.min()) < 0.45) == (size > 1)


def train(size: int, **more: Any) -> list[dict[str, float]]:
    make = functools.partial(
        BlockDiffusionTrainer, mask_id=MASK, data_collator=SftCollator(LENGTH, EOS, padding=1.0), block_size=size
    )
    return fit("blocks", make, tiny_model(1), TRAIN, VALID, replace(TRAINING, **more), 7)[1]


def test_training_learns_and_does_not_depend_on_micro_batches() -> None:
    rows = train(4)
    assert rows[-1]["eval_loss"] < 0.8 * rows[0]["eval_loss"]
    again = train(4, batch_size=2, gradient_accumulation=2)
    for one, other in zip(rows, again, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


def test_blocks_of_the_whole_canvas_are_masked_diffusion() -> None:
    """Without a prompt, one block: the loss is DiffusionTrainer's for the same x_t."""
    collator, rows = PackedCollator(), [{"ids": [int(i) for i in torch.randperm(200)[:LENGTH] + 2]} for _ in range(3)]
    model = tiny_model()
    batch = collator(rows)
    xt = torch.where(torch.arange(LENGTH) % 3 == 0, MASK, batch["x0"])
    blocks = answer_blocks(batch["maskable"], LENGTH)
    torch.testing.assert_close(doubled_states(model, xt, batch["x0"], blocks), states(model, xt))


# A model from left to right


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gpt2"])
@torch.no_grad()
def test_adapted_to_blocks_of_one_it_is_the_model_that_it_was(tmp_path: Path, kind: str) -> None:
    """With every position masked, log-probabilities are those of the autoregressive model, within 1e-5; saved too."""
    folder, original = saved(tmp_path / "ar", kind)
    model, tokenizer = load_checkpoint(folder, causal=True)
    adapt(model, tokenizer, logits_shift=1, block_size=1)
    save_checkpoint(tmp_path / "blocks", model, tokenizer)
    model, tokenizer = load_checkpoint(tmp_path / "blocks", causal=False)
    assert block_size(model) == 1
    ids = torch.randint(2, 300, (3, 20), generator=torch.Generator().manual_seed(1))
    expected = original(input_ids=ids).logits[:, :-1].log_softmax(-1)
    masks = torch.full_like(ids, tokenizer.mask_token_id)
    blocks = block_numbers(torch.arange(20).expand(3, -1) - torch.tensor([[0], [4], [7]]), 1)
    found = head(model)(doubled_states(model, masks, ids, blocks).flatten(0, 1)).view(3, 20, -1)
    found[..., tokenizer.mask_token_id] = -torch.inf  # SUBS
    assert (found.log_softmax(-1)[:, 1:, :300] - expected).abs().max() < 1e-5


def test_the_loss_of_blocks_of_one_is_that_of_the_next_token() -> None:
    """Of an adapted model, per counted token: the cross-entropy of the autoregressive one on the answer and its EOS."""
    original = causal_model("llama", 300)
    model, tokenizer = causal_model("llama", 300), plain_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<|mask|>"})
    adapt(model, tokenizer, logits_shift=1, block_size=1)
    rows = [{"prompt_ids": [5, 6, 7], "answer_ids": [8, 9]}, {"prompt_ids": [10], "answer_ids": [11, 12, 13]}]
    collator = SftCollator(8, 0, padding=0.0)
    batch = collator(rows)
    trainer = BlockDiffusionTrainer(
        model=model, args=arguments(), mask_id=tokenizer.mask_token_id, data_collator=collator, block_size=1
    )
    loss = trainer.compute_loss(model, batch).item()
    log_p = original(input_ids=batch["x0"]).logits.log_softmax(-1)
    nll = [-log_p[b, i - 1, batch["x0"][b, i]].item() for b in range(2) for i in range(8) if batch["counts"][b, i]]
    assert loss == pytest.approx(sum(nll) / len(nll), rel=1e-5)


# What is refused


def test_what_needs_both_sides_says_so() -> None:
    """Other objectives would train a block-causal model to see what it cannot see."""
    model = tiny_model()
    make_block_causal(model, 4)
    make_block_causal(model, 4)
    collator = SftCollator(LENGTH, EOS, padding=1.0)
    trainer = DiffusionTrainer(model=model, args=arguments(), mask_id=MASK, data_collator=collator)
    with pytest.raises(UserError, match=r"needs a model that sees both sides .* block-causal \(blocks of 4\); give"):
        trainer.compute_loss(model, collator(TRAIN[:2]))
    with pytest.raises(UserError, match=r"has blocks of 4 positions, not of 8"):
        make_block_causal(model, 8)


def test_who_cannot_be_block_causal(tmp_path: Path) -> None:
    config = Gemma3TextConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, sliding_window=4, layer_types=["sliding_attention", "full_attention"], pad_token_id=0,
    )  # fmt: skip
    config.is_causal = False
    with pytest.raises(UserError, match=r"^Gemma3ForCausalLM: cannot see blocks of positions alone; give a Llama-like"):
        make_block_causal(Gemma3ForCausalLM(config).eval(), 4)
    folder, _ = saved(tmp_path / "ar")
    model, tokenizer = load_checkpoint(folder, causal=True)
    adapt(model, tokenizer, logits_shift=1)
    model.config.diffusion_block_size = -2
    save_checkpoint(tmp_path / "wrong", model, tokenizer)
    with pytest.raises(UserError, match=r"config.json: diffusion_block_size must be a whole number from 0, got -2$"):
        load_checkpoint(tmp_path / "wrong", causal=False)
