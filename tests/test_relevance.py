"""Relevance: by hand, against a one-by-one loop, and independent of batch mates."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model, tiny_tokenizer

from dlm.data.tokenizer import encode
from dlm.evaluation.scoring.perplexity import Scored, response_scores
from dlm.evaluation.scoring.relevance import Relevance, information, relevance, shared_frame
from dlm.evaluation.scoring.scorer import Scorer

EOS = 0
ids = st.lists(st.integers(0, 3), max_size=6)


class Topic(torch.nn.Module):
    """p(0, 1, 2, 3): 1/8, 1/2, 1/8, 1/4 once a 3 came before; 1/8, 1/4, 1/2, 1/8 as long as none did."""

    def __init__(self) -> None:
        super().__init__()
        table = torch.tensor([[1 / 8, 1 / 4, 1 / 2, 1 / 8], [1 / 8, 1 / 2, 1 / 8, 1 / 4]])
        self.table = torch.nn.Parameter(table.log())

    def get_output_embeddings(self) -> torch.nn.Module:
        return torch.nn.Linear(1, self.table.shape[1])

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[(input_ids == 3).cumsum(1).clamp(max=1)])


def scores(scorer: Scorer, prompts: list[list[int]], responses: list[list[int]], batch_size: int = 8):
    asked, said = ([{name: row} for row in rows] for name, rows in (("prompt_ids", prompts), ("tokens", responses)))
    return scorer.scores(asked, said, batch_size)


def test_by_hand() -> None:
    """Answer 1 2 1: 1 gains log(1/2 / 1/4) = log 2, 2 loses log(1/2 / 1/8) = log 4: log 2 - log 4 + log 2 = 0.

    Answer 1 1: 2 log 2, log 2 a token. To the prompt 3 1 the 1s of 1 2 1 count 0: -log 4, over three tokens.
    Answer 3 to prompt 3: copied, 0. What follows an end-of-text does not count.
    """
    prompts = [[3], [3], [3, 1], [3], [3]]
    perplexities, found = scores(
        Scorer(Topic(), EOS), prompts, [[1, 2, 1], [1, 1, EOS, 2], [1, 2, 1], [3], []], batch_size=2
    )
    assert [row.total for row in found] == pytest.approx([0.0, 2 * math.log(2), -math.log(4), 0.0, 0.0], abs=1e-6)
    assert [row.tokens for row in found] == [3, 2, 3, 1, 0]
    assert [row.per_token for row in found][1:3] == pytest.approx([math.log(2), -math.log(4) / 3], rel=1e-6)
    assert found[4].per_token is None
    assert perplexities[:2] == pytest.approx([32 ** (1 / 3), 2.0]) and perplexities[4] is None


def test_the_frame_stands_in_the_prompts_place() -> None:
    """Where all prompts have the 3, it tells nothing: 0 instead of 2 log 2."""
    assert scores(Scorer(Topic(), EOS, frame=[3]), [[3, 2]], [[1, 1]])[1] == [Relevance(0.0, 2)]
    assert scores(Scorer(Topic(), EOS, frame=[2]), [[3, 2]], [[1, 1]])[1][0].total == pytest.approx(2 * math.log(2))


def test_of_losses_by_hand() -> None:
    """Losses 1 2 3 after the prompt, 4 4 4 before it: 3 2 1 nats. The prompt has the second token: 4 nats, 3 tokens."""
    given_, bare = Scored(1.0, torch.tensor([1.0, 2.0, 3.0])), Scored(1.0, torch.tensor([4.0, 4.0, 4.0]))
    assert information(given_, bare).tolist() == [3.0, 2.0, 1.0]
    found = relevance(given_, bare, [5, 6, 7], [9, 6])
    assert (found.total, found.per_token) == (4.0, pytest.approx(4 / 3))
    assert relevance(given_, bare, [5, 6, 5], [5, 6]) == Relevance(0.0, 3)  # a copy
    assert relevance(None, None, [], [5]) == Relevance(0.0, 0)


def test_shared_frame_by_hand() -> None:
    """1 2 _ 8 9, and where both ends would overlap in the shortest prompt, the beginning is taken first."""
    assert shared_frame([[1, 2, 5, 8, 9], [1, 2, 6, 7, 8, 9], [1, 2, 8, 9]]) == [1, 2, 8, 9]
    assert shared_frame([[1, 1, 1], [1, 1]]) == [1, 1]
    assert shared_frame([[1, 2], [3, 4]]) == []
    assert shared_frame([[1, 2], [1, 2]]) == [] and shared_frame([]) == []  # nothing says what they share


@settings(deadline=None)
@given(ids, ids, st.lists(ids, min_size=2, max_size=5))
def test_a_template_is_found(start: list[int], end: list[int], fields: list[list[int]]) -> None:
    """What the fields themselves share may come on top; nothing of the template goes."""
    prompts = [[*start, *field, *end] for field in fields]
    found = shared_frame(prompts)
    if len(set(map(tuple, prompts))) < 2:
        assert found == []
    else:
        assert found[: len(start)] == start and (found[len(found) - len(end) :] == end)
        assert len(found) <= min(map(len, prompts))


def log_p(model: torch.nn.Module, before: list[int], token: int) -> float:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([before])).logits[0, -1].double()
    return torch.log_softmax(logits, -1)[token].item()


def rows(count: int = 9) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts of 1-8 tokens and responses of 0-14, EOS-padded or not."""
    generator = torch.Generator().manual_seed(1)

    def draw(length: int) -> list[int]:
        return torch.randint(2, 40, (length,), generator=generator).tolist()

    return [draw(1 + 5 * row % 8) for row in range(count)], [
        draw(7 * row % 15) + [EOS] * (row % 3) for row in range(count)
    ]


