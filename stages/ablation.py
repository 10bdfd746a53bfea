"""Evidence for claims 4 and 5: the metrics of the ablation's runs, a row a run, with intervals, as a JSON list."""

from dlm.pipeline.start import run_script, stage_arguments, start_stage
from dlm.config.params import tracked
from dlm.evaluation.cell import load_corpus, score_answers, summarise
from dlm.files import read_jsonl, write_json
from dlm.pipeline.records import log_ablation, log_inputs
from dlm.pipeline.tracking import stage_run


def main() -> None:
    parser = stage_arguments(__doc__)
    parser.add_argument("--checkpoint", required=True, help="as in decode_ablation")
    arguments = parser.parse_args()
    params = start_stage(arguments)
    build, checkpoint = arguments.build, arguments.checkpoint
    with stage_run("ablation", cell=checkpoint, params=tracked(params, "decode", "evaluate")) as run:
        log_inputs(run, "ablation", build, checkpoint)
        corpus = load_corpus(build, params.data, params.evaluate)
        rows = []
        for line in read_jsonl(build / "ablation" / f"{checkpoint}.jsonl"):
            scores = score_answers(line["answers"], corpus, params.decode.batch_size)
            summary = summarise(scores, params.evaluate.bootstrap_samples)
            setting = {**line["options"], "steps": line["steps"]}
            # The run in place of `variant`, which among the options is semi-AR's.
            rows.append({**setting, **summary, "checkpoint": checkpoint, "variant": line["run"]})
        out = build / "evaluation" / "ablation" / f"{checkpoint}.json"
        write_json(out, rows)
        log_ablation(run, rows)
        run.outputs([out])


if __name__ == "__main__":
    run_script(main)
