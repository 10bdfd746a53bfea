"""Drafts of every step, and rows that leave in the middle: they stay as they are, and the others do not notice."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_invariance import APPROXIMATIONS, every_decoder
from tiny import Recorder, tiny_lm

from dlm.decoding.decoder import make_decoder
from dlm.decoding.lm import DiffusionLM
from dlm.decoding.loop import Decoded, Draft, Follow, decode
from dlm.decoding.noise import row_keys
from dlm.decoding.options import decoder_options

IDS = [[9, 70, 100 + n, *[40 + n] * (n % 3)] for n in range(6)]
LENGTH, STEPS = 12, 6


@pytest.fixture(scope="module")
def lm() -> DiffusionLM:
    return tiny_lm(2, eos_scale=2.0)


def run(lm: DiffusionLM, name: str, options: dict[str, Any], follow: Follow | None = None, **more: Any) -> Decoded:
    return decode(
        more.pop("denoiser", lm.denoiser),
        IDS,
        make_decoder(decoder_options(name, options, name)),
        gen_length=LENGTH,
        steps=STEPS,
        keys=row_keys(IDS, 3),
        eos_id=lm.tokenizer.eos_token_id,
        ends=lm.ends,
        follow=follow,
        **more,
    )


@every_decoder
def test_who_leaves_changes_nothing_for_the_others(lm: DiffusionLM, name: str, options: dict[str, Any]) -> None:
    """Rows 1 and 4 leave after the second step, row 2 after the fourth: they keep what they held."""
    whole = run(lm, name, options)
    held: dict[int, list[int]] = {}

    def follow(draft: Draft) -> set[int]:
        leaving = {1: {1, 4}, 3: {2, 1}}.get(draft.step, set())
        held.update({row: draft.tokens[row].tolist() for row in leaving - held.keys()})
        return leaving

    left = run(lm, name, options, follow)
    stay = [0, 3, 5]
    for column in ("tokens", "nfe", "leftover_masks", "commit_step"):
        assert getattr(left, column)[stay].tolist() == getattr(whole, column)[stay].tolist(), column
    assert {row: left.tokens[row].tolist() for row in held} == held and held.keys() == {1, 2, 4}
    assert all(int(left.nfe[row]) <= int(whole.nfe[row]) for row in held)


@pytest.mark.parametrize("name", ["top_k", "remdm", "semi_ar"])
def test_all_leave(lm: DiffusionLM, name: str) -> None:
    """The loop ends with them: no pass over the leftover masks, either."""
    seen = []

    def follow(draft: Draft) -> range:
        seen.append(draft.step)
        return range(len(IDS))

    recorder = Recorder(lm.denoiser)
    out = run(lm, name, {"block_length": 4} if name == "semi_ar" else {}, follow, denoiser=recorder)
    assert seen == [0] and len(recorder.canvases) == 1
    assert out.leftover_masks.tolist() == [0] * len(IDS)
    assert (out.tokens == lm.denoiser.mask_id).any()


def test_who_left_is_not_computed(lm: DiffusionLM) -> None:
    recorder = Recorder(lm.denoiser)
    run(lm, "low_confidence", {}, lambda draft: {0, 1, 2, 3} if draft.step == 0 else set(), denoiser=recorder)
    assert [len(canvas) for canvas in recorder.canvases] == [6, 2, 2, 2, 2, 2]


@every_decoder
def test_what_is_settled_stays(lm: DiffusionLM, name: str, options: dict[str, Any]) -> None:
    """To the left of the first mask and of `settled` nothing changes any more, up to the first end (EOS-fill)."""
    drafts: list[Draft] = []
    out = run(lm, name, {"eos_fill": True, **options}, lambda draft: drafts.append(draft) or ())
    assert [draft.step for draft in drafts] == [*range(len(drafts))]
    for draft in drafts:
        for row, final in zip(draft.tokens.tolist(), out.tokens.tolist(), strict=True):
            masks = [n for n, token in enumerate(row) if token == lm.denoiser.mask_id]
            certain = min([draft.settled, *masks])
            assert row[:certain] == final[:certain]
    settled, block = {draft.settled for draft in drafts}, options.get("block_length")
    if {"remdm", "wino", "p2"} & {name, options.get("rule")}:
        assert settled == {0}
    elif block is not None and options.get("variant") != "restrict":
        assert settled == {*range(block, LENGTH + 1, block)}
    else:
        assert settled == {LENGTH}


@every_decoder
def test_drafts_tell_what_happened(lm: DiffusionLM, name: str, options: dict[str, Any]) -> None:
    """Tokens, steps and confidences are those of the trace, masked again or not."""
    drafts: list[Draft] = []
    out = run(lm, name, options, lambda draft: drafts.append(draft) or (), trace=True)
    assert out.trace is not None
    mask_id = lm.denoiser.mask_id
    written: dict[tuple[int, int], tuple[int, float, int]] = {}
    events = list(zip(*(column.tolist() for column in vars(out.trace).values()), strict=True))
    for draft in drafts:
        for step, row, offset, token, confidence in events:
            if step == draft.step:
                written[row, offset] = (token, confidence, step)
        for (row, offset), (token, confidence, step) in written.items():
            masked = int(draft.tokens[row, offset]) == mask_id
            if masked or token == mask_id:  # masked again: at the end of a stride it is told with the next draft
                continue
            assert int(draft.tokens[row, offset]) == token
            assert int(draft.commit_step[row, offset]) == step
            assert float(draft.confidence[row, offset]) == pytest.approx(confidence, rel=1e-6)
        masks = draft.tokens == mask_id
        assert (draft.commit_step[masks] == -1).all() and (draft.confidence[masks] == 0).all()


@settings(max_examples=25)
@given(leaving=st.lists(st.tuples(st.integers(0, STEPS - 1), st.integers(0, 5)), max_size=8), data=st.data())
def test_leaving_at_random(leaving: list[tuple[int, int]], data: st.DataObject) -> None:
    name, options = data.draw(st.sampled_from([("top_k", {}), ("remdm", {}), ("conv", {}), *APPROXIMATIONS]))
    lm = LM
    whole = run(lm, name, options)
    left = run(lm, name, options, lambda draft: {row for step, row in leaving if step == draft.step})
    stay = sorted({*range(len(IDS))} - {row for _, row in leaving})
    assert torch.equal(left.tokens[stay], whole.tokens[stay])


LM = tiny_lm(2, eos_scale=2.0)
