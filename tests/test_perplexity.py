"""Perplexity of responses: by hand, against a one-by-one loop, and independent of batch mates."""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dlm.evaluation.scoring import perplexity
from dlm.evaluation.scoring.perplexity import response_perplexities

EOS = 0
VOCAB = 23


class Bigram(torch.nn.Module):
    """p(next | last) from a table, behind the interface of a causal LM."""

    def __init__(self, probs: list[list[float]]) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.tensor(probs).log())

    def get_output_embeddings(self) -> torch.nn.Module:
        return torch.nn.Linear(1, self.table.shape[1])

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids])


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
        attention_dropout=0.3,
    )
    return LlamaForCausalLM(config).eval()


def rows(count: int = 17) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts of 1-8 tokens and responses of 0-20, EOS-padded or not."""
    generator = torch.Generator().manual_seed(1)

    def draw(length: int) -> list[int]:
        return torch.randint(1, VOCAB, (length,), generator=generator).tolist()

    prompts = [draw(1 + 5 * row % 8) for row in range(count)]
    responses = [draw(7 * row % 21) + [EOS] * (row % 3) for row in range(count)]
    return prompts, responses


def naive(model: torch.nn.Module, prompt: list[int], response: list[int]) -> float | None:
    """One response, one token at a time, each from its own forward pass over the text so far."""
    content = response[: response.index(EOS)] if EOS in response else response
    total = 0.0
    for position, token in enumerate(content):
        ids = torch.tensor([prompt + content[:position]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, -1].double()
        total -= torch.log_softmax(logits, -1)[token].item()
    return math.exp(total / len(content)) if content else None


def test_by_hand() -> None:
    """Prompt 1, response 2 2: p(2|1) = 1/4 and p(2|2) = 1/2, so perplexity (1/4 · 1/2)^(-1/2) = √8.

    Prompt 2, response 1: p(1|2) = 1/4, perplexity 4. What follows the first EOS does not count, nor does the EOS.
    """
    model = Bigram([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]])
    found = response_perplexities(model, [[1], [2], [0, 1]], [[2, 2], [1, EOS, 2], [2, 2, EOS, EOS]], EOS)
    assert found == pytest.approx([math.sqrt(8), 4.0, math.sqrt(8)])


def test_equals_the_one_by_one_loop(model: LlamaForCausalLM) -> None:
    prompts, responses = rows()
    expected = [naive(model, prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
    found = response_perplexities(model, prompts, responses, EOS, batch_size=5)
    assert [value is None for value in found] == [value is None for value in expected]
    assert found[0] is None
    assert [value for value in found if value] == pytest.approx([value for value in expected if value], rel=1e-4)


def test_independent_of_batch_mates_and_order(model: LlamaForCausalLM) -> None:
    prompts, responses = rows()
    together = response_perplexities(model, prompts, responses, EOS)
    alone = response_perplexities(model, prompts, responses, EOS, batch_size=1)
    backwards = response_perplexities(model, prompts[::-1], responses[::-1], EOS, batch_size=4)[::-1]
    for other in (alone, backwards):
        assert [value for value in together if value] == pytest.approx([value for value in other if value], rel=1e-4)


def test_dropout_is_off_and_the_mode_is_put_back(model: LlamaForCausalLM) -> None:
    prompts, responses = rows(4)
    expected = response_perplexities(model, prompts, responses, EOS)
    model.train()
    try:
        assert response_perplexities(model, prompts, responses, EOS) == expected
        assert model.training
    finally:
        model.eval()


def test_nothing_to_score(model: LlamaForCausalLM) -> None:
    assert response_perplexities(model, [], [], EOS) == []
    assert response_perplexities(model, [[1], [2]], [[], [EOS, 3]], EOS) == [None, None]


def test_an_empty_prompt_is_refused(model: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match="a prompt is empty"):
        response_perplexities(model, [[]], [[1]], EOS)


def test_a_large_vocabularys_logits_bound_the_batch(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 10 and 4 tokens, room for 12 tokens' logits: one row, then three; the same figures."""
    prompts, responses = [[1, 2]] * 4, [[3] * 8, [4, 5], [6, 7], [8, 9]]
    expected = response_perplexities(model, prompts, responses, EOS)
    monkeypatch.setattr(perplexity, "LOGITS", 12 * VOCAB)
    seen: list[int] = []
    handle = model.register_forward_pre_hook(lambda *given: seen.append(len(given[2]["input_ids"])), with_kwargs=True)
    found = response_perplexities(model, prompts, responses, EOS)
    handle.remove()
    assert seen == [1, 3]
    assert found == pytest.approx(expected, rel=1e-5)
