"""torch.compile: few static shapes, the same states up to rounding, the same tokens."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import accelerate.utils
import pytest
import torch
from test_api import PROMPTS
from tiny import SHAPE, tiny_lm, tiny_model, tiny_tokenizer

from dlm.decoding.denoiser import Denoiser
from dlm.decoding.lm import DiffusionLM
from dlm.errors import UserError
from dlm.models import compiled
from dlm.models.compiled import Compiled, Graph, static_shape

needs_compiler = pytest.mark.skipif(not shutil.which("g++") and not shutil.which("clang++"), reason="no C++ compiler")


def test_static_shapes() -> None:
    assert [static_shape(n, 10, 512)[0] for n in range(1, 14)] == [1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 12, 12, 16]
    assert [static_shape(1, n, 100)[1] for n in (1, 64, 65, 100)] == [64, 64, 100, 100]
    assert static_shape(5, 130, 512) == (6, 192)


@needs_compiler
@torch.inference_mode()
def test_the_same_states() -> None:
    """Whole rows, padded ones, rows with masks left out between; more rows of another length in the same shape."""
    model = tiny_model(1)
    plain, fast = Denoiser(model, 1), Denoiser(model, 1, compile="default")
    canvas = torch.randint(2, 300, (3, 11), generator=torch.Generator().manual_seed(0))
    holes = torch.tensor([[True] * 11, [True] * 4 + [False] * 3 + [True] * 4, [True] * 6 + [False] * 5])
    for attention_mask in (None, holes):
        expected, found = plain.hidden(canvas, attention_mask), fast.hidden(canvas, attention_mask)
        seen = torch.ones_like(holes) if attention_mask is None else attention_mask
        torch.testing.assert_close(found[seen], expected[seen], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        fast.hidden(canvas[:, :5], None), plain.hidden(canvas[:, :5], None), atol=1e-4, rtol=1e-4
    )


@needs_compiler
def test_the_same_tokens() -> None:
    """Greedy: rows retire, so that several shapes are met."""
    setting = {"decoder": "low_confidence", "steps": 6, "gen_length": 12, "eos_fill": True}
    model, tokenizer = tiny_model(2, eos_scale=2.0), tiny_tokenizer()
    plain = DiffusionLM(model, tokenizer).generate(PROMPTS, **setting)
    fast = DiffusionLM(model, tokenizer, compile="default").generate(PROMPTS, **setting)
    assert torch.equal(fast.tokens, plain.tokens) and torch.equal(fast.nfe, plain.nfe)


def test_what_a_graph_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call has a static shape, and nothing of the padding is seen or returned."""
    calls = []

    def recorded(backbone: torch.nn.Module, **options: object) -> object:
        assert options == {"dynamic": False}

        def run(**inputs: torch.Tensor | bool) -> object:
            calls.append(inputs)
            return backbone(**inputs)

        return run

    monkeypatch.setattr(accelerate.utils, "compile_regions", recorded)
    monkeypatch.setattr(compiled.shutil, "which", lambda name: name)
    lm = tiny_lm(2)
    expected = lm.generate(PROMPTS, "top_k", steps=6, gen_length=12)
    found = DiffusionLM(lm.denoiser.model, lm.tokenizer, compile="default").generate(
        PROMPTS, "top_k", steps=6, gen_length=12
    )
    assert torch.equal(found.tokens, expected.tokens)
    shapes = {tuple(call["input_ids"].shape) for call in calls}
    assert all(static_shape(*shape, 64) == shape for shape in shapes) and max(shapes) == (8, 64)
    lengths = [len(prompt) + 12 for prompt in PROMPTS]
    assert sorted(calls[0]["attention_mask"].sum(-1).tolist()) == sorted(lengths)
    # Whole rows that need no padding are given no mask: attention is faster without.
    whole = torch.full((3, 64), 5)
    calls.clear()
    fast = Denoiser(lm.denoiser.model, 1, compile="default").hidden(whole, None)
    assert calls[0]["attention_mask"] is None and calls[0]["input_ids"].shape == (3, 64)
    torch.testing.assert_close(fast, lm.denoiser.hidden(whole, None))


class Rerun(torch.cuda.CUDAGraph):
    """In a CUDA graph's place: replaying it runs the pass again on the graph's own tensors, into its own states."""

    def __new__(cls, *_: Any) -> "Rerun":
        # torch for CPUs refuses to make one.
        return super().__new__(cls) if torch.cuda.is_available() else object.__new__(cls)

    def __init__(self, run: Any, given: dict[str, Any], states: torch.Tensor) -> None:
        if torch.cuda.is_available():
            super().__init__()
        self.run, self.given, self.states = run, given, states

    def replay(self) -> None:
        self.states.copy_(self.run(**self.given).last_hidden_state)


def test_a_graph_for_each_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows retire and differ in length: the tokens are the plain ones, and no shape is captured twice.

    What is captured is the backbone as it is, without a compiler or a GPU; tests/test_gpu.py has both.
    """
    captured = []

    def capture(run: Any, given: dict[str, Any], pool: object) -> Graph:
        own = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in given.items()}
        captured.append({name: tuple(value.shape) for name, value in own.items() if isinstance(value, torch.Tensor)})
        states = torch.zeros(*own["input_ids"].shape, SHAPE.hidden_size)
        return Graph(Rerun(run, own, states), own, states)

    monkeypatch.setattr(compiled, "capture", capture)
    monkeypatch.setattr(accelerate.utils, "compile_regions", lambda module, **_: module)
    monkeypatch.setattr(compiled.shutil, "which", lambda name: name)
    for name in ("top_k", "low_confidence"):
        setting = {"decoder": name, "steps": 6, "gen_length": 12, "eos_fill": True}
        model, tokenizer = tiny_model(2, eos_scale=2.0), tiny_tokenizer()
        fast = DiffusionLM(model, tokenizer, compile="default")
        assert fast.denoiser._compiled is not None
        fast.denoiser._compiled._graphs, fast.denoiser._compiled._pool = {}, None
        captured.clear()
        for prompts in (PROMPTS, [[5, 9, 70]], PROMPTS):
            expected = DiffusionLM(model, tokenizer).generate(prompts, **setting)
            assert torch.equal(fast.generate(prompts, **setting).tokens, expected.tokens)
        shapes = [tuple(sorted(shape.items())) for shape in captured]
        assert len(set(shapes)) == len(shapes) > 2


def test_threads_share_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tensors are written by every call: one at a time."""

    def capture(run: Any, given: dict[str, Any], pool: object) -> Graph:
        own = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in given.items()}
        states = torch.zeros(*own["input_ids"].shape, SHAPE.hidden_size)
        return Graph(Rerun(run, own, states), own, states)

    monkeypatch.setattr(compiled, "capture", capture)
    monkeypatch.setattr(accelerate.utils, "compile_regions", lambda module, **_: module)
    monkeypatch.setattr(compiled.shutil, "which", lambda name: name)
    model = tiny_model(2)
    fast = Compiled(model, "default")
    fast._graphs, fast._pool = {}, None
    rows = torch.randint(2, 290, (80, 1, 64), generator=torch.Generator().manual_seed(1))

    def states(row: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return fast(row, None, None)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(states, rows))
    assert all(torch.equal(got, states(row)) for got, row in zip(found, rows, strict=True))


def test_what_cannot_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    with pytest.raises(UserError, match="cuda_graphs needs a GPU"):
        Compiled(model, "cuda_graphs")
    with pytest.raises(UserError, match="must be none, default or cuda_graphs, got 'max'"):
        Denoiser(model, 1, compile="max")
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="needs a C"):
        Compiled(model, "default")
