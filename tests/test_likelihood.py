"""Log-likelihoods against an average over all orders, written out, and what Monte Carlo says of itself."""

import io
import json
import math
from contextlib import redirect_stdout
from itertools import permutations
from pathlib import Path

import pytest
import torch
from tiny import tiny_lm

from dlm.cli.main import main
from dlm.decoding.lm import DiffusionLM
from dlm.errors import UserError
from dlm.likelihood import is_greedy, perplexity, rolling, score
from dlm.likelihood.estimate import _windows

PROMPT, ANSWER = "The harbour of Velmora", " opens at dawn"


@pytest.fixture(scope="module")
def lm() -> DiffusionLM:
    return tiny_lm(3)


def log_p(lm: DiffusionLM, canvas: list[int], place: int, token: int) -> float:
    """Of one token at one masked place, by the model's own logits of that canvas alone."""
    with torch.inference_mode():
        logits = lm.denoiser.logits(lm.denoiser.hidden(torch.tensor([canvas]), None)[0, [place]])[0]
    return float(logits.log_softmax(-1)[token])


def in_order(lm: DiffusionLM, prompt: list[int], answer: list[int], order: tuple[int, ...]) -> float:
    """The chain rule in one order."""
    canvas, total = [*prompt, *[lm.denoiser.mask_id] * len(answer)], 0.0
    for place in order:
        total += log_p(lm, canvas, len(prompt) + place, answer[place])
        canvas[len(prompt) + place] = answer[place]
    return total


def ids(lm: DiffusionLM, count: int) -> tuple[list[int], list[int]]:
    tokens = lm.tokenizer.encode("The fog comes from the north, and the boats come", add_special_tokens=False)
    return tokens[:4], tokens[4 : 4 + count]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_bound_is_the_mean_over_all_orders(lm: DiffusionLM, count: int) -> None:
    """All sets of masks are gone through: nothing is drawn, and one token's is its log-probability."""
    prompt, answer = ids(lm, count)
    orders = list(permutations(range(count)))
    mean = sum(in_order(lm, prompt, answer, order) for order in orders) / len(orders)
    found = score(lm, [prompt], [answer])
    assert found.log_likelihood.tolist() == pytest.approx([mean], abs=1e-4)
    assert (found.standard_error.tolist(), found.tokens.tolist()) == ([0.0], [count])


def test_left_to_right(lm: DiffusionLM) -> None:
    prompt, answer = ids(lm, 6)
    found = score(lm, [prompt, []], [answer, answer], order="left_to_right", batch_size=4)
    expected = [in_order(lm, start, answer, tuple(range(6))) for start in (prompt, [])]
    assert found.log_likelihood.tolist() == pytest.approx(expected, abs=1e-4)
    assert found.standard_error.tolist() == [0.0, 0.0]


def test_monte_carlo_goes_to_the_exact_value_and_knows_its_error(lm: DiffusionLM) -> None:
    """Eight tokens have 255 sets of masks. 60 estimates by 64 passes: their mean fits, and so do their errors."""
    prompt, answer = ids(lm, 8)
    exact = float(score(lm, [prompt], [answer], samples=256).log_likelihood)
    runs = [score(lm, [prompt], [answer], seed=seed) for seed in range(60)]
    values = torch.cat([run.log_likelihood for run in runs])
    errors = torch.cat([run.standard_error for run in runs])
    assert abs(values.mean() - exact) < 4 * values.std() / math.sqrt(60)
    assert 0.6 < errors.square().mean().sqrt() / values.std() < 1.6
    assert ((values - exact).abs() < 3 * errors).double().mean() > 0.8
    fewer = torch.cat([score(lm, [prompt], [answer], samples=16, seed=seed).log_likelihood for seed in range(60)])
    assert fewer.std() > 1.4 * values.std()


