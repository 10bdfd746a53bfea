"""The prepared splits on disk: written by the prepare stage, read by all others."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dlm.data.records import Record
from dlm.files import read_parquet


@dataclass(frozen=True)
class Example:
    """A tokenised record; `answer_ids` carries no EOS."""

    record: Record
    prompt: str
    prompt_ids: list[int]
    answer_ids: list[int]


def write_examples(path: Path, examples: list[Example]) -> None:
    """One parquet file: id, texts, meta (JSON) and token ids, in order."""
    table = pa.table(
        {
            "id": list(range(len(examples))),
            "instruction": [e.record.instruction for e in examples],
            "input": [e.record.input for e in examples],
            "output": [e.record.output for e in examples],
            "prompt": [e.prompt for e in examples],
            "meta": [json.dumps(e.record.meta) for e in examples],
            "prompt_ids": pa.array([e.prompt_ids for e in examples], pa.list_(pa.int32())),
            "answer_ids": pa.array([e.answer_ids for e in examples], pa.list_(pa.int32())),
        }
    )
    pq.write_table(table, path, compression="zstd")


def log_prior(token_counts: list[int]) -> np.ndarray:
    """Log relative frequency of every id in the training answers, each count plus one (nats, float64, [V])."""
    counts = np.asarray(token_counts, dtype=np.float64) + 1
    return np.log(counts / counts.sum())


def most_frequent(token_counts: list[int], count: int) -> np.ndarray:
    """The ids of the `count` tokens that are most frequent in the training answers, the most frequent first."""
    return np.argsort(-np.asarray(token_counts), kind="stable")[:count]


def read_split(folder: Path | str, split: str, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """Rows of a prepared split. Raises UserError as read_parquet."""
    return read_parquet(Path(folder) / f"{split}.parquet", columns)
