"""By distance from the prompt: a checkpoint's first candidates, and what its decoders wrote (paper Figs. 2, 3, 11)."""

from typing import Any

import numpy as np

from dlm.pipeline.start import run_script, stage_arguments, start_stage
from dlm.config.params import Params, tracked
from dlm.data.splits import most_frequent, read_split
from dlm.decoding.answers import load_for
from dlm.decoding.lm import DiffusionLM
from dlm.evaluation.distance import (
    KINDS,
    binned,
    candidates,
    first_probabilities,
    masses,
    one_hot,
    token_kinds,
    written_kinds,
)
from dlm.files import read_json, read_jsonl, write_json
from dlm.pipeline.tracking import stage_run


def main() -> None:
    parser = stage_arguments(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a folder of build/models, e.g. sft or r2ft")
    arguments = parser.parse_args()
    params = start_stage(arguments)
    build, checkpoint = arguments.build, arguments.checkpoint
    with stage_run("distance", cell=checkpoint, params=tracked(params, "sweeps", "decode")) as run:
        lm = load_for(f"distance@{checkpoint}", build / "models" / checkpoint, params.decode, compile=False)
        counts = read_json(build / "data/training/vocabulary.json")["token_counts"]
        high_prior = frozenset(most_frequent(counts, params.evaluate.high_prior_tokens).tolist())
        eos_id = lm.tokenizer.eos_token_id
        examples = read_split(build / "data", "eval", ["id", "instruction", "prompt_ids", "answer_ids"])
        prompts = {row["id"]: row["prompt_ids"] for row in examples}

        def written(ids: list[int], texts: list[list[int]]) -> dict[str, Any]:
            kinds = [written_kinds(text, prompts[i], high_prior, eos_id) for i, text in zip(ids, texts, strict=True)]
            return by_bin([one_hot(row) for row in kinds], ids, params)

        decoders = {}
        for decoder in params.report.decoders:
            answers = read_jsonl(build / "answers" / f"{checkpoint}-{decoder}.jsonl")
            answers = [answer for answer in answers if answer["steps"] == params.decode.judged_steps]
            decoders[decoder] = written([a["id"] for a in answers], [a["tokens"] for a in answers])
        result = {
            "checkpoint": checkpoint,
            "bin": params.sweeps.distance_bin,
            "gen_length": params.decode.gen_length,
            "prompts": len(examples),
            **zone(lm, examples, high_prior, params),
            "written": decoders,
            "expected": written([row["id"] for row in examples], [row["answer_ids"] for row in examples]),
        }
        out = build / "sweeps" / f"distance-{checkpoint}.json"
        write_json(out, result)
        run.outputs([out])


def zone(lm: DiffusionLM, examples: list[dict[str, Any]], high_prior: frozenset[int], params: Params) -> dict[str, Any]:
    """The candidate zone: probability by kind and bin, kinds of the best candidates by distance, one example."""
    length, count = params.decode.gen_length, params.sweeps.candidates
    mass, shares, example = [], np.zeros((length, len(KINDS))), None
    for row in examples:
        probabilities = first_probabilities(lm, row["prompt_ids"], length)
        kinds = token_kinds(
            probabilities.shape[1], row["prompt_ids"], high_prior, [lm.tokenizer.eos_token_id, *lm.padding]
        )
        best = candidates(probabilities, count)
        mass.append(masses(probabilities, kinds))
        shares += one_hot(kinds[best].ravel().tolist()).reshape(length, count, -1).mean(axis=1)
        example = example or {
            "instruction": row["instruction"],
            "tokens": [[lm.tokenizer.decode([token]) for token in position] for position in best.tolist()],
            "kinds": kinds[best].tolist(),
            "probabilities": np.take_along_axis(probabilities, best, axis=1).round(4).tolist(),
        }
    return {
        "probability": by_bin(mass, [row["id"] for row in examples], params),
        "candidates": dict(zip(KINDS, (shares / len(examples)).T.round(4).tolist(), strict=True)),
        "example": example,
    }


def by_bin(rows: list[np.ndarray], ids: list[int], params: Params) -> dict[str, Any]:
    return binned(rows, ids, params.sweeps.distance_bin, params.decode.gen_length, params.evaluate.bootstrap_samples)


if __name__ == "__main__":
    run_script(main)