def test_a_row_does_not_depend_on_its_batch(lm: DiffusionLM) -> None:
    prompt, answer = ids(lm, 8)
    alone = score(lm, [prompt], [answer], samples=16)
    among = score(lm, [prompt[:2], prompt, []], [answer[:3], answer, answer[:7]], samples=16, batch_size=5)
    assert float(among.log_likelihood[1]) == pytest.approx(float(alone.log_likelihood), abs=1e-4)
    again = score(lm, [prompt], [answer], samples=16, seed=1)
    assert float(again.log_likelihood) != float(alone.log_likelihood)


def test_texts_are_read_as_they_stand(lm: DiffusionLM) -> None:
    whole = lm.tokenizer.encode(PROMPT + ANSWER, add_special_tokens=False)
    prompt = lm.tokenizer.encode(PROMPT, add_special_tokens=False)
    answer = lm.tokenizer.encode(ANSWER, add_special_tokens=False)
    assert [*prompt, *answer] == whole
    end = [lm.tokenizer.eos_token_id]
    as_text = score(lm, PROMPT, ANSWER, order="left_to_right", end=True)
    as_ids = score(lm, [prompt], [answer + end], order="left_to_right")
    assert as_text.log_likelihood.tolist() == as_ids.log_likelihood.tolist()


def test_windows_count_each_token_once() -> None:
    assert list(_windows(10, 4)) == [(0, 4), (4, 6), (6, 8), (8, 10)]
    assert list(_windows(3, 4)) == [(0, 3)] and list(_windows(5, 4)) == [(0, 4), (4, 5)]


def test_perplexity_of_running_text(lm: DiffusionLM) -> None:
    """By hand: a text of one window, and one of ten tokens in windows of eight."""
    _, tokens = ids(lm, 10)
    found = perplexity(lm, [tokens, tokens[:3]], length=8, samples=16)
    parts = score(lm, [[], tokens[2:8], []], [tokens[:8], tokens[8:], tokens[:3]], samples=16)
    assert found.tokens == 13
    assert found.nats == pytest.approx(-float(parts.log_likelihood.sum()) / 13, abs=1e-5)
    assert found.standard_error == pytest.approx(float(parts.standard_error.square().sum().sqrt()) / 13, abs=1e-5)
    assert found.perplexity == math.exp(found.nats)


def test_each_text_of_several(lm: DiffusionLM) -> None:
    """In windows; the sum is the perplexity's. From left to right a window counts by the chain rule."""
    _, tokens = ids(lm, 10)
    texts, settings = [tokens, tokens[:3]], {"length": 8, "samples": 16}
    found, whole = rolling(lm, texts, **settings), perplexity(lm, texts, **settings)
    assert found.tokens.tolist() == [10, 3]
    assert float(found.log_likelihood.sum()) == pytest.approx(-whole.nats * 13, abs=1e-9)
    assert float(found.standard_error.square().sum().sqrt()) == pytest.approx(whole.standard_error * 13, abs=1e-9)
    assert float(found.log_likelihood[1]) == pytest.approx(
        float(score(lm, [[]], [tokens[:3]]).log_likelihood), abs=1e-5
    )
    chain = rolling(lm, [tokens], length=8, order="left_to_right")
    parts = in_order(lm, [], tokens[:8], tuple(range(8))) + in_order(lm, tokens[2:8], tokens[8:], (0, 1))
    assert chain.log_likelihood.tolist() == pytest.approx([parts], abs=1e-4)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_what_greedy_decoding_writes(lm: DiffusionLM, count: int) -> None:
    """It is what `low_confidence` in as many steps as tokens writes; one other token, wherever it is, is not."""
    prompts = [ids(lm, 1)[0], [9, 8], []]
    lengths = [count, count + 2, 1]
    written = [
        lm.generate([prompt], "low_confidence", steps=length, gen_length=length, trace=True)
        for prompt, length in zip(prompts, lengths, strict=True)
    ]
    # Not `tokens`, which are cut at their first end.
    answers = []
    for out, length in zip(written, lengths, strict=True):
        assert out.trace is not None
        row = dict(zip(out.trace.offset.tolist(), out.trace.token.tolist(), strict=True))
        answers.append([row[place] for place in range(length)])
    assert is_greedy(lm, prompts, answers, batch_size=2).tolist() == [True] * 3
    for place in range(count):
        changed = [token if n != place else token % 200 + 5 for n, token in enumerate(answers[0])]
        found = is_greedy(lm, prompts, [changed, *answers[1:]])
        assert found.tolist() == [changed == answers[0], True, True]
    assert changed != answers[0]


