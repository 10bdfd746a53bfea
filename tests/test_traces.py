"""Traces and watching: they tell what happened, and nothing that did not."""

from typing import Any

import pytest
import torch
from decoder_cases import INVARIANT
from slow import network_of_model, softmax
from test_infilling import CANVASES
from test_invariance import every_decoder
from tiny import tiny_lm
from torch import Tensor

from dlm.decoding.canvas import Trace
from dlm.decoding.lm import DiffusionLM, cut_at_eos

EOS, M = 0, 1
PROMPTS = [[5, 9, 70], [100], [*range(200, 212)], [31, 0, 32, 33], [7, 7]]
SETTING = {"steps": 6, "gen_length": 12, "seed": 4, "trace": True}


@pytest.fixture(scope="module")
def lm() -> DiffusionLM:
    return tiny_lm(2, eos_scale=2.0)


def events(trace: Trace | None) -> list[tuple[int, int, int, int, float]]:
    """(step, row, offset, token, confidence), in order."""
    assert trace is not None
    columns = (trace.step, trace.row, trace.offset, trace.token, trace.confidence)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def fill_after_eos(tokens: list[int], stamps: list[int]) -> None:
    """EOS-fill, which is no event: what it changes has no step."""
    end = tokens.index(EOS) if EOS in tokens else len(tokens)
    for i in range(end, len(tokens)):
        if tokens[i] != EOS:
            tokens[i], stamps[i] = EOS, -1


@pytest.mark.parametrize("eos_fill", [False, True], ids=["", "eos_fill"])
@every_decoder
def test_a_replay_gives_the_answer(lm: DiffusionLM, name: str, options: dict[str, Any], eos_fill: bool) -> None:
    """Every event written onto an empty canvas: tokens and commit steps, over several batches of the call."""
    out = lm.generate(PROMPTS, name, **SETTING, **options, eos_fill=eos_fill, batch_size=2)
    tokens, stamps = [[M] * 12 for _ in PROMPTS], [[-1] * 12 for _ in PROMPTS]
    for step, row, offset, token, confidence in events(out.trace):
        assert (tokens[row][offset] == M) != (token == M) or eos_fill
        assert 0 < confidence <= 1 if token != M else confidence == 0
        tokens[row][offset], stamps[row][offset] = token, -1 if token == M else step
        if eos_fill:
            fill_after_eos(tokens[row], stamps[row])
    assert cut_at_eos(torch.tensor(tokens), EOS).tolist() == out.tokens.tolist()
    assert stamps == out.commit_step.tolist()


@pytest.mark.parametrize("name", ["remdm", "semi_ar"])
def test_only_some_decoders_take_tokens_back(lm: DiffusionLM, name: str) -> None:
    """Not vacuous: the replays above do hold tokens that are masked again; with top_k no trace does."""
    options = {"block_length": 4} if name == "semi_ar" else {"schedule": "cap", "eta": 0.1}
    assert (lm.generate(PROMPTS, name, **SETTING, **options).trace.token == M).any()
    assert not (lm.generate(PROMPTS, "top_k", **SETTING).trace.token == M).any()


def test_no_trace_unless_asked_for(lm: DiffusionLM) -> None:
    assert lm.generate(PROMPTS, "top_k", steps=2, gen_length=4).trace is None
    assert lm.infill(CANVASES, "top_k", steps=2).trace is None


EXACT = [(name, options) for name, options in INVARIANT if not {"cfg_scale", "penalty"} & set(options)]