@pytest.mark.parametrize("frame", [[], [7, 8, 9]])
def test_equals_the_one_by_one_loop(frame: list[int]) -> None:
    model, (prompts, responses) = tiny_model(causal=True), rows()
    found = scores(Scorer(model, EOS, frame=frame), prompts, responses, 4)[1]
    for row, prompt, response in zip(found, prompts, responses, strict=True):
        content = [token for token in response if token != EOS]
        total = 0.0
        for place, token in enumerate(content):
            if token not in prompt:
                total += log_p(model, prompt + content[:place], token)
                total -= log_p(model, (frame or [EOS]) + content[:place], token)
        assert (row.total, row.tokens) == (pytest.approx(total, abs=1e-3), len(content))
        assert (row.per_token is None) == (not content)


def test_independent_of_batch_mates_and_order() -> None:
    prompts, responses = rows()
    scorer = Scorer(tiny_model(causal=True), EOS, frame=[7, 8])
    together = [row.total for row in scores(scorer, prompts, responses)[1]]
    assert [row.total for row in scores(scorer, prompts, responses, 1)[1]] == pytest.approx(together, abs=1e-4)
    backwards = scores(scorer, prompts[::-1], responses[::-1], 4)[1][::-1]
    assert [row.total for row in backwards] == pytest.approx(together, abs=1e-4)


def test_perplexities_are_those_of_the_scorer() -> None:
    prompts, responses = rows()
    scorer = Scorer(tiny_model(causal=True), EOS)
    asked, said = [{"prompt_ids": row} for row in prompts], [{"tokens": row} for row in responses]
    assert scorer.scores(asked, said, 8)[0] == scorer.perplexities(asked, said, 8)


def test_losses_and_perplexity_agree() -> None:
    prompts, responses = rows()
    for row, response in zip(response_scores(tiny_model(causal=True), prompts, responses, EOS), responses, strict=True):
        content = [token for token in response if token != EOS]
        assert (row is None) == (not content)
        if row is not None:
            assert len(row.losses) == len(content)
            assert row.perplexity == pytest.approx(math.exp(row.losses.double().mean().item()))


def test_another_model_reads_texts_within_its_positions() -> None:
    """64 positions: the prompt takes its part, the rest is the answer's, and the frame gives way to it."""
    model, tokenizer = tiny_model(causal=True), tiny_tokenizer()
    prompt, answer = "Describe the fog:", " the salt boats leave before the fog" * 20
    asked, said = encode(tokenizer, [prompt, answer])
    said = said[: 64 - len(asked)]
    frame = asked[:2] * len(asked)
    found = Scorer(model, EOS, tokenizer, frame).scores([{"prompt": prompt}], [{"answer": answer}], 8)[1][0]
    assert found.tokens == len(said)
    before = frame[-(64 - len(said)) :]
    total = sum(
        log_p(model, asked + said[:place], token) - log_p(model, before + said[:place], token)
        for place, token in enumerate(said)
        if token not in asked
    )
    assert found.total == pytest.approx(total, abs=1e-3)