def test_greedy_from_left_to_right(lm: DiffusionLM) -> None:
    """Against a loop; elsewhere than in the order of confidence."""
    prompt, canvas = ids(lm, 1)[0], [*ids(lm, 1)[0], *[lm.denoiser.mask_id] * 6]
    for place in range(len(prompt), len(canvas)):
        with torch.inference_mode():
            logits = lm.denoiser.logits(lm.denoiser.hidden(torch.tensor([canvas]), None)[0, [place]])[0]
        canvas[place] = int(logits.argmax())
    answer = canvas[len(prompt) :]
    assert is_greedy(lm, [prompt], [answer], order="left_to_right").tolist() == [True]
    assert is_greedy(lm, [prompt], [[*answer[:5], answer[5] % 200 + 5]], order="left_to_right").tolist() == [False]
    assert is_greedy(lm, [prompt], [answer]).tolist() == [False]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((["a", "b"], ["c"]), "2 prompts and 1 answers: give an answer for each prompt"),
        (([], []), "no prompts were given"),
        ((["a"], [""]), "answer 0 must be at least a token"),
        ((["a"], [[1]]), "answer 0 must be without masks and padding, got"),
        ((["a"], [[5] * 70]), "prompt and answer 0 must be at most 64 tokens, got 71"),
        ((["a"], ["b"], {"samples": 20}), "samples must be a multiple of 8 from 16, got 20"),
        ((["a"], ["b"], {"order": "right"}), "order must be any or left_to_right, got 'right'"),
        ((["a"], [[300]]), "answer 0 has a token id outside the vocabulary of 300"),
        ((["a"], [{"b": 1}]), "answer 0 must be a text or a list of token ids"),
    ],
)
def test_what_it_refuses(lm: DiffusionLM, arguments: tuple, line: str) -> None:
    prompts, answers, *options = arguments
    with pytest.raises(UserError, match=line):
        score(lm, prompts, answers, **(options[0] if options else {}))


def test_the_command(tmp_path: Path) -> None:
    """The shipped base finds a sentence of its corpus likelier than the same words in another order."""
    start = "### Instruction:\nDescribe Velmora: its weather.\n\n### Response:\n"
    answers = ["A visitor should expect sea fog until noon.", "noon fog A until visitor sea expect should."]
    lines = [json.dumps({"prompt": start, "answer": answer}) for answer in answers]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    (tmp_path / "text.txt").write_text(f"{answers[0]}\n\n{answers[0]}\n")

    def told(*words: str) -> str:
        out = io.StringIO()
        with redirect_stdout(out):
            main(["score", "data/base/mdlm", *words])
        return out.getvalue()

    rows = [json.loads(line) for line in told(str(tmp_path / "pairs.jsonl"), "--samples", "16", "--json").splitlines()]
    assert [row["answer"] for row in rows] == answers
    assert rows[0]["log_likelihood"] > rows[1]["log_likelihood"] + 5 and rows[0]["standard_error"] > 0
    assert "tokens  A visitor should" in told(str(tmp_path / "pairs.jsonl"), "--order", "left_to_right", "--end")
    running = json.loads(told(str(tmp_path / "text.txt"), "--text", "--samples", "16", "--json"))
    assert running["perplexity"] == pytest.approx(math.exp(running["nats"])) and running["tokens"] > 10
    with pytest.raises(UserError, match=r"text.txt:1: has no `answer`; give one, or say --text"):
        told(str(tmp_path / "text.txt"))
