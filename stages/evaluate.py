"""Metrics of one cell's answers and its win rates against the reference, with intervals, as one JSON file."""

from dlm import cli
from dlm.errors import run_script
from dlm.evaluation.cell import check_complete, closeness, load_corpus, score_answers, summarise
from dlm.evaluation.judges.choice import make_judges
from dlm.evaluation.preferences import add_grades, add_preferences, baseline_of, places, read_difficulty
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
        corpus = load_corpus(build, params.data, params.evaluate, params.decode.batch_size)
        answers = read_jsonl(source)
        check_complete(answers, corpus, source)
        rows = score_answers(answers, corpus, params.decode.batch_size)
        judge, grader = make_judges(params.evaluate.judge, params.data, params.seed)
        difficulty = None
        if judge is not None and not is_reference:
            baseline = baseline_of(read_jsonl(build / "models/reference/answers.jsonl"))
            add_preferences(rows, answers, corpus.examples, baseline, judge)
            if params.evaluate.judge.difficulty is not None:
                difficulty = read_difficulty(params.evaluate.judge.difficulty, places(corpus.examples))
        if grader is not None:
            add_grades(rows, answers, corpus.examples, grader)
        summary = summarise(rows, params.evaluate.bootstrap_samples, difficulty)
        result = {
            "checkpoint": arguments.checkpoint,
            "decoder": arguments.decoder,
            "steps": None if is_reference else params.decode.steps,
            "gen_length": params.decode.gen_length,
            **summary,
            **closeness(answers, corpus, params.decode.batch_size, params.seed),
        }
        out = build / "evaluation" / f"{cell}.json"
        write_json(out, result)
        run.metrics(result)
        if judge is not None:
            run.metrics({f"judge_{name}": count for name, count in judge.costs().items()})
        run.outputs([out])


if __name__ == "__main__":
    run_script(main)
