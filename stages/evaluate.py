"""Metrics of one cell's answers that need no LLM judge, with intervals, as one JSON file."""

from dlm import cli
from dlm.errors import run_script
from dlm.evaluation.cell import load_corpus, score_answers, summarise
from dlm.files import read_jsonl, write_json
from dlm.params import tracked
from dlm.tracking import stage_run


def main() -> None:
    parser = cli.stage_arguments(__doc__)
    parser.add_argument("--checkpoint", required=True, help="as in decode; or reference, with --decoder nucleus")
    parser.add_argument("--decoder", required=True, help="as in decode")
    arguments = parser.parse_args()
    params = cli.stage_params(arguments)
    build = arguments.build
    is_reference = arguments.checkpoint == "reference"
    cell = f"{arguments.checkpoint}-{arguments.decoder}"
    source = build / "models/reference/answers.jsonl" if is_reference else build / "answers" / f"{cell}.jsonl"
    with stage_run("evaluate", cell=cell, params=tracked(params, "evaluate")) as run:
        corpus = load_corpus(build, params.data, params.evaluate.high_prior_tokens)
        rows = score_answers(read_jsonl(source), corpus, params.decode.batch_size)
        summary = summarise(rows, params.evaluate.bootstrap_samples)
        result = {
            "checkpoint": arguments.checkpoint,
            "decoder": arguments.decoder,
            "steps": None if is_reference else params.decode.steps,
            "gen_length": params.decode.gen_length,
            **summary,
        }
        out = build / "evaluation" / f"{cell}.json"
        write_json(out, result)
        run.metrics({name: value for name, value in summary.items() if isinstance(value, int | float)})
        run.outputs([out])


if __name__ == "__main__":
    run_script(main)
