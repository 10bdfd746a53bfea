"""Generative perplexity: how likely an autoregressive model finds the responses."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from dlm.data.tokenizer import before_eos
from dlm.models.precision import autocast

LOGITS = 2**30  # at a time: 4 GiB in float32


class Scored(NamedTuple):
    """A response's content tokens given its prompt.

    Attributes:
        perplexity: exp(mean loss), at least 1.
        losses: -log p(token | prompt, tokens before), nats, of each; float32, on the CPU.
    """

    perplexity: float
    losses: Float[Tensor, " length"]


def response_perplexities(
    model: nn.Module,
    prompts: list[list[int]],
    responses: list[list[int]],
    eos_id: int,
    batch_size: int = 50,
) -> list[float | None]:
    """The perplexity alone of response_scores: one a row, in the caller's order; None for an empty response."""
    scored = response_scores(model, prompts, responses, eos_id, batch_size)
    return [None if row is None else row.perplexity for row in scored]


@torch.no_grad()
def response_scores(
    model: nn.Module,
    prompts: list[list[int]],
    responses: list[list[int]],
    eos_id: int,
    batch_size: int = 50,
) -> list[Scored | None]:
    """Perplexity of each response's content tokens given its prompt: exp(mean -log p) (docs/method.md §6).

    Args:
        model: a causal LM of transformers. Scored in eval mode, in the arithmetic of `precision: auto`; its mode is put
            back afterwards.
        prompts: token ids, at least one each: the first response token is predicted from the last prompt token.
        responses: token ids; everything from the first EOS on is left out, so how a response ends does not count.
        eos_id: end of sequence.
        batch_size: rows through the model at once, fewer where their logits would be many; a row's result does not
            depend on the others beyond rounding.

    Returns:
        One a row, in the caller's order; None for an empty response.
    """
    contents = [before_eos(response, eos_id) for response in responses]
    rows = [(index, prompt, content) for index, (prompt, content) in enumerate(zip(prompts, contents, strict=True))]
    # The longest rows come first: a batch too large for the memory fails at once, not at the end.
    rows = sorted((row for row in rows if row[2]), key=lambda row: len(row[1]) + len(row[2]), reverse=True)
    scored: list[Scored | None] = [None] * len(responses)
    vocab = model.get_output_embeddings().weight.shape[0]  # type: ignore[operator]
    was_training = model.training
    model.eval()
    try:
        while rows:
            # The first is the longest; over a large vocabulary its logits decide how many rows fit.
            longest = len(rows[0][1]) + len(rows[0][2])
            size = max(min(batch_size, LOGITS // (longest * vocab)), 1)
            batch, rows = rows[:size], rows[size:]
            scores = _score(model, [row[1] for row in batch], [row[2] for row in batch], eos_id)
            for (index, _, _), row in zip(batch, scores, strict=True):
                scored[index] = row
    finally:
        model.train(was_training)
    return scored


def _score(model: nn.Module, prompts: list[list[int]], contents: list[list[int]], pad_id: int) -> list[Scored]:
    """One batch."""
    input_ids, attention_mask = padded(prompts, contents, pad_id, next(model.parameters()).device)
    with autocast(model):
        logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    # Row by row: the float32 log-softmax of a whole batch over a large vocabulary would double the peak memory.
    means, losses = [], []
    for row, (prompt, content) in enumerate(zip(prompts, contents, strict=True)):
        start, end = len(prompt), len(prompt) + len(content)
        predicted, tokens = logits[row, start - 1 : end - 1].float(), input_ids[row, start:end]
        means.append(F.cross_entropy(predicted, tokens))
        losses.append(F.cross_entropy(predicted, tokens, reduction="none"))
    perplexities = torch.stack(means).double().exp().tolist()
    return [Scored(perplexity, loss.cpu()) for perplexity, loss in zip(perplexities, losses, strict=True)]


def padded(
    prompts: list[list[int]], contents: list[list[int]], pad_id: int, device: torch.device
) -> tuple[Int[Tensor, "batch length"], Int[Tensor, "batch length"]]:
    """Prompts and responses in one batch with its attention mask, padded on the right: under a causal mask no token
    sees the padding. Raises ValueError for an empty prompt."""
    lengths = [len(prompt) + len(content) for prompt, content in zip(prompts, contents, strict=True)]
    input_ids = torch.full((len(lengths), max(lengths)), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    for row, (prompt, content) in enumerate(zip(prompts, contents, strict=True)):
        if not prompt:
            raise ValueError("a prompt is empty: the first token of its response has nothing to be predicted from")
        input_ids[row, : lengths[row]] = torch.tensor(prompt + content)
        attention_mask[row, : lengths[row]] = 1
    return input_ids.to(device), attention_mask.to(device)
