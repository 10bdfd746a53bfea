"""Block-causal models: decoded block by block, with keys and values that are exact, and as they were trained."""

import math
from typing import Any

import pytest
import torch
from decoder_cases import INVARIANT
from slow import Task, slow_decode
from test_adapt import causal_model, plain_tokenizer
from test_api import PROMPTS, row, rows
from tiny import tiny_lm
from torch import Tensor

from dlm.decoding.block_cache import BlockCache
from dlm.decoding.decoder import make_decoder
from dlm.decoding.lm import DiffusionLM
from dlm.decoding.loop import decode
from dlm.decoding.noise import row_keys
from dlm.decoding.options import decoder_options, in_blocks
from dlm.errors import UserError
from dlm.likelihood import score
from dlm.models.adapt import adapt, make_block_causal
from dlm.models.blocks import block_causal, block_numbers
from dlm.models.interface import doubled_states
from dlm.serving import body
from dlm.serving.body import BadRequest, Defaults

# One setting of each; sliding_annealing is refused.
RULES = {name: options for name, options in INVARIANT if name not in ("sliding_annealing", "semi_ar")}


def block_lm(size: int, shift: int = 0, seed: int = 2) -> DiffusionLM:
    lm = tiny_lm(seed, eos_scale=2.0)
    lm.denoiser.model.config.logits_shift = shift
    make_block_causal(lm.denoiser.model, size)
    return DiffusionLM(lm.denoiser.model, lm.tokenizer)


# The cache


def sees(lengths: list[int], starts: list[int], size: int) -> tuple[Tensor, Tensor]:
    """Each row's offsets, and who sees whom on canvases of these lengths, right padding seen by nobody."""
    place = torch.arange(max(lengths))
    offset = place - torch.tensor(starts)[:, None]
    return offset, block_causal(block_numbers(offset, size)) & (place < torch.tensor(lengths)[:, None])[:, None]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("shift", [0, 1])
@torch.inference_mode()
def test_kept_keys_give_the_states_of_a_whole_pass(shift: int, attention: str) -> None:
    """Rows with answers from places 5, 0 and 9 on; the block changes between passes, and a row leaves out a block and a
    pass. Within 1e-5 of the states of the whole canvas."""
    size, starts, blocks = 4, [5, 0, 9], 3
    denoiser = block_lm(size, shift).denoiser
    denoiser.model.set_attn_implementation(attention)
    lengths = [start + size * blocks for start in starts]
    offset, mask = sees(lengths, starts, size)
    tokens = torch.randint(2, 300, offset.shape, generator=torch.Generator().manual_seed(1))
    cache, states = BlockCache(3), torch.zeros(*offset.shape, denoiser.width)
    for number in range(blocks):
        for attempt in range(3):
            rows = [0, 2] if number == 1 or attempt == 1 else [0, 1, 2]
            if number == 2 and attempt == 2:
                rows = [1]
            inside = block_numbers(offset, size) == number
            changed = torch.randint(
                2, 300, tokens.shape, generator=torch.Generator().manual_seed(10 * number + attempt)
            )
            tokens = torch.where(inside & (torch.arange(len(tokens))[:, None] != 1), changed, tokens)
            begins, ends = ([starts[b] + size * (number + more) for b in rows] for more in (0, 1))
            cache.refresh(denoiser, tokens, offset, rows, begins, ends, states)
            whole = denoiser.hidden(tokens, mask)
            for b, begin, end in zip(rows, begins, ends, strict=True):
                assert (states[b, begin:end] - whole[b, begin:end]).abs().max() < 1e-5
                assert whole[b, begin:end].abs().max() > 0.1


