"""The table, claims, figures and report.html from what the other stages left. Prints the table."""

from dataclasses import asdict
from pathlib import Path

from dlm.pipeline.start import run_script, stage_arguments, start_stage
from dlm.analysis.claims import judge_claims
from dlm.analysis.export import to_csv, to_latex
from dlm.analysis.figures import report_figures, write_figures
from dlm.analysis.page import render, side_by_side
from dlm.analysis.selection import selection_markdown, selection_rows
from dlm.analysis.table import at_budget, bound_rows, build_table, headline, long_runs, to_markdown
from dlm.config.params import tracked
from dlm.files import atomic_directory, read_json, read_jsonl, read_parquet, write_json, write_text
from dlm.pipeline import times
from dlm.pipeline.records import log_report
from dlm.pipeline.tracking import stage_run

CHECKPOINTS = ("sft", "r2ft")
OUTPUTS = (
    *("claims.json", "table.json", "table.md", "table.csv", "table.tex", "metrics", "selection.md"),
    *("figures", "report.html"),
)
TRAINED = ("base", "sft", "sft_answer", "r2ft", "reference")


def main() -> None:
    parser = stage_arguments(__doc__)
    parser.add_argument("--results", type=Path, help="folder to write to (default: params.yaml: report.results)")
    arguments = parser.parse_args()
    params = start_stage(arguments)
    build, results = arguments.build, arguments.results or Path(params.report.results)
    with stage_run("report", params=tracked(params, "report")) as run:
        cells = [(checkpoint, decoder) for checkpoint in CHECKPOINTS for decoder in params.report.decoders]
        budgets, judged = params.decode.steps, params.decode.judged_steps
        choices = {d: read_json(build / "selection" / f"{d}.json") for d in params.report.decoders}
        settings = {(d, choice["steps"]): choice["options"] for d, made in choices.items() for choice in made}
        rows = build_table(
            [
                row
                for c, d in [("reference", "nucleus"), *cells]
                for row in read_json(build / "evaluation" / f"{c}-{d}.json")
            ],
            settings,
        )
        grids = [build / "selection" / f"{decoder}-grid.json" for decoder in params.report.decoders]
        grid = [row for path in grids if path.is_file() for row in read_json(path)]
        paths = [build / "evaluation" / "ablation" / f"{checkpoint}.json" for checkpoint in CHECKPOINTS]
        # A run within a time budget may have come without them (tools/pipeline.py); DVC runs them first.
        ablation = [row for path in paths if path.is_file() for row in read_json(path)]
        paths = [build / "evaluation" / "likelihood" / f"{name}.json" for name in TRAINED if name != "reference"]
        likelihoods = [read_json(path) for path in paths if path.is_file()]
        curves = {name: read_json(build / "models" / name / "curve.json") for name in TRAINED}
        answers = {(c, d): at_budget(read_jsonl(build / "answers" / f"{c}-{d}.jsonl"), judged) for c, d in cells}
        examples = read_parquet(build / "data" / "eval.parquet", ["id", "instruction", "input", "output"])
        stats = read_json(build / "data" / "stats.json")

        traced = CHECKPOINTS[-1]
        traces = {decoder: answers[traced, decoder] for decoder in params.report.decoders}
        figures = report_figures(rows, grid, judged, curves, traced, traces)
        long, bounds = long_runs(ablation), bound_rows(likelihoods)
        markdown = to_markdown(rows, long, bounds)
        claims = judge_claims(rows, grid, ablation, judged)
        selection = selection_rows(grid, settings)
        drawn = write_figures(results / "figures", figures)
        page = render(
            title=params.report.title,
            rows=rows,
            selection=selection,
            ablation=ablation,
            likelihoods=likelihoods,
            claims=claims,
            figures=drawn,
            samples=side_by_side(
                examples,
                answers,
                read_jsonl(build / "models" / "reference" / "answers.jsonl"),
                params.decode.seeds[0],
                params.report.samples,
            ),
            setting={
                "prompts": len(examples),
                "seeds": len(params.decode.seeds),
                "budgets": budgets,
                "judged_steps": judged,
                "gen_length": params.decode.gen_length,
                "train_examples": stats["examples"]["train"],
            },
            params_text=arguments.params.read_text(encoding="utf-8"),
            paper=params.report.paper,
        )
        write_json(results / "claims.json", [asdict(claim) for claim in claims])
        write_json(results / "table.json", rows)
        with atomic_directory(results / "metrics") as folder:
            for cell, numbers in headline(rows).items():
                write_json(folder / f"{cell}.json", numbers)
        write_text(results / "table.md", markdown)
        write_text(results / "table.csv", to_csv(rows))
        write_text(results / "table.tex", to_latex(rows, long, bounds))
        write_text(results / "selection.md", selection_markdown(selection))
        write_text(results / "report.html", page)
        log_report(run, results)
        run.outputs([results / name for name in OUTPUTS])
    print(markdown, end="")
    times.show()


if __name__ == "__main__":
    run_script(main)
