"""Records -> cleaned, templated, tokenised splits."""

import random
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from dlm.config.data import BuiltinParams, DataParams, TokenizerParams
from dlm.config.schema import require
from dlm.data.padding import add_padding
from dlm.data.records import Record
from dlm.data.splits import Example, most_frequent, write_examples
from dlm.data.template import Template
from dlm.data.tokenizer import encode_answers, load_tokenizer, train_tokenizer
from dlm.errors import UserError
from dlm.evaluation.builtin import gazetteer as builtin
from dlm.evaluation.builtin import lists
from dlm.evaluation.builtin.grammar import load_grammar
from dlm.files import write_json
from dlm.sources.evaluation_sets import CHAIN_OF_THOUGHT, read_evaluation_set
from dlm.sources.readers import load_hub, read_records

SPLITS = ("train", "valid", "eval")
ENCODE_AT_ONCE = 2000
TOO_LONG = ("prompt_too_long", "answer_too_long")
CAUSES = {
    "prompt_too_long": "prompt longer than data.max_prompt_length",
    "answer_too_long": "answer longer than data.window",
    "empty_instruction": "empty instruction",
    "empty_output": "empty output",
    "duplicate": "double",
    "in_evaluation": "evaluation prompts as well",
}


def load_splits(data: DataParams, seed: int) -> tuple[dict[str, list[Record]], dict[str, int]]:
    """Read the source and deal it into train, valid and eval; the second value counts what cleaning dropped.

    Training records, and evaluation prompts that are not held out of them, come whole: `fit_splits` takes as many as
    params.yaml wants. What such a prompt asks is not trained on (`in_evaluation` of the counts).
    """
    if data.source == "builtin":
        sizes = {"train": data.builtin.train_size, "valid": data.valid_size, "eval": data.eval_size}
        return _builtin(data.builtin, sizes, seed), {"read": sum(sizes.values()), "kept": sum(sizes.values())}
    if data.source == "hub":
        records, counts = load_hub(data.hub.name, data.hub.config, data.hub.split, data.hub.columns)
    else:
        assert data.file.path is not None  # DataParams.check
        records, counts = read_records(data.file.path, data.file.columns)
    if data.holds_out:
        return deal(records, data, seed), counts
    if data.evaluation.name != "held_out":
        prompts = read_evaluation_set(data.evaluation)
    else:
        assert data.file.eval_path is not None  # DataParams.holds_out
        prompts, _ = read_records(data.file.eval_path, data.file.columns, require_output=False)
    asked = {_question(prompt) for prompt in prompts}

    def is_evaluated(record: Record) -> bool:
        return not asked.isdisjoint((_question(record), _plain(record.opening)))

    # The split is made before this, so that another set of prompts moves no other record.
    dealt = deal(records, data, seed, eval_size=0)
    apart = {name: [record for record in split if not is_evaluated(record)] for name, split in dealt.items()}
    if not apart["train"]:
        raise UserError(
            "params.yaml: data: all records are evaluation prompts as well; name another file for one of them"
        )
    return {**apart, "eval": prompts}, {**counts, "in_evaluation": sum(map(is_evaluated, records))}


def _question(record: Record) -> str:
    """The question of a record, without what an evaluation set adds to it."""
    return _plain(f"{record.instruction.removesuffix(CHAIN_OF_THOUGHT)} {record.input}")


def _plain(text: str) -> str:
    """A key for a text that does not depend on its spacing and case."""
    return " ".join(text.casefold().split())


def _builtin(settings: BuiltinParams, sizes: dict[str, int], seed: int) -> dict[str, list[Record]]:
    if settings.task == "lists":
        trips = lists.split_trips(settings.lists, settings.holdout, seed)
        return {name: lists.generate(trips[name], sizes[name], seed, name) for name in SPLITS}
    grammar = load_grammar(settings.grammar)
    shares = builtin.split_combinations(grammar, settings.slots, settings.holdout, seed, settings.topics)
    return {name: builtin.generate(grammar, shares[name], sizes[name], seed, name) for name in SPLITS}