@torch.inference_mode()
def test_decoding_sees_what_training_saw() -> None:
    """A noised block behind clean ones, whatever is behind it: the states of the doubled pass."""
    for shift in (0, 1):
        denoiser = block_lm(4, shift).denoiser
        offset, mask = sees([18, 18], [6, 3], 4)
        blocks = block_numbers(offset, 4)
        generator = torch.Generator().manual_seed(2)
        clean, noised = (torch.randint(2, 300, (2, 18), generator=generator) for _ in range(2))
        trained = doubled_states(denoiser.model, noised, clean, blocks)
        for number in range(3):
            canvas = torch.where(blocks < number, clean, torch.where(blocks == number, noised, denoiser.mask_id))
            found = denoiser.hidden(canvas, mask)
            inside = blocks == number
            torch.testing.assert_close(found[inside], trained[inside], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("name", RULES)
def test_every_rule_alone_together_and_without_the_cache(name: str, shift: int) -> None:
    """Prompts of every length, with EOS-fill or without: the same answers whatever the batch, and from whole passes
    instead of kept keys."""
    if name == "wino" and shift:
        pytest.skip("wino needs states that predict their own place")
    given = {key: value for key, value in RULES[name].items() if key not in ("block_length", "variant")}
    setting = {"decoder": name, "steps": 6, "gen_length": 12, "seed": 4, "eos_fill": bool(shift), **given}
    lm, prompts = LMS[shift], PROMPTS[1:5]
    together = rows(lm.generate(prompts, **setting))
    assert together == [row(lm.generate([prompt], **setting), 0) for prompt in prompts]
    whole = rows(lm.generate(prompts[::-1], **{**setting, "cache": False}, batch_size=3))[::-1]
    assert [one[1] for one in together] == [one[1] for one in whole]
    assert [one[3:] for one in together] == [one[3:] for one in whole]


LMS = {shift: block_lm(4, shift) for shift in (0, 1)}


def test_a_pass_computes_a_block() -> None:
    """Prompts of 5, blocks of 4, two steps each: 5 + 4 places, then 4, 8 (with the block before), 4, 8 and 4."""
    lm, widths = block_lm(4), []
    lm.denoiser.model.get_input_embeddings().register_forward_hook(lambda _, ids, __: widths.append(ids[0].shape[1]))
    out = lm.generate([[5, 6, 7, 8, 9]] * 2, "low_confidence", steps=6, gen_length=12)
    assert widths == [9, 4, 8, 4, 8, 4]
    assert out.nfe.tolist() == [6, 6]
    widths.clear()
    lm.generate([[5, 6, 7, 8, 9]] * 2, "low_confidence", steps=6, gen_length=12, cache=False)
    assert widths == [17] * 6


# The rules


def network(lm: DiffusionLM, start: int, size: int) -> Any:
    """Logits of a whole canvas, each position in a pass of its own over what it sees."""

    @torch.inference_mode()
    def logits(canvas: list[int]) -> list[list[float]]:
        model: Any = lm.denoiser.model
        found = []
        for i in range(len(canvas)):
            at = i - model.config.logits_shift if i else 0
            end = start + ((at - start) // size + 1) * size  # behind the block of the position that is read
            seen = canvas[: min(end, len(canvas))]
            numbers = torch.tensor([(j - start) // size for j in range(len(seen))])
            mask = numbers[:, None] >= numbers
            found.append(model(input_ids=torch.tensor([seen]), attention_mask=mask[None, None]).logits[0, at])
            found[-1][lm.denoiser.mask_id] = -math.inf
        return torch.stack(found).tolist()

    return logits


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("categorical", {}),
        ("top_k", {"top_k": 3}),
        ("low_confidence", {"confidence": "margin", "temperature": 0.5}),
        ("threshold", {"threshold": 0.3}),
        ("conv", {"rule": "low_confidence", "kernel_size": 5, "gain": "tanh", "conv_mult": 1.0, "temperature": 0.0}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_token_for_token(name: str, options: dict[str, Any], shift: int) -> None:
    """As the published formulas in loops over one row, every position computed by itself from what it sees."""
    lm, size = LMS[shift], 4
    given = {**options, "block_length": size, "variant": "restrict"}
    task = Task(name, given, 8, 4, lm.tokenizer.eos_token_id, lm.denoiser.mask_id)
    prompts = [[5, 9, 70], [100], [*range(200, 206)]]
    keys = row_keys(prompts, 11)
    made = make_decoder(in_blocks(decoder_options(name, options, name), size, name))
    found = decode(lm.denoiser, prompts, made, gen_length=8, steps=4, keys=keys, eos_id=lm.tokenizer.eos_token_id)
    for b, prompt in enumerate(prompts):
        slow = slow_decode(network(lm, len(prompt), size), prompt, task, keys[b], None)
        assert found.tokens[b].tolist() == slow.tokens
        assert found.commit_step[b].tolist() == slow.commit_step


def test_what_is_left_of_a_block_is_filled_before_the_next() -> None:
    """A window of 1 reaches no mask: each block of 4 in 2 steps is left over, and the next one stands behind tokens."""
    lm, drafts = block_lm(4), []
    setting = {"rule": "threshold", "threshold": 0.5, "kernel_size": 1, "steps": 4, "gen_length": 8}
    out = lm.generate([[5, 6, 7]], "conv", **setting, watch=lambda step, tokens: drafts.append((step, tokens.clone())))
    mask_id = lm.denoiser.mask_id
    assert out.leftover_masks.tolist() == [8] and out.nfe.tolist() == [2 * 2]
    masks = [(tokens[0] == mask_id).tolist() for _, tokens in drafts]
    assert masks == [[True] * 8, [False] * 4 + [True] * 4, [False] * 4 + [True] * 4, [False] * 8]
    first = torch.tensor([[5, 6, 7, *[mask_id] * 4]])
    hidden = lm.denoiser.hidden(first, sees([7], [3], 4)[1])
    assert out.tokens[0, :4].tolist() == lm.denoiser.logits(hidden[0, 3:]).argmax(-1).tolist()


@torch.no_grad()
def test_blocks_of_one_write_what_the_autoregressive_model_writes() -> None:
    """Greedy, of an adapted model that was not trained: as many passes as tokens, the tokens of argmax one by one."""
    original, model, tokenizer = causal_model("llama", 300), causal_model("llama", 300), plain_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<|mask|>"})
    lm = DiffusionLM(adapt(model, tokenizer, logits_shift=1, block_size=1), tokenizer)
    prompts = [[5, 9, 70], [100, 7], [*range(200, 212)]]
    out = lm.generate(prompts, "low_confidence", gen_length=16)
    assert out.nfe.tolist() == [16] * 3
    for prompt, tokens in zip(prompts, out.tokens.tolist(), strict=True):
        ids = [*prompt]
        for _ in range(16):
            ids.append(int(original(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        until = ids[len(prompt) :]
        stop = until.index(0) if 0 in until else 16
        assert tokens[:stop] == until[:stop]
    assert len({tuple(tokens) for tokens in out.tokens.tolist()}) == 3


# What is refused


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("sliding_annealing", {}, r"sliding_annealing: decoder must be another for this model, which has blocks of 4"),
        ("semi_ar", {"block_length": 8}, r"semi_ar.block_length must be 4 with variant restrict, or left .* got 8$"),
        ("semi_ar", {"block_length": 4}, r"semi_ar.block_length must be 4 with variant restrict, .* got 'stride'$"),
        ("conv", {"suffix": "none"}, r"conv.suffix must be full for this model, .* exact cache .* got 'none'$"),
        ("semi_ar", {"block_length": 4, "variant": "restrict", "kv_cache": "dual"}, r"semi_ar.kv_cache must be none"),
        ("top_k", {"gen_length": 10}, r"top_k.block_length must divide gen_length \(10\), got 4"),
        ("top_k", {"steps": 2}, r"top_k: steps must be a multiple of the 3 blocks"),
    ],
)  # fmt: skip
def test_decoders_that_do_not_go_with_the_blocks(name: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        LMS[0].generate([[5, 6]], name, **{"gen_length": 12, **options})


def test_the_models_own_blocks_may_be_named() -> None:
    setting = {"steps": 6, "gen_length": 12}
    named = LMS[0].generate(PROMPTS, "semi_ar", top_k=5, block_length=4, variant="restrict", **setting)
    assert rows(named) == rows(LMS[0].generate(PROMPTS, "top_k", top_k=5, **setting))


def test_gaps_and_likelihoods_need_both_sides() -> None:
    told = r"^this needs a model that sees both sides of a gap, and this one is block-causal \(blocks of 4\); give"
    with pytest.raises(UserError, match=told):
        LMS[0].infill([[5, 6, LMS[0].denoiser.mask_id, 7]])
    with pytest.raises(UserError, match=told):
        score(LMS[0], [[5, 6]], [[7, 8]])


def test_a_served_answer_has_whole_blocks() -> None:
    """64 positions less a prompt of 3 are 61, 15 blocks; the options are those that `generate` decodes with."""
    asked = body.completion(LMS[0], "tiny", Defaults("top_k", {"top_k": 5}), {"prompt": [5, 6, 7]})
    assert asked.setting.gen_length == 60
    assert (asked.setting.options.block_length, asked.setting.options.variant) == (4, "restrict")
    with pytest.raises(BadRequest, match="block_length must divide gen_length"):
        body.completion(LMS[0], "tiny", Defaults(), {"prompt": [5, 6, 7], "max_tokens": 10})