@pytest.mark.parametrize(
    ("name", "options"), EXACT, ids=["-".join([name, *map(str, options.values())]) for name, options in EXACT]
)
def test_the_confidence_is_the_model_s(lm: DiffusionLM, name: str, options: dict[str, Any]) -> None:
    """Of every token, for every rule: its probability given the canvas as it stood before the step."""
    if name == "repetition_penalty":
        options = {**options, "penalty": 1.0}
    prompt = PROMPTS[0]
    out = lm.generate([prompt], name, **SETTING, **options)
    network = network_of_model(lm.denoiser)
    canvas, before, now = [*prompt, *[M] * 12], [], -1
    checked = 0
    for step, _, offset, token, confidence in events(out.trace):
        if step != now:
            before, now = list(canvas), step
            p = [softmax(row) for row in network(before)]
        if token != M:
            assert confidence == pytest.approx(p[len(prompt) + offset][token], rel=1e-3, abs=1e-6)
            checked += 1
        canvas[len(prompt) + offset] = token
    assert checked >= 12


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("low_confidence", {}),
        ("remdm", {"schedule": "rescale", "eta": 0.5}),
        ("conv", {"kernel_size": 3, "rule": "low_confidence"}),
        ("semi_ar", {"rule": "threshold", "variant": "restrict", "block_length": 4}),
        ("sliding_annealing", {"reach": 2}),
    ],
)
def test_watching(lm: DiffusionLM, name: str, options: dict[str, Any]) -> None:
    """Once a step, in order, and once more for leftovers: the canvas as the events up to then make it."""
    seen: list[tuple[int, Tensor]] = []

    def watch(step: int, tokens: Tensor) -> None:
        seen.append((step, tokens.clone()))

    plain = lm.generate(PROMPTS, name, **SETTING, **options)
    out = lm.generate(PROMPTS, name, **SETTING, **options, watch=watch, batch_size=5)
    assert torch.equal(out.tokens, plain.tokens)
    leftovers = bool((out.leftover_masks > 0).any())
    assert [step for step, _ in seen] == list(range(6 + leftovers))
    assert leftovers == (name == "conv")
    order = sorted(range(len(PROMPTS)), key=lambda i: len(PROMPTS[i]))  # rows of a batch go by length
    tokens = [[M] * 12 for _ in PROMPTS]
    history = events(out.trace)
    for step, shown in seen:
        for when, row, offset, token, _ in history:
            if when == step:
                tokens[row][offset] = token
        assert shown.shape == (5, 12)
        assert shown.tolist() == [tokens[i] for i in order]
    assert (seen[0][1] == M).any() and not (seen[-1][1] == M).any()


def test_watching_does_not_touch_the_canvas(lm: DiffusionLM) -> None:
    """A watcher that overwrites what it is given changes nothing."""
    setting = {"decoder": "conv", "steps": 6, "gen_length": 12, "kernel_size": 5}
    spoilt = lm.generate(PROMPTS, **setting, watch=lambda _, tokens: tokens.fill_(7))
    assert torch.equal(spoilt.tokens, lm.generate(PROMPTS, **setting).tokens)
    filled = lm.infill(CANVASES, "low_confidence", watch=lambda _, tokens: tokens.fill_(7))
    assert all(map(torch.equal, filled.tokens, lm.infill(CANVASES, "low_confidence").tokens))


def test_infilling_is_traced_and_watched(lm: DiffusionLM) -> None:
    """Offsets count from the canvas's first position; a watcher sees the whole canvas, right-padded with EOS."""
    seen: list[Tensor] = []
    options = {"steps": 5, "schedule": "cap", "eta": 0.2, "trace": True, "batch_size": len(CANVASES)}
    out = lm.infill(CANVASES, "remdm", **options, watch=lambda _, tokens: seen.append(tokens.clone()))
    tokens = [list(canvas) for canvas in CANVASES]
    stamps = [[-1] * len(canvas) for canvas in CANVASES]
    for step, row, offset, token, _ in events(out.trace):
        assert CANVASES[row][offset] == M
        tokens[row][offset], stamps[row][offset] = token, -1 if token == M else step
    assert tokens == [row.tolist() for row in out.tokens] and stamps == [row.tolist() for row in out.commit_step]
    longest = max(map(len, CANVASES))
    order = sorted(range(len(CANVASES)), key=lambda i: len(CANVASES[i]))
    assert len(seen) == 5
    assert seen[-1].tolist() == [[*tokens[i], *[EOS] * (longest - len(tokens[i]))] for i in order]


def test_drafts_are_the_texts_on_the_way(lm: DiffusionLM) -> None:
    """Masks by a sign of their own, up to the first end; the last draft is the answer."""
    drafts: list[list[str]] = []
    tokens: list[Tensor] = []
    out = lm.generate(PROMPTS[:1], steps=6, gen_length=12, watch=lm.drafts(lambda _, texts: drafts.append(texts), "_"))
    lm.generate(PROMPTS[:1], steps=6, gen_length=12, watch=lambda _, rows: tokens.append(rows.clone()))
    assert drafts[-1] == out.texts
    for [draft], [row] in zip(drafts, tokens, strict=True):
        ids = row.tolist()
        ids = ids[: ids.index(EOS)] if EOS in ids else ids
        assert draft.count("_") - lm.tokenizer.decode([i for i in ids if i != M]).count("_") == ids.count(M)
    assert any("_" in draft for [draft] in drafts)
