"""Finished seeds on disk: what an interrupted decoding goes on from, and what it does not."""

from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_lm

from dlm.config.decoders import CategoricalOptions
from dlm.decoding import answers

ROWS = [{"id": 0, "prompt_ids": [5, 6]}, {"id": 1, "prompt_ids": [7]}]


def decoded(parts: Path | None, seeds: tuple[int, ...] = (0, 1), fingerprint: str = "w") -> list[dict[str, Any]]:
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
