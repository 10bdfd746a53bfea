"""The paper's evaluation sets by name (docs/method.md §6), each from a copy on disk or from the Hugging Face hub."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlm.config.data import EvaluationSetParams
from dlm.data.compression import unix_lines
from dlm.data.records import Record
from dlm.errors import UserError
from dlm.sources.readers import read_rows

CHAIN_OF_THOUGHT = "Reason step by step, and end with the answer as a number."


@dataclass(frozen=True)
class EvaluationSet:
    """One set.

    Attributes:
        repository: of the hub's datasets; None where the hub has none.
        file: in the repository.
        record: a row of the file -> instruction, input and output ("" for none).
    """

    repository: str | None
    file: str
    record: Callable[[dict[str, Any]], tuple[str, str, str]]


def _gsm8k(row: dict[str, Any]) -> tuple[str, str, str]:
    """GSM8K's fields; the output is the number after the answer's `####`."""
    return row["question"], "", row["answer"].rpartition("####")[2].strip().replace(",", "")


SETS = {
    "alpaca_eval": EvaluationSet(
        "tatsu-lab/alpaca_eval", "alpaca_eval.json", lambda row: (row["instruction"], "", row["output"])
    ),
    "mt_bench": EvaluationSet(
        "HuggingFaceH4/mt_bench_prompts",
        "raw/question.jsonl",
        lambda row: ((row.get("turns") or row["prompt"])[0], "", ""),
    ),
    "wiki": EvaluationSet(None, "wiki_questions.json", lambda row: (row["instruction"], "", "")),
    "arena_hard": EvaluationSet(
        "lmarena-ai/arena-hard-auto",
        "data/arena-hard-v0.1/question.jsonl",
        lambda row: (row["prompt"] if "prompt" in row else row["turns"][0]["content"], "", ""),
    ),
    "gsm8k": EvaluationSet("openai/gsm8k", "main/test-00000-of-00001.parquet", _gsm8k),
}


def read_evaluation_set(params: EvaluationSetParams) -> list[Record]:
    """The prompts of the set `params.name`, in its order; `meta` carries the set's name and the place in it.

    MT-Bench's first turns only; GSM8K's output is the number to find.

    Raises:
        UserError: no such file, no network, a file that is not this set's, or an id that comes twice.
    """
    chosen = SETS[params.name]
    path = Path(params.path) if params.path else _download(params.name, chosen)
    records = []
    places: dict[Any, int] = {}
    for place, row in enumerate(read_rows(path)):
        try:
            instruction, context, output = (unix_lines(text).strip() for text in chosen.record(row))
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise UserError(
                f"{path}: record {place + 1} is not one of {params.name} ({type(error).__name__}: {error}); "
                f"set data.evaluation.path to a copy of {chosen.repository or chosen.file}"
            ) from None
        name = row.get("question_id", row.get("uid"))
        if name is not None and places.setdefault(name, place) != place:
            raise UserError(f"{path}: records {places[name] + 1} and {place + 1} have the same id {name}; keep one")
        if params.chain_of_thought:
            instruction = f"{instruction}\n\n{CHAIN_OF_THOUGHT}"
        records.append(Record(instruction, context, output, {"set": params.name, "place": place}))
    return records


def _download(name: str, chosen: EvaluationSet) -> Path:
    if chosen.repository is None:
        raise UserError(f"data.evaluation: {name} is not on the hub; set data.evaluation.path to a copy")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(chosen.repository, chosen.file, repo_type="dataset"))
    except Exception as error:  # the hub and the network raise classes of their own
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"data.evaluation: {name} could not be loaded from the hub ({reason}); download {chosen.file} of "
            f"https://huggingface.co/datasets/{chosen.repository} and set data.evaluation.path to the copy"
        ) from None
