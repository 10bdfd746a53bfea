"""Finished seeds on disk: what an interrupted decoding goes on from, and what it does not."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_lm

from dlm.decoding import answers
from dlm.decoding.options import CategoricalOptions
from dlm.pipeline import processes
from dlm.pipeline.progress import Advance

ROWS = [{"id": 0, "prompt_ids": [5, 6]}, {"id": 1, "prompt_ids": [7]}]


def decoded(
    parts: Path | None, seeds: tuple[int, ...] = (0, 1), fingerprint: str = "w", advance: Advance | None = None
) -> list[dict[str, Any]]:
    found, _ = answers.decode_prompts(
        tiny_lm(),
        ROWS,
        CategoricalOptions(),
        seeds=seeds,
        steps=4,
        gen_length=8,
        batch_size=2,
        parts=parts,
        fingerprint=fingerprint,
        advance=advance,
    )
    return found


def test_a_finished_seed_is_read_back(tmp_path: Path) -> None:
    whole = decoded(None)
    assert decoded(tmp_path, seeds=(0,)) == whole[:2]
    (part,) = tmp_path.rglob("*.jsonl")
    before = part.stat().st_mtime_ns
    assert decoded(tmp_path) == whole
    assert part.stat().st_mtime_ns == before and len(list(tmp_path.rglob("*.jsonl"))) == 2


@pytest.mark.parametrize("changed", ["weights", "code"])
def test_parts_of_other_weights_or_code_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    decoded(tmp_path, seeds=(0,))
    if changed == "code":
        monkeypatch.setattr(answers, "code_hash", lambda: "edited")
    decoded(tmp_path, seeds=(0,), fingerprint="other" if changed == "weights" else "w")
    assert len({part.parent for part in tmp_path.rglob("*.jsonl")}) == 2


def counting(counts: list[tuple[int, bool]]) -> Advance:
    return lambda count, note="", earlier=False: counts.append((count, earlier))


def test_a_seed_from_disk_counts_as_done_earlier(tmp_path: Path) -> None:
    counts: list[tuple[int, bool]] = []
    decoded(tmp_path, seeds=(0,))
    decoded(tmp_path, advance=counting(counts))
    assert counts == [(2, True), (2, False)]


@pytest.mark.parametrize("rows", [2, 5, 6])
def test_each_of_several_processes_counts_for_all(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """What the first one tells comes to everyone's total, in as many parts as it has batches."""
    monkeypatch.setattr(f"{__name__}.ROWS", [{"id": i, "prompt_ids": [5, i]} for i in range(rows)])
    monkeypatch.setenv("WORLD_SIZE", "2")
    shares: list[Any] = []
    monkeypatch.setattr(processes, "gather", lambda value: shares.append(value) or shares)
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        counts: list[tuple[int, bool]] = []
        with contextlib.suppress(KeyError):  # the first has not got the other's answers yet
            answered = decoded(None, advance=counting(counts))
        assert sum(count for count, _ in counts) == 2 * rows
    assert len(answered) == 2 * rows and len(counts) == 2 * -(-rows // 4)