def deal(records: list[Record], data: DataParams, seed: int, eval_size: int | None = None) -> dict[str, list[Record]]:
    """Shuffle and cut. Records that share instruction and input, or the beginning of a conversation, stay in one split.

    Raises:
        UserError: too few records for the sizes asked.
    """
    eval_size = data.eval_size if eval_size is None else eval_size
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault(_group(record), []).append(record)
    order = list(groups.values())
    random.Random(f"{seed}-deal").shuffle(order)
    held = eval_size + data.valid_size
    if len(order) <= held:
        raise UserError(
            f"params.yaml: data.eval_size + data.valid_size must be below the {len(order)} different prompts of the "
            f"source, got {held}; lower them"
        )
    return {
        "eval": [group[0] for group in order[:eval_size]],
        "valid": [group[0] for group in order[eval_size:held]],
        "train": [record for group in order[held:] for record in group],
    }


def _group(record: Record) -> tuple[str, str]:
    """A key for records that must stay in one split: their question, or the beginning of their conversation."""
    return (record.opening, "") if record.opening else (record.instruction, record.input)


def make_tokenizer(params: TokenizerParams, template: Template, train: Iterable[Record]) -> PreTrainedTokenizerFast:
    """The tokenizer that params.yaml asks for, with the pad tokens of its padding."""
    if params.source == "given":
        tokenizer = load_tokenizer(params.path, params.mask_token)
    else:
        tokenizer = train_tokenizer((template.render(record) + record.output for record in train), params.vocab_size)
    add_padding(tokenizer, params.pad_cycle)
    return tokenizer


def fit_splits(
    records: dict[str, list[Record]], template: Template, tokenizer: PreTrainedTokenizerFast, data: DataParams
) -> tuple[dict[str, list[Example]], dict[str, dict[str, int]]]:
    """Tokenised splits of the sizes in params.yaml, or smaller where too little fits, and counts of what did not fit.

    Where records are held out of the source, those that fit take the place of those that do not.

    Returns:
        The splits, and by split and cause how many were dropped on the way to these sizes.

    Raises:
        UserError: more is dropped than data.max_dropped allows, a split is empty, or the template spells the mask.
    """
    for name, text in asdict(template).items():
        require(tokenizer.mask_token not in text, f"params.yaml: template.{name}", "without the mask token", text)
    held = {"valid": data.valid_size, "eval": data.eval_size}
    enough = None if data.max_records is None else data.max_records + sum(held.values())
    splits, dropped = {}, {}
    for name in SPLITS:
        splits[name], dropped[name] = tokenise(
            records[name], template, tokenizer, data, needs_answer=name != "eval", enough=held.get(name, enough)
        )
    _check_dropped(splits, dropped, data)
    if data.source != "builtin":  # whose splits hold different combinations
        for name in held if data.holds_out else ("valid",):
            _top_up(splits, name, held[name])
    splits["train"] = splits["train"][: data.max_records]
    for name, examples in splits.items():
        if not examples:
            raise UserError(
                f"params.yaml: nothing for {name} fits data.max_prompt_length ({data.max_prompt_length}) and "
                f"data.window ({data.window}) tokens; raise them"
            )
    return splits, dropped


def _check_dropped(splits: dict[str, list[Example]], dropped: dict[str, dict[str, int]], data: DataParams) -> None:
    for what, names in _origins(data).items():
        seen = sum(len(splits[name]) + sum(dropped[name].values()) for name in names)
        lost = {cause: sum(dropped[name][cause] for name in names) / seen for cause in TOO_LONG}
        if sum(lost.values()) > data.max_dropped:
            causes = ", ".join(f"{cause} {share:.0%}" for cause, share in lost.items() if share)
            raise UserError(
                f"params.yaml: {sum(lost.values()):.0%} of the {what} are longer than data.max_prompt_length "
                f"({data.max_prompt_length}) and data.window ({data.window}) tokens allow ({causes}), data.max_dropped "
                f"is {data.max_dropped:g}; raise one of the three"
            )


def _origins(data: DataParams) -> dict[str, tuple[str, ...]]:
    """What is read -> the splits that it goes to."""
    return {"records": SPLITS} if data.holds_out else {"records": ("train", "valid"), "evaluation prompts": ("eval",)}


