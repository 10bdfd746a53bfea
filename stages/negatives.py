"""Rejected continuations for R2FT: `per_example` seeded draws for each training example, as one parquet file."""

import pyarrow as pa
import pyarrow.parquet as pq

from dlm.pipeline.start import run_script, stage_arguments, start_stage
from dlm.config.params import tracked
from dlm.data.splits import read_split
from dlm.files import atomic_path, read_json
from dlm.negatives.draw import draw_negatives, make_rule
from dlm.pipeline.records import log_inputs
from dlm.pipeline.tracking import stage_run


def main() -> None:
    arguments = stage_arguments(__doc__).parse_args()
    params = start_stage(arguments)
    data = arguments.build / "data/training"
    rule = make_rule(params.negatives, read_json(data / "vocabulary.json"), params.evaluate.high_prior_tokens)
    with stage_run("negatives", params=tracked(params, "seed", "negatives")) as run:
        log_inputs(run, "negatives", arguments.build)
        for split in ("train", "valid"):
            examples = read_split(data, split, ["id", "prompt_ids", "answer_ids"])
            rows = draw_negatives(examples, split, params.negatives, rule, params.data.canvas_length, params.seed)
            out = arguments.build / "negatives" / f"{split}.parquet"
            with atomic_path(out) as temporary:
                pq.write_table(pa.Table.from_pylist(rows), temporary, compression="zstd")
            run.metrics({f"negatives_{split}": len(rows)})
            run.outputs([out])


if __name__ == "__main__":
    run_script(main)
