"""Records -> cleaned, templated, tokenised splits."""

import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from dlm.blocks import DataParams, TokenizerParams
from dlm.data.builtin import generate, split_combinations
from dlm.data.evalsets import read_evaluation_set
from dlm.data.grammar import load_grammar
from dlm.data.records import Record
from dlm.data.sources import load_hub, read_records
from dlm.data.splits import Example, most_frequent, write_examples
from dlm.data.template import Template
from dlm.data.tokenizer import encode, load_tokenizer, train_tokenizer
from dlm.errors import UserError
from dlm.files import write_json

SPLITS = ("train", "valid", "eval")


def load_splits(data: DataParams, seed: int) -> tuple[dict[str, list[Record]], dict[str, int]]:
    """Read the source and deal it into train, valid and eval; the second value counts what cleaning dropped."""
    if data.source == "builtin":
        grammar = load_grammar(data.builtin.grammar)
        shares = split_combinations(grammar, data.builtin.slots, data.builtin.holdout, seed, data.builtin.topics)
        sizes = {"train": data.builtin.train_size, "valid": data.valid_size, "eval": data.eval_size}
        splits = {name: generate(grammar, shares[name], sizes[name], seed, name) for name in SPLITS}
        return splits, {"read": sum(sizes.values()), "kept": sum(sizes.values())}
    if data.source == "hub":
        records, counts = load_hub(data.hub.name, data.hub.config, data.hub.split, data.hub.columns)
    else:
        assert data.file.path is not None  # DataParams.check
        records, counts = read_records(data.file.path, data.file.columns)
    if data.evaluation.name != "held_out":
        prompts = read_evaluation_set(data.evaluation)
    elif data.source == "file" and data.file.eval_path is not None:
        prompts, _ = read_records(data.file.eval_path, data.file.columns, require_output=False)
    else:
        return deal(records, data, seed), counts
    dealt = deal(records, data, seed, eval_size=0)
    return {**dealt, "eval": prompts[: data.eval_size]}, counts


def deal(records: list[Record], data: DataParams, seed: int, eval_size: int | None = None) -> dict[str, list[Record]]:
    """Shuffle and cut. Records that share instruction and input stay in one split.

    Raises:
        UserError: too few records for the sizes asked.
    """
    eval_size = data.eval_size if eval_size is None else eval_size
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.instruction, record.input), []).append(record)
    order = list(groups.values())
    random.Random(f"{seed}-deal").shuffle(order)
    held = eval_size + data.valid_size
    if len(order) <= held:
        raise UserError(
            f"params.yaml: data.eval_size + data.valid_size must be below the {len(order)} different prompts of the "
            f"source, got {held}; lower them"
        )
    train = [record for group in order[held:] for record in group][: data.max_records]
    return {
        "eval": [group[0] for group in order[:eval_size]],
        "valid": [group[0] for group in order[eval_size:held]],
        "train": train,
    }


def make_tokenizer(params: TokenizerParams, template: Template, train: Iterable[Record]) -> PreTrainedTokenizerFast:
    """The tokenizer that params.yaml asks for."""
    if params.source == "given":
        return load_tokenizer(params.path, params.mask_token)
    return train_tokenizer((template.render(record) + record.output for record in train), params.vocab_size)


def tokenise(
    records: list[Record], template: Template, tokenizer: PreTrainedTokenizerFast, data: DataParams, needs_answer: bool
) -> tuple[list[Example], dict[str, int]]:
    """Tokenise and drop what does not fit: a prompt beyond max_prompt_length, an answer beyond window - 1 (its EOS)."""
    prompts = [template.render(record) for record in records]
    prompt_ids = template.encode(tokenizer, records)
    answer_ids = encode(tokenizer, [record.output for record in records])
    kept, dropped = [], Counter({"prompt_too_long": 0, "answer_too_long": 0})
    for record, prompt, p_ids, a_ids in zip(records, prompts, prompt_ids, answer_ids, strict=True):
        if len(p_ids) > data.max_prompt_length:
            dropped["prompt_too_long"] += 1
        elif needs_answer and len(a_ids) >= data.window:
            dropped["answer_too_long"] += 1
        else:
            kept.append(Example(record, prompt, p_ids, a_ids))
    if not kept:
        raise UserError(
            f"params.yaml: no record fits data.max_prompt_length ({data.max_prompt_length}) and data.window "
            f"({data.window}) tokens; raise them"
        )
    return kept, dict(dropped)


def statistics(
    splits: dict[str, list[Example]],
    tokenizer: PreTrainedTokenizerFast,
    counts: dict[str, Any],
    occurrences: list[int],
) -> dict[str, Any]:
    """Counts, length percentiles, the training answers' most frequent tokens: for people to read.

    Args:
        counts: what cleaning has read and dropped.
        occurrences: of each id, `token_counts` of `vocabulary`.
    """
    frequent = most_frequent(occurrences, 20).tolist()
    return {
        "records": counts,
        "examples": {name: len(examples) for name, examples in splits.items()},
        "prompt_length": {name: _percentiles([len(e.prompt_ids) for e in ex]) for name, ex in splits.items()},
        "answer_length": {name: _percentiles([len(e.answer_ids) for e in ex]) for name, ex in splits.items()},
        "most_frequent": [[tokenizer.decode([i]), occurrences[i]] for i in frequent],
    }


def vocabulary(train: list[Example], tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The special ids, and the token priors: how often each id occurs in the training answers."""
    ids = np.concatenate([np.asarray(e.answer_ids, dtype=np.int64) for e in train])
    return {
        "vocab_size": len(tokenizer),
        "eos_id": tokenizer.eos_token_id,
        "mask_id": tokenizer.mask_token_id,
        "token_counts": np.bincount(ids, minlength=len(tokenizer)).tolist(),
    }


def write_prepared(
    folder: Path, splits: dict[str, list[Example]], tokenizer: PreTrainedTokenizerFast, counts: dict[str, Any]
) -> dict[str, Any]:
    """All that the prepare stage leaves, each kind in its own file, so that what is trained does not depend on what is
    evaluated; the statistics are returned."""
    known = vocabulary(splits["train"], tokenizer)
    found = statistics(splits, tokenizer, counts, known["token_counts"])
    for name, examples in splits.items():
        write_examples(folder / f"{name}.parquet", examples)
    tokenizer.save_pretrained(folder / "tokenizer")
    write_json(folder / "vocabulary.json", known)
    write_json(folder / "stats.json", found)
    return found


def _percentiles(lengths: list[int]) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(lengths, q)) for q in (0, 5, 50, 95, 100)}
