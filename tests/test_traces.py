"""What trace=True and watch= tell, and that no step holds more logits than its budget."""

import itertools
from typing import Any

import pytest
import torch
from tiny import tiny_lm

from dlm.api import DiffusionLM, Generation
from dlm.decoding import propose
from dlm.decoding.options import DECODERS
from dlm.models.denoiser import Denoiser

MASK, EOS = 1, 0
PROMPTS = [[5, 9, 70], [100], [*range(200, 209)], [31, 0, 32]]
OPTIONS: dict[str, dict[str, Any]] = {
    "conv": {"kernel_size": 5, "top_k": 5},
    "semi_ar": {"block_length": 4, "top_k": 5},
    "remdm": {"schedule": "rescale", "eta": 0.5, "top_k": 5},
    "threshold": {"threshold": 0.3},
}


@pytest.fixture(scope="module")
def lm() -> DiffusionLM:
    return tiny_lm(2)


def run(lm: DiffusionLM, name: str, **more: Any) -> Generation:
    return lm.generate(PROMPTS, name, steps=9, gen_length=12, seed=2, **{**OPTIONS.get(name, {}), **more})


@pytest.mark.parametrize("name", DECODERS)
def test_the_trace_replays_the_canvas(lm: DiffusionLM, name: str) -> None:
    """From nothing but masks, event by event, to the tokens and their steps; and tracing changes nothing."""
    out = run(lm, name, trace=True, batch_size=3)
    trace = out.trace
    assert trace is not None and run(lm, name).trace is None
    assert torch.equal(out.tokens, run(lm, name).tokens)
    canvas = torch.full((len(PROMPTS), 12), MASK)
    stamps = torch.full_like(canvas, -1)
    for row in range(len(PROMPTS)):
        own = (trace.row == row).nonzero()[:, 0]
        assert (trace.step[own].diff() >= 0).all()
        for event in own.tolist():
            place = row, int(trace.offset[event])
            lost = trace.token[event] == MASK
            assert (canvas[place] != MASK) == lost
            canvas[place] = trace.token[event]
            stamps[place] = -1 if lost else trace.step[event]
    ended = (canvas == EOS).cumsum(-1) > 0  # generate() shows EOS after the first one
    assert torch.equal(torch.where(ended, EOS, canvas), out.tokens)
    assert torch.equal(stamps, out.commit_step)
    written = trace.token != MASK
    assert ((trace.confidence > 0) & (trace.confidence <= 1))[written].all()
    assert (trace.confidence[~written] == 0).all()


def test_some_tokens_are_lost_and_found(lm: DiffusionLM) -> None:
    """The replay above is not vacuous for the decoders that mask again."""
    for name in ("remdm", "semi_ar"):
        trace = run(lm, name, trace=True).trace
        assert trace is not None and (trace.token == MASK).any()


@pytest.mark.parametrize("name", ["low_confidence", "top_k", "categorical", "conv"])
@torch.inference_mode()
def test_confidence_is_the_models_probability(lm: DiffusionLM, name: str) -> None:
    """Of the written token, on the canvas as it stood at that step, recomputed with the whole model."""
    prompt = PROMPTS[0]
    out = lm.generate([prompt], name, steps=4, gen_length=8, trace=True, **OPTIONS.get(name, {}))
    trace = out.trace
    assert trace is not None
    canvas = torch.tensor([[*prompt, *[MASK] * 8]])
    for step in trace.step.unique().tolist():
        now = trace.step == step
        logits = lm.denoiser.model(input_ids=canvas).logits[0]
        logits[:, MASK] = -torch.inf
        place = trace.offset[now] + len(prompt)
        expected = logits.softmax(-1)[place, trace.token[now]]
        torch.testing.assert_close(trace.confidence[now], expected, atol=1e-5, rtol=1e-4)
        canvas[0, place] = trace.token[now]


@pytest.mark.parametrize("name", ["top_k", "conv", "semi_ar", "remdm"])
def test_watch_sees_every_step(lm: DiffusionLM, name: str) -> None:
    """Once a step, the masks still in; without remasking each step's masks are a part of the last step's."""
    seen: list[tuple[int, torch.Tensor]] = []
    out = run(lm, name, watch=lambda step, tokens: seen.append((step, tokens.clone())))
    assert [step for step, _ in seen[:9]] == list(range(9))
    assert len(seen) == 9 + bool(out.leftover_masks.any())
    assert all(tokens.shape == (len(PROMPTS), 12) for _, tokens in seen)
    masked = [(tokens == MASK) for _, tokens in seen]
    assert masked[0].any() and not masked[-1].any()
    if name in ("top_k", "conv"):
        assert all((later <= earlier).all() for earlier, later in itertools.pairwise(masked))


class Counting(Denoiser):
    """Remembers how many positions each call of the head was asked for."""

    asked: list[int]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        self.asked.append(len(hidden))
        return super().logits(hidden)


@pytest.mark.parametrize("name", DECODERS)
def test_logits_come_in_pieces(lm: DiffusionLM, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more numbers at once than the budget, float64 ones counted for more; the same tokens whatever it is."""
    counting = DiffusionLM(lm.denoiser.model, lm.tokenizer)
    counting.denoiser = Counting(lm.denoiser.model, MASK)
    counting.denoiser.asked = []
    whole = run(counting, name)
    most = max(counting.denoiser.asked)
    monkeypatch.setattr(propose, "CHUNK", {"cpu": 300 * 4})
    counting.denoiser.asked = []
    pieces = run(counting, name)
    assert max(counting.denoiser.asked) <= 4 < most
    assert torch.equal(whole.tokens, pieces.tokens) and torch.equal(whole.nfe, pieces.nfe)
