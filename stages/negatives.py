"""Rejected continuations for R2FT: `per_example` seeded draws for each training example, as one parquet file."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dlm import cli
from dlm.data.splits import read_split
from dlm.diffusion.corruption import RULES, Rule
from dlm.errors import run_script
from dlm.files import atomic_path, read_json
from dlm.params import tracked
from dlm.tracking import stage_run


def main() -> None:
    arguments = cli.stage_arguments(__doc__).parse_args()
    params = cli.stage_params(arguments)
    settings, data = params.negatives, arguments.build / "data"
    length = params.data.canvas_length
    stats = read_json(data / "stats.json")
    counts = np.asarray(stats["token_counts"])
    frequent = np.argsort(-counts, kind="stable")[: params.evaluate.high_prior_tokens]
    rule = Rule(
        g_max=settings.g_max,
        z_min=settings.z_min,
        z_max=settings.z_max,
        eos_probability=settings.eos_probability,
        at_least_answer=settings.at_least_answer,
        high_prior_share=settings.high_prior_share,
        prior_ids=frequent,
        prior_p=counts[frequent] / counts[frequent].sum(),
        eos_id=stats["eos_id"],
    )
    with stage_run("negatives", params=tracked(params, "seed", "negatives")) as run:
        for split in ("train", "valid"):
            examples = read_split(data, split, ["id", "prompt_ids", "answer_ids"])[: settings.examples]
            rows = []
            for draw in range(settings.per_example):
                for example in examples:
                    question, answer = len(example["prompt_ids"]), len(example["answer_ids"])
                    x0 = np.full(length, rule.eos_id, dtype=np.int32)
                    x0[: question + answer] = example["prompt_ids"] + example["answer_ids"]
                    seed = [params.seed, split == "valid", example["id"], draw]
                    negative = RULES[settings.rule](x0, question, answer, rule, np.random.default_rng(seed))
                    rows.append({"example": example["id"], "draw": draw, "rule": settings.rule, **vars(negative)})
            out = arguments.build / "negatives" / f"{split}.parquet"
            with atomic_path(out) as temporary:
                pq.write_table(pa.Table.from_pylist(rows), temporary, compression="zstd")
            run.metrics({f"negatives_{split}": len(rows)})
            run.outputs([out])


if __name__ == "__main__":
    run_script(main)
