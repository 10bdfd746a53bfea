"""Answers of the autoregressive reference by nucleus sampling (docs/method.md §6)."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dlm.data.tokenizer import before_eos, decode
from dlm.models.interface import token_count
from dlm.pipeline import processes


@torch.inference_mode()
def nucleus_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[dict[str, Any]],
    *,
    seeds: Sequence[int],
    gen_length: int,
    batch_size: int,
    top_p: float,
    temperature: float,
    never: Sequence[int] = (),
) -> list[dict[str, Any]]:
    """Sample an answer for every prompt and seed; rows as in decoding.answers, with nfe the number of tokens.

    Several processes share the batches, and each gets all answers. The ids `never` are not drawn.
    """
    eos_id = tokenizer.eos_token_id
    answers_of_batch: dict[int, list[dict[str, Any]]] = {}
    suppressed = [token for token in range(model.config.vocab_size) if token >= token_count(model) or token in never]
    sampler: Any = model  # generate is a mixin that PreTrainedModel's type does not show
    batches = [(seed, start) for seed in seeds for start in range(0, len(rows), batch_size)]
    for number, (seed, start) in enumerate(batches):
        if number % processes.count() != processes.rank():
            continue
        answers = answers_of_batch.setdefault(number, [])
        batch = rows[start : start + batch_size]
        longest = max(len(row["prompt_ids"]) for row in batch)
        padding = [longest - len(row["prompt_ids"]) for row in batch]
        ids = torch.tensor([[eos_id] * p + row["prompt_ids"] for p, row in zip(padding, batch, strict=True)])
        mask = torch.tensor([[0] * p + [1] * (longest - p) for p in padding])
        torch.manual_seed(seed * 1_000_003 + start)
        output = sampler.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            do_sample=True,
            top_p=top_p,
            top_k=0,
            temperature=temperature,
            max_new_tokens=gen_length,
            eos_token_id=eos_id,
            pad_token_id=eos_id,
            suppress_tokens=suppressed or None,
        )
        for row, tokens in zip(batch, output[:, longest:].tolist(), strict=True):
            content = before_eos(tokens, eos_id)
            answers.append(
                {
                    "id": row["id"],
                    "seed": seed,
                    "answer": decode(tokenizer, content),
                    "tokens": content,
                    "nfe": min(len(content) + 1, gen_length),
                    "leftover_masks": 0,
                }
            )
    whole = {number: part for parts in processes.gather(answers_of_batch) for number, part in parts.items()}
    return [answer for number in range(len(batches)) for answer in whole[number]]
