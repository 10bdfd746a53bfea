"""Metrics of one cell's answers at each budget and win rates against the reference, with intervals, as a JSON list."""

from typing import Any

from dlm.pipeline.start import run_script, stage_arguments, start_stage
from dlm.config.params import tracked
from dlm.evaluation.area import quality_area
from dlm.evaluation.cell import check_complete, closeness, load_corpus, real_features, score_answers, summarise
from dlm.evaluation.judges.choice import make_judges
from dlm.evaluation.preferences import add_grades, add_preferences, baseline_of, places, read_difficulty
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
        corpus = load_corpus(build, params.data, params.evaluate)
        judge, grader = make_judges(params.evaluate.judge, corpus.judge, params.seed)
        baseline = difficulty = None
        if judge is not None and not is_reference:
            baseline = baseline_of(read_jsonl(build / "models/reference/answers.jsonl"))
            if params.evaluate.judge.difficulty is not None:
                difficulty = read_difficulty(params.evaluate.judge.difficulty, places(corpus.examples))
        budgets: dict[int | None, list[dict[str, Any]]] = {}
        for answer in read_jsonl(source):
            budgets.setdefault(answer.get("steps"), []).append(answer)  # the reference's have none
        real = real_features(corpus, params.decode.batch_size)
        results, scored = [], {}
        for steps, answers in budgets.items():
            check_complete(answers, corpus, source)
            rows = score_answers(answers, corpus, params.decode.batch_size)
            if judge is not None and baseline is not None:
                add_preferences(rows, answers, corpus.examples, baseline, judge)
            if grader is not None:
                add_grades(rows, answers, corpus.examples, grader)
            result = {
                "checkpoint": arguments.checkpoint,
                "decoder": arguments.decoder,
                "steps": steps,
                "gen_length": params.decode.gen_length,
                **summarise(rows, params.evaluate.bootstrap_samples, difficulty),
                **closeness(answers, real, corpus, params.decode.batch_size, params.seed),
            }
            results.append(result)
            if steps is not None:
                scored[steps] = rows
        area = quality_area(scored, params.evaluate.bootstrap_samples)
        results = [{**result, **area} for result in results]
        out = build / "evaluation" / f"{cell}.json"
        write_json(out, results)
        log_scores(run, build, results, params.decode.steps)
        if not run.went_on:
            written = [answer for answers in budgets.values() for answer in answers]
            prompts = {number: row["prompt"] for number, row in corpus.examples.items()}
            log_samples(run, written, prompts, arguments.checkpoint, arguments.decoder)
        if judge is not None:
            run.metrics({f"judge_{name}": count for name, count in judge.costs().items()})
        run.outputs([out])


if __name__ == "__main__":
    run_script(main)
