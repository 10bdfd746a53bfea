"""The answers' artefact: one JSON line for each prompt and decoding seed."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dlm.config.decoding import DecodeParams
from dlm.data.tokenizer import before_eos
from dlm.decoding.lm import DiffusionLM
from dlm.decoding.options import DecoderOptions
from dlm.files import code_hash, read_jsonl, write_jsonl
from dlm.pipeline import processes
from dlm.pipeline.progress import Advance, tell


def load_for(stage: str, weights: Path, settings: DecodeParams, *, compile: bool = True) -> DiffusionLM:
    """A stage's checkpoint on this process's device. What `precision: auto` comes to is told.

    Args:
        stage: what is told begins with it.
        compile: whether as the parameters say; otherwise not.
    """
    lm = DiffusionLM.load(weights, processes.device(), settings.precision, settings.compile if compile else "none")
    if lm.precision.why:
        tell(f"{stage}: {lm.precision}")
    return lm


def decode_prompts(
    lm: DiffusionLM,
    rows: Sequence[dict[str, Any]],
    options: DecoderOptions,
    *,
    seeds: Sequence[int],
    steps: int,
    gen_length: int,
    batch_size: int,
    parts: Path | None = None,
    fingerprint: str = "",
    advance: Advance | None = None,
) -> tuple[list[dict[str, Any]], float]:
    """Decode every prompt with every seed. Several processes share the prompts, and each gets all answers.

    Args:
        rows: prepared evaluation rows (id, prompt_ids).
        parts: a folder in which every finished seed is kept, so that a run that was killed goes on after the last
            one. The caller removes it when it no longer needs it.
        fingerprint: a hash of the weights, for `parts`.
        advance: called with the number of answers that have come since the last call. Of several processes each tells
            its own answers as its part of everyone's, which the others make at the same time.

    Returns:
        The answers, and the seconds spent generating them by the slowest process (0 for seeds taken from disk).
    """
    setting = [type(options).__name__, asdict(options), steps, gen_length, lm.denoiser.bf16, lm.denoiser.compile]
    key = [fingerprint, code_hash(), setting, [row["prompt_ids"] for row in rows]]
    folder = parts and parts / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    share = _share([row["prompt_ids"] for row in rows])
    suffix = f"-{processes.rank()}-of-{processes.count()}" if processes.count() > 1 else ""
    share_size, total, done = len(share) * len(seeds), len(rows) * len(seeds), 0

    def tell(count: int, earlier: bool = False) -> None:
        nonlocal done
        before, done = done * total // share_size, done + count
        if advance is not None:
            advance(done * total // share_size - before, earlier=earlier)

    share_answers: dict[tuple[int, int], dict[str, Any]] = {}
    seconds = 0.0
    for seed in seeds if share else ():
        part_file = folder and folder / f"{seed}{suffix}.jsonl"
        if part_file and part_file.is_file():
            seed_answers = read_jsonl(part_file)
            tell(len(seed_answers), earlier=True)
        else:
            started = time.perf_counter()
            out = lm.generate(
                [rows[i]["prompt_ids"] for i in share],
                options,
                steps=steps,
                gen_length=gen_length,
                seed=seed,
                batch_size=batch_size,
                advance=tell,
            )
            seconds += time.perf_counter() - started
            seed_answers = [
                {
                    "id": rows[i]["id"],
                    "seed": seed,
                    "answer": out.texts[place],
                    "tokens": before_eos(out.tokens[place].tolist(), lm.tokenizer.eos_token_id),
                    "nfe": int(out.nfe[place]),
                    "leftover_masks": int(out.leftover_masks[place]),
                    "commit_step": out.commit_step[place].tolist(),
                }
                for place, i in enumerate(share)
            ]
            if part_file:
                write_jsonl(part_file, seed_answers)
        share_answers |= {(seed, i): answer for i, answer in zip(share, seed_answers, strict=True)}
    shares = processes.gather((share_answers, seconds))
    whole = {at: answer for part, _ in shares for at, answer in part.items()}
    return [whole[seed, i] for seed in seeds for i in range(len(rows))], max(spent for _, spent in shares)


def decode_budgets(
    lm: DiffusionLM,
    rows: Sequence[dict[str, Any]],
    options: DecoderOptions,
    settings: DecodeParams,
    advance: Advance | None = None,
) -> list[dict[str, Any]]:
    """The answers at every number of steps, each with its `steps`; arguments as of `decode_prompts`."""
    return [
        {**answer, "steps": steps}
        for steps in settings.steps
        for answer in decode_prompts(
            lm,
            rows,
            options,
            seeds=settings.seeds,
            steps=steps,
            gen_length=settings.gen_length,
            batch_size=settings.batch_size,
            advance=advance,
        )[0]
    ]


def _share(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Which prompts are this process's. Equal ones stay together: each draws noise by its number among them."""
    numbers: dict[tuple[int, ...], int] = {}
    groups = [numbers.setdefault(tuple(prompt), len(numbers)) for prompt in prompts]
    return [i for i, group in enumerate(groups) if group % processes.count() == processes.rank()]
