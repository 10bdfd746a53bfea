"""Logits in pieces: whatever the budget, the same answer, and never more of the vocabulary at once."""

from typing import Any

import pytest
import torch
from decoder_cases import INVARIANT
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dlm.decoding import propose
from dlm.decoding.denoiser import Denoiser
from dlm.decoding.lm import DiffusionLM

PROMPTS = [[5, 9, 70], [100], [*range(200, 212)], [31, 0, 32, 33], [7, 7], [90, 80, 70, 60], [3] * 20, [2, 3]]
SETTING = {"steps": 6, "gen_length": 12, "seed": 4}
VOCAB = 300
every_decoder = pytest.mark.parametrize(
    ("name", "options"), INVARIANT, ids=["-".join([name, *map(str, options.values())]) for name, options in INVARIANT]
)


class Counter(Denoiser):
    """How many positions each request for logits names."""

    sizes: list[int]

    def logits(self, hidden: Tensor) -> Tensor:
        self.sizes.append(len(hidden))
        return super().logits(hidden)


def counting() -> tuple[DiffusionLM, list[int]]:
    lm = DiffusionLM(tiny_model(2, eos_scale=2.0), tiny_tokenizer())
    counter = Counter(lm.denoiser.model, lm.denoiser.mask_id)
    counter.sizes = []
    lm.denoiser = counter
    return lm, counter.sizes


@every_decoder
def test_any_budget_gives_the_same_answer(monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any]) -> None:
    """Eight rows of twelve masks in pieces of one position, of seven, and all at once."""
    lm, sizes = counting()
    whole = lm.generate(PROMPTS, name, **SETTING, **options)
    most = max(sizes)
    assert most > 7
    for rows in (1, 7):
        sizes.clear()
        monkeypatch.setitem(propose.CHUNK, "cpu", rows * VOCAB)
        pieces = lm.generate(PROMPTS, name, **SETTING, **options)
        assert 1 <= max(sizes) <= rows
        assert torch.equal(pieces.tokens, whole.tokens) and torch.equal(pieces.commit_step, whole.commit_step)


def test_a_budget_below_one_position_is_one_position(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, sizes = counting()
    monkeypatch.setitem(propose.CHUNK, "cpu", 1)
    lm.generate(PROMPTS, "top_k", **SETTING)
    assert set(sizes) == {1}


def test_a_sampled_vocabulary_asks_for_what_commits_only() -> None:
    """`categorical` and `first_hitting` score nothing: one request a token in all, however many steps. Nor does
    `tweedie`, where there are no scores."""
    for name in ("categorical", "first_hitting", "tweedie"):
        lm, sizes = counting()
        lm.generate(PROMPTS, name, **SETTING)
        assert sum(sizes) == 8 * 12


class Largest(TorchDispatchMode):
    """The largest tensor over the vocabulary that any operation makes, in bytes; weights' own views aside."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else [out]:
            if isinstance(made, Tensor) and made.dim() and made.shape[-1] == VOCAB and not function.is_view:
                self.bytes = max(self.bytes, made.numel() * made.element_size())
        return out


@every_decoder
def test_nothing_over_the_vocabulary_exceeds_the_budget(
    monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any]
) -> None:
    """No tensor [positions, vocabulary], of any type, is larger than the budget's float32 numbers."""
    lm, _ = counting()
    budget = 9 * VOCAB
    monkeypatch.setitem(propose.CHUNK, "cpu", budget)
    with Largest() as largest:
        lm.generate(PROMPTS, name, **SETTING, **options)
    assert 0 < largest.bytes <= 4 * budget