def _top_up(splits: dict[str, list[Example]], name: str, size: int) -> None:
    """Move training examples to a split that is too small; records that belong with them leave training."""
    spare: dict[tuple[str, str], Example] = {}
    for example in splits["train"]:
        spare.setdefault(_group(example.record), example)
    missing = size - len(splits[name])
    if missing and missing >= len(spare):
        raise UserError(
            f"params.yaml: data.{name}_size is {size}, but only {len(spare) + len(splits[name])} different prompts of "
            "the source fit and are left, training's among them; lower it, or raise data.max_prompt_length and "
            "data.window"
        )
    moved = dict(list(spare.items())[:missing])
    splits[name] += moved.values()
    splits["train"] = [example for example in splits["train"] if _group(example.record) not in moved]


def tokenise(
    records: list[Record],
    template: Template,
    tokenizer: PreTrainedTokenizerFast,
    data: DataParams,
    needs_answer: bool,
    enough: int | None = None,
) -> tuple[list[Example], dict[str, int]]:
    """Tokenise and drop what does not fit: a prompt beyond max_prompt_length, an answer beyond window - 1 (its EOS).

    With `enough` it stops at so many that fit; the counts are of what was dropped up to there.
    """
    kept, dropped = list[Example](), dict.fromkeys(TOO_LONG, 0)
    for start in range(0, len(records), ENCODE_AT_ONCE):
        some = records[start : start + ENCODE_AT_ONCE]
        prompts = [template.render(record) for record in some]
        prompt_ids = template.encode(tokenizer, some)
        answer_ids = encode_answers(tokenizer, prompts, [record.output for record in some])
        for record, prompt, p_ids, a_ids in zip(some, prompts, prompt_ids, answer_ids, strict=True):
            if len(kept) == enough:
                return kept, dropped
            if len(p_ids) > data.max_prompt_length:
                dropped["prompt_too_long"] += 1
            elif needs_answer and len(a_ids) >= data.window:
                dropped["answer_too_long"] += 1
            else:
                kept.append(Example(record, prompt, p_ids, a_ids))
    return kept, dropped


def left_out(
    counts: dict[str, int],
    splits: dict[str, list[Example]],
    dropped: dict[str, dict[str, int]],
    data: DataParams,
) -> list[str]:
    """Lines for the stage to print: what was left out and why, and the splits that are short.

    Args:
        counts: of load_splits.
        splits, dropped: of fit_splits.
    """
    lines = []
    for what, names in _origins(data).items():
        seen = sum(len(splits[name]) + sum(dropped[name].values()) for name in names)
        lost = {cause: (sum(dropped[name][cause] for name in names), seen) for cause in TOO_LONG}
        if what == "records":
            lost |= {cause: (count, counts["read"]) for cause, count in counts.items() if cause not in ("read", "kept")}
        causes = [f"{CAUSES[cause]} {count:,} ({count / of:.1%})" for cause, (count, of) in lost.items() if count]
        if causes:
            lines.append(f"{what} left out: {', '.join(causes)}")
    for name, size in (("valid", data.valid_size), ("eval", data.eval_size)):
        if len(splits[name]) < size:
            lines.append(f"{name} has {len(splits[name])} examples, data.{name}_size is {size}: no more of them fit")
    return lines


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
    """Write what the prepare stage leaves, and return the statistics.

    What trainings read is a folder of its own, `training`, so that they do not depend on the evaluation set.
    """
    vocab = vocabulary(splits["train"], tokenizer)
    numbers = statistics(splits, tokenizer, counts, vocab["token_counts"])
    training = folder / "training"
    training.mkdir()
    for name in ("train", "valid"):
        write_examples(training / f"{name}.parquet", splits[name])
    tokenizer.save_pretrained(training / "tokenizer")
    write_json(training / "vocabulary.json", vocab)
    write_examples(folder / "eval.parquet", splits["eval"])
    write_json(folder / "stats.json", numbers)
    return numbers


def _percentiles(lengths: list[int]) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(lengths, q)) for q in (0, 5, 50, 95, 100)}
