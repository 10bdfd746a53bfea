"""The figures of the sweeps, each as PNG, SVG, PDF and data, and a page that shows them: under results/sweeps."""

from pathlib import Path

from dlm.pipeline.start import run_script, stage_arguments, start_stage
from dlm.analysis.figures import ReportFigure, write_figures
from dlm.analysis.sweeps import sweep_figures
from dlm.analysis.table import at_budget
from dlm.analysis.weights import weights_data
from dlm.config.params import tracked
from dlm.data.splits import read_split
from dlm.decoding.budgets import chosen
from dlm.files import read_json, read_jsonl, write_text
from dlm.pipeline.tracking import stage_run

CHECKPOINTS = ("sft", "r2ft")


def main() -> None:
    arguments = stage_arguments(__doc__).parse_args()
    params = start_stage(arguments)
    build, sweeps = arguments.build, arguments.build / "sweeps"
    results = Path(params.report.results) / "sweeps"
    with stage_run("figures", params=tracked(params, "sweeps")) as run:
        example = read_split(build / "data", "eval", ["id", "prompt_ids"])[0]
        answers = read_jsonl(build / "answers" / f"{CHECKPOINTS[-1]}-conv.jsonl")
        steps, prompt_length = params.decode.steps[0], len(example["prompt_ids"])
        conv = params.decoder("conv", **chosen(build, params, "conv", steps))
        answer = next(answer for answer in at_budget(answers, steps) if answer["id"] == example["id"])
        figures = sweep_figures(
            [row for c in CHECKPOINTS for row in read_json(sweeps / f"settings-{c}.json")],
            [read_json(sweeps / f"distance-{c}.json") for c in CHECKPOINTS],
            [read_json(sweeps / f"rejection-{name}.json") for name in params.sweeps.rejection.negatives],
            weights_data(answer, prompt_length, conv, steps),
            params.sweeps.baseline,
        )
        write_figures(results / "figures", figures)
        write_text(results / "README.md", page(figures))
        run.artifact(results / "figures")
        run.outputs([results / "figures", results / "README.md"])


def page(figures: list[ReportFigure]) -> str:
    """Title, sentence and picture of every figure, as Markdown."""
    parts = [
        f"## {figure.title}\n\n{figure.look_for}\n\n![{figure.title}](figures/{figure.name}.png)" for figure in figures
    ]
    head = (
        "# Sweeps\n\n`make sweeps` makes these figures; beside each PNG lie the SVG, the PDF and its numbers as JSON. "
        "Bars are 95% intervals, bootstrap over prompts. The paper's Fig. 7 is the report's `unmasking`."
    )
    return "\n\n".join([head, *parts]) + "\n"


if __name__ == "__main__":
    run_script(main)
