"""Gaps anywhere: context on both sides stays, what goes from left to right is refused."""

from typing import Any

import pytest
import torch
from tiny import tiny_lm

from dlm.api import DiffusionLM, Infilling
from dlm.errors import UserError

MASK = 1
CANVASES = [
    [5, 9, MASK, MASK, 70, 31],
    [MASK, MASK, MASK, 40],
    [100, MASK, 101, MASK, MASK, 102, MASK],
    [7, 8, MASK, MASK, MASK],
]
RULES: list[tuple[str, dict[str, Any]]] = [
    ("conv", {"kernel_size": 3, "top_k": 3}),
    ("conv", {"rule": "low_confidence", "kernel_size": 3}),
    ("conv", {"kernel_size": 3, "suffix": "none"}),
    ("top_k", {"top_k": 3}),
    ("categorical", {}),
    ("low_confidence", {}),
    ("threshold", {"threshold": 0.3}),
    ("remdm", {"top_k": 3, "schedule": "cap", "eta": 0.3}),
    ("low_confidence", {"cfg_scale": 1.0}),
]


@pytest.fixture(scope="module")
def lm() -> DiffusionLM:
    return tiny_lm(2)


def rows(out: Infilling) -> list[tuple]:
    return [
        (text, gaps, tokens.tolist(), int(nfe), int(left), stamps.tolist())
        for text, gaps, tokens, nfe, left, stamps in zip(
            out.texts, out.gaps, out.tokens, out.nfe, out.leftover_masks, out.commit_step, strict=True
        )
    ]


@pytest.mark.parametrize(("name", "options"), RULES, ids=lambda value: value if isinstance(value, str) else None)
def test_context_stays_and_gaps_fill(lm: DiffusionLM, name: str, options: dict[str, Any]) -> None:
    """Also one row at a time, in another order and in small batches: the same, exactly."""
    out = lm.infill(CANVASES, name, steps=4, seed=3, **options)
    for canvas, tokens, stamps in zip(CANVASES, out.tokens, out.commit_step, strict=True):
        assert len(tokens) == len(canvas)
        for before, after, stamp in zip(canvas, tokens.tolist(), stamps.tolist(), strict=True):
            assert (after != MASK and stamp >= 0) if before == MASK else (after == before and stamp == -1)
    together = rows(out)
    setting = {"decoder": name, "steps": 4, "seed": 3, **options}
    assert together == [rows(lm.infill([canvas], **setting))[0] for canvas in CANVASES]
    assert together[::-1] == rows(lm.infill(CANVASES[::-1], **setting))
    assert together == rows(lm.infill(CANVASES, **setting, batch_size=2))


def test_text_with_gaps(lm: DiffusionLM) -> None:
    """`[MASK]` is one token, `[MASK:3]` three; the texts around them are encoded as they stand."""
    out = lm.infill("The harbour [MASK:3] opens[MASK] at dawn", kernel_size=5)
    left, middle, right = (
        lm.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        for text in ("The harbour ", " opens", " at dawn")
    )
    tokens = out.tokens[0].tolist()
    assert tokens[: len(left)] == left and tokens[-len(right) :] == right
    assert tokens[len(left) + 3 : -len(right) - 1] == middle
    first, second = tokens[len(left) : len(left) + 3], tokens[-len(right) - 1 : -len(right)]
    assert out.gaps == [[lm.tokenizer.decode(first), lm.tokenizer.decode(second)]]
    assert out.texts[0].startswith("The harbour ") and out.texts[0].endswith(" at dawn")
    assert rows(out) == rows(lm.infill([left + [MASK] * 3 + middle + [MASK] + right], kernel_size=5))


def test_both_sides_count(lm: DiffusionLM) -> None:
    """Another word on the right changes what is filled in on the left."""
    one = lm.infill([[5, 9, MASK, MASK, 70]], "low_confidence", steps=2)
    other = lm.infill([[5, 9, MASK, MASK, 250]], "low_confidence", steps=2)
    assert one.tokens[0][2:4].tolist() != other.tokens[0][2:4].tolist()


def test_masks_at_the_end_are_a_prompt(lm: DiffusionLM) -> None:
    """Greedy decoding of [5, 9] and six masks, whichever way it is asked for."""
    filled = lm.infill([[5, 9, *[MASK] * 6]], "low_confidence", steps=3)
    generated = lm.generate([[5, 9]], "low_confidence", steps=3, gen_length=6)
    assert (generated.tokens != lm.tokenizer.eos_token_id).all()
    assert filled.tokens[0][2:].tolist() == generated.tokens[0].tolist()


def test_conv_grows_from_every_edge(lm: DiffusionLM) -> None:
    """Kernel 3 and one position a step: each commit stands beside something that was there before."""
    out = lm.infill([[5, *[MASK] * 7, 9]], "conv", rule="low_confidence", kernel_size=3, steps=7)
    known = {0, 8}
    for step in range(7):
        (position,) = (out.commit_step[0] == step).nonzero()[:, 0].tolist()
        assert {position - 1, position + 1} & known
        known.add(position)
    assert not out.leftover_masks.any()


def test_as_many_steps_as_the_fullest_canvas_has_masks(lm: DiffusionLM) -> None:
    out = lm.infill(CANVASES, "first_hitting")
    assert max(int(stamps.max()) for stamps in out.commit_step) == 3
    assert int(out.nfe.max()) == 4


REFUSED: dict[str, tuple[Any, dict[str, Any], list[str]]] = {
    "eos-fill": (CANVASES, {"eos_fill": True}, ["conv.eos_fill", "context stands on the right"]),
    "blocks": (CANVASES, {"decoder": "semi_ar"}, ["semi_ar.block_length", "left to right", "32"]),
    "sliding": (CANVASES, {"decoder": "sliding_annealing"}, ["sliding_annealing", "left to right", "conv"]),
    "no gap": (["Nothing to fill"], {}, ["canvas 0", "gap", "Nothing to fill"]),
    "no gap among others": ([CANVASES[0], [5, 6]], {}, ["canvas 1", "gap"]),
    "none": ([], {}, ["no prompts"]),
    "too long": ([[MASK] * 65], {}, ["65", "64"]),
    "outside": ([[MASK, 300]], {}, ["vocabulary of 300"]),
    "steps": (CANVASES, {"steps": 0}, ["steps", "at least 1"]),
    "type": ([[MASK, "x"]], {}, ["token ids"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(lm: DiffusionLM, case: str) -> None:
    canvases, options, words = REFUSED[case]
    with pytest.raises(UserError) as caught:
        lm.infill(canvases, **options)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_a_trace_counts_from_the_canvas(lm: DiffusionLM) -> None:
    out = lm.infill(CANVASES, "conv", kernel_size=3, trace=True, batch_size=2)
    assert out.trace is not None
    for b, canvas in enumerate(CANVASES):
        places = out.trace.offset[out.trace.row == b]
        assert sorted(places.tolist()) == [i for i, token in enumerate(canvas) if token == MASK]
        assert torch.equal(out.trace.token[out.trace.row == b], out.tokens[b][places])
