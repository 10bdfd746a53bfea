"""The report as one HTML page that needs nothing else: no scripts, images inside, generated text never markup."""

import base64
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dlm.analysis import table
from dlm.analysis.claims import RULE, Claim, density_note
from dlm.analysis.figures import ReportFigure
from dlm.analysis.paper import TABLES, with_ours
from dlm.analysis.selection import selection_rows
from dlm.decoding.budgets import at_budget

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "numpy", "matplotlib", "mlflow", "dvc")
Answers = Mapping[tuple[str, str], Sequence[dict[str, Any]]]


def render(
    *,
    title: str,
    rows: Sequence[table.Row],
    grid: Sequence[table.Row],
    ablation: Sequence[table.Row],
    claims: Sequence[Claim],
    figures: Sequence[tuple[ReportFigure, bytes]],
    samples: Sequence[dict[str, Any]],
    setting: Mapping[str, Any],
    params_text: str,
    paper: str,
) -> str:
    """The page's HTML.

    Args:
        title: of the page.
        rows: of build_table.
        grid: the select stage's rows of all decoders.
        ablation: the ablation stage's rows of all checkpoints.
        claims: of judge_claims.
        figures: each with its PNG.
        samples: of side_by_side.
        setting: prompts, seeds, budgets, judged_steps, gen_length and train_examples, for the introduction.
        params_text: params.yaml as it is.
        paper: whose figures stand beside ours, a key of paper.TABLES.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # Functions of the table, so that page and markdown print the same numbers.
    environment.globals.update(
        number=table.number, interval=table.interval, is_best=table.is_best, name_of=table.name_of
    )
    judged = [*at_budget(rows, setting["judged_steps"]), *table.speed_rows(ablation)]
    return environment.get_template("report.html.j2").render(
        title=title,
        rows=rows,
        groups=table.groups(rows, table.long_runs(ablation)),
        selection=selection_rows(grid),
        exact=table.quality_axes(rows)[0].name == "well_formed",
        bold=table.BOLD,
        claims=claims,
        rule=RULE,
        density=density_note(setting["gen_length"], setting["budgets"], setting["judged_steps"]),
        figures=[(figure, base64.b64encode(png).decode("ascii")) for figure, png in figures],
        samples=samples,
        setting=setting,
        params_text=params_text,
        versions=versions(),
        paper=[(published, with_ours(published, judged)) for published in TABLES[paper]],
    )


def side_by_side(
    examples: Sequence[dict[str, Any]], answers: Answers, reference: Sequence[dict[str, Any]], seed: int, count: int
) -> list[dict[str, Any]]:
    """The first `count` prompts, each with the expected answer and everyone's answer of one seed.

    Args:
        examples: evaluation rows (id, instruction, input, output).
        answers: rows by (checkpoint, decoder).
        reference: the reference's rows.
        seed: the decoding seed to show.
        count: how many prompts.
    """
    answers_by_prompt = {cell: _by_prompt(rows, seed) for cell, rows in answers.items()}
    reference_by_prompt = _by_prompt(reference, seed)
    checkpoints = list(dict.fromkeys(checkpoint for checkpoint, _ in answers))
    decoders = list(dict.fromkeys(decoder for _, decoder in answers))
    return [
        {
            **{key: example[key] for key in ("id", "instruction", "input", "output")},
            "reference": reference_by_prompt.get(example["id"]),
            "checkpoints": checkpoints,
            "answers": {
                decoder: [
                    answers_by_prompt.get((checkpoint, decoder), {}).get(example["id"]) for checkpoint in checkpoints
                ]
                for decoder in decoders
            },
        }
        for example in examples[:count]
    ]


def _by_prompt(rows: Sequence[dict[str, Any]], seed: int) -> dict[int, dict[str, Any]]:
    return {row["id"]: row for row in rows if row["seed"] == seed}


def versions() -> dict[str, str]:
    """Python's and the main packages' versions, of those that are installed."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed
