"""The answers' artefact: one JSON line for each prompt and decoding seed."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dlm.api import DiffusionLM
from dlm.data.tokenizer import before_eos
from dlm.decoding.options import DecoderOptions
from dlm.files import read_jsonl, write_jsonl

PARTS = Path(".cache/decoding")


def decode_prompts(
    lm: DiffusionLM,
    rows: Sequence[dict[str, Any]],
    options: DecoderOptions,
    *,
    seeds: Sequence[int],
    steps: int,
    gen_length: int,
    batch_size: int,
    fingerprint: str = "",
) -> tuple[list[dict[str, Any]], float]:
    """Decode every prompt with every seed.

    Args:
        rows: prepared evaluation rows (id, prompt_ids).
        fingerprint: a hash of the weights; with it every finished seed is kept under .cache/decoding, and a run that
            was killed goes on after the last one.

    Returns:
        The answers, and the seconds spent generating them (0 for seeds taken from disk).
    """
    setting = [type(options).__name__, asdict(options), steps, gen_length, lm.denoiser.bf16, lm.denoiser.compile]
    key = [fingerprint, setting, [row["prompt_ids"] for row in rows]]
    folder = PARTS / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    answers, seconds = [], 0.0
    for seed in seeds:
        part = folder / f"{seed}.jsonl"
        if fingerprint and part.is_file():
            answers += read_jsonl(part)
            continue
        started = time.perf_counter()
        out = lm.generate(
            [row["prompt_ids"] for row in rows],
            options,
            steps=steps,
            gen_length=gen_length,
            seed=seed,
            batch_size=batch_size,
        )
        seconds += time.perf_counter() - started
        fresh = [
            {
                "id": row["id"],
                "seed": seed,
                "answer": out.texts[i],
                "tokens": before_eos(out.tokens[i].tolist(), lm.tokenizer.eos_token_id),
                "nfe": int(out.nfe[i]),
                "leftover_masks": int(out.leftover_masks[i]),
                "commit_step": out.commit_step[i].tolist(),
            }
            for i, row in enumerate(rows)
        ]
        if fingerprint:
            write_jsonl(part, fresh)
        answers += fresh
    return answers, seconds
