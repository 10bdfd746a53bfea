"""Metrics of one cell's answers at each budget and win rates against the reference, with intervals, as a JSON list."""

from dlm.pipeline.start import run_script, stage_arguments, start_stage
from dlm.config.params import tracked
from dlm.evaluation.examine import Examiner
from dlm.files import read_jsonl, write_json
from dlm.pipeline.records import cell_params, log_inputs, log_samples, log_scores
from dlm.pipeline.tracking import stage_run


def main() -> None:
    parser = stage_arguments(__doc__)
    parser.add_argument("--checkpoint", required=True, help="as in decode; or reference, with --decoder nucleus")
    parser.add_argument("--decoder", required=True, help="as in decode")
    arguments = parser.parse_args()
    params = start_stage(arguments)
    build = arguments.build
    is_reference = arguments.checkpoint == "reference"
    cell = f"{arguments.checkpoint}-{arguments.decoder}"
    source = build / "models/reference/answers.jsonl" if is_reference else build / "answers" / f"{cell}.jsonl"
    block = None if is_reference else params.block(arguments.decoder)
    described = cell_params(build, arguments.checkpoint, arguments.decoder, block, params.decode.steps)
    logged = {**tracked(params, "seed", "decode", "evaluate"), **described}
    with stage_run("evaluate", cell, logged) as run:
        log_inputs(run, "evaluate", build, cell)
        examiner = Examiner.load(build, params, compare=not is_reference)
        written = read_jsonl(source)
        results = examiner.results(arguments.checkpoint, arguments.decoder, written, source)
        out = build / "evaluation" / f"{cell}.json"
        write_json(out, results)
        log_scores(run, build, results, params.decode.steps)
        if not run.went_on:
            prompts = {number: row["prompt"] for number, row in examiner.corpus.examples.items()}
            log_samples(run, written, prompts, arguments.checkpoint, arguments.decoder)
        if examiner.judge is not None:
            run.metrics({f"judge_{name}": count for name, count in examiner.judge.costs().items()})
        run.outputs([out])


if __name__ == "__main__":
    run_script(main)
