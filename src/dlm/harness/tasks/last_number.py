"""GSM8K's rows as the stage prepare reads them, and the pipeline's exact match of the last number."""

from typing import Any

from dlm.data.compression import unix_lines
from dlm.evaluation.metrics import last_number
from dlm.sources.evaluation_sets import CHAIN_OF_THOUGHT, SETS


def question(row: dict[str, Any]) -> str:
    return unix_lines(SETS["gsm8k"].record(row)[0]).strip()


def question_with_reasoning(row: dict[str, Any]) -> str:
    return f"{question(row)}\n\n{CHAIN_OF_THOUGHT}"


def target(row: dict[str, Any]) -> str:
    return unix_lines(SETS["gsm8k"].record(row)[2]).strip()


def exact_match(row: dict[str, Any], answers: list[str]) -> dict[str, float]:
    return {"exact_match": float(last_number(answers[0]) == last_number(target(row)))}
