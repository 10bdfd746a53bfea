"""What a judge says of every answer: its preference over the baseline's answer to the same prompt, and a grade."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dlm.errors import UserError
from dlm.evaluation.judges.grades import Grader
from dlm.evaluation.judges.pairs import Judge, Pair
from dlm.evaluation.winrate import Rate, length_controlled, win_rate
from dlm.pipeline import processes

T = TypeVar("T")
Row = dict[str, Any]
Baseline = Mapping[tuple[int, int], str]


def baseline_of(answers: Sequence[Row]) -> Baseline:
    """The reference's answers by (prompt id, seed)."""
    return {(answer["id"], answer["seed"]): answer["answer"] for answer in answers}


def add_preferences(
    rows: Sequence[Row], answers: Sequence[Row], examples: Mapping[int, Row], baseline: Baseline, judge: Judge
) -> None:
    """Put the judge's preference, and the baseline's length in characters, into every row of a cell.

    Several processes all call it, with the same rows; the first one asks.

    Args:
        rows: of cell.score_answers, in the order of `answers`.
        examples: evaluation rows by id (instruction, input, meta).

    Raises:
        UserError: the reference did not answer these prompts with these seeds.
    """
    missing = [answer["id"] for answer in answers if (answer["id"], answer["seed"]) not in baseline]
    if missing:
        raise UserError(f"the reference has no answer to prompt {missing[0]} with this seed; run the reference stage")
    others = [baseline[answer["id"], answer["seed"]] for answer in answers]
    pairs = [
        Pair(_asked(example), answer["answer"], other, json.loads(example["meta"]))
        for answer, other in zip(answers, others, strict=True)
        for example in [examples[answer["id"]]]
    ]
    verdicts = _by_the_first(lambda: judge.prefer(pairs))
    for row, other, verdict in zip(rows, others, verdicts, strict=True):
        row |= {"preference": verdict.preference, "baseline_characters": len(other)}


def add_grades(rows: Sequence[Row], answers: Sequence[Row], examples: Mapping[int, Row], grader: Grader) -> None:
    """Put the grade into every row of a cell, None where the judge failed; several processes as in add_preferences.

    Args:
        rows, answers, examples: as for add_preferences.
    """
    asked_and_answered = [(_asked(examples[answer["id"]]), answer["answer"]) for answer in answers]
    for row, grade in zip(rows, _by_the_first(lambda: grader.grade(asked_and_answered)), strict=True):
        row["grade"] = grade


def _by_the_first(ask: Callable[[], list[T]]) -> list[T]:
    """Ask in the first process alone, since a judge may cost money, and give the answer to all processes."""
    return processes.gather(ask() if processes.is_main() else [])[0]


def _asked(example: Row) -> str:
    """The task as the judge reads it."""
    return f"{example['instruction']}\n\n{example['input']}" if example["input"] else str(example["instruction"])


def judge_failed(rows: Sequence[Row]) -> float | None:
    """The share of preferences and grades asked for that the judge did not give; None where it was not asked."""
    asked = [row[name] for row in rows for name in ("preference", "grade") if name in row]
    return sum(value is None for value in asked) / len(asked) if asked else None


def win_rates(rows: Sequence[Row], difficulty: Mapping[int, float] | None) -> Row:
    """Win rate and length-controlled win rate in percent, each with its 95% interval; None without preferences.

    The seeds of a prompt are averaged first: the prompts are what the standard errors count.

    Args:
        rows: per-answer values with id, preference (None where the judge failed), characters and baseline_characters.
        difficulty: of each prompt id, if known.
    """
    prompts: dict[int, list[Row]] = {}
    for row in rows:
        if row.get("preference") is not None:
            prompts.setdefault(row["id"], []).append(row)
    if not prompts:
        return dict.fromkeys(("win_rate", "win_rate_ci", "lc_win_rate", "lc_win_rate_ci"))
    names = ("preference", "characters", "baseline_characters")
    preference, ours, theirs = (
        np.array([np.mean([row[name] for row in group]) for group in prompts.values()]) for name in names
    )
    hard = None if difficulty is None else [difficulty[number] for number in prompts]
    return {
        **_with_interval("win_rate", win_rate(preference)),
        **_with_interval("lc_win_rate", length_controlled(preference, ours, theirs, hard)),
    }


def _with_interval(name: str, rate: Rate) -> Row:
    margin = 1.96 * rate.standard_error
    return {name: rate.percent, f"{name}_ci": [max(0.0, rate.percent - margin), min(100.0, rate.percent + margin)]}


def places(examples: Mapping[int, Row]) -> dict[int, int]:
    """Prompt id -> its place in the evaluation set (records of other sources stand in their own order)."""
    return {number: json.loads(row["meta"]).get("place", number) for number, row in examples.items()}


def read_difficulty(path: Path | str, places: Mapping[int, int]) -> dict[int, float]:
    """Each prompt's difficulty from a CSV with a column instruction_difficulty, one row a prompt of the whole set.

    Args:
        places: prompt id -> its place in the set (a prompt that is too long leaves a hole).

    Raises:
        UserError: no such file or column, a value that is no number, or fewer rows than prompts.
    """
    try:
        with Path(path).open(encoding="utf-8", newline="") as handle:
            values = [float(row["instruction_difficulty"]) for row in csv.DictReader(handle)]
    except OSError as error:
        raise UserError(f"evaluate.judge.difficulty: {path}: {error.strerror}; set it to a CSV or to null") from None
    except (KeyError, ValueError, TypeError, csv.Error):
        raise UserError(f"{path}: a column instruction_difficulty with a number in every row is needed") from None
    if max(places.values(), default=-1) >= len(values):
        raise UserError(f"{path}: {len(values)} rows for {max(places.values()) + 1} prompts; give the whole set's")
    return {number: values[place] for number, place in places.items()}
