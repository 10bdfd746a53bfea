"""The report as one HTML page that needs nothing else: no scripts, images inside, generated text never markup."""

import base64
import math
import platform
import struct
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dlm.analysis import table
from dlm.analysis.claims import RULE, Claim, density_note
from dlm.analysis.figures import ReportFigure
from dlm.analysis.paper import TABLES, with_ours
from dlm.analysis.style import DPI

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "numpy", "matplotlib", "mlflow", "dvc")
VERDICTS = ("seen", "mixed", "not seen", "not tested")
FRONT_ROWS = 7  # and the reference
ON_PAGE = 1.3  # times the size in print
Answers = Mapping[tuple[str, str], Sequence[dict[str, Any]]]


def render(
    *,
    title: str,
    rows: Sequence[table.Row],
    selection: Sequence[table.Row],
    ablation: Sequence[table.Row],
    likelihoods: Sequence[table.Row],
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
        selection: of selection_rows.
        ablation: the ablation stage's rows of all checkpoints.
        likelihoods: the likelihood stage's, one a checkpoint.
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
        number=table.number, interval=table.interval, half_width=table.half_width, is_best=table.is_best
    )
    judged = [*table.at_budget(rows, setting["judged_steps"]), *table.speed_rows(ablation)]
    numbers = {verdict: [claim.number for claim in claims if claim.verdict == verdict] for verdict in VERDICTS}
    return environment.get_template("report.html.j2").render(
        title=title,
        rows=rows,
        front=front_table(rows, setting["judged_steps"]),
        groups=[
            (name, shown, columns, table.zero_note(shown, table.GROUPS.get(name, ())))
            for name, shown, columns in table.groups(rows, table.long_runs(ablation), table.bound_rows(likelihoods))
        ],
        selection=selection,
        exact=table.quality_axes(rows)[0].name == "well_formed",
        bold=table.BOLD,
        claims=claims,
        verdicts={verdict: found for verdict, found in numbers.items() if found},
        rule=RULE,
        density=density_note(setting["gen_length"], setting["budgets"], setting["judged_steps"]),
        figures=[(figure, base64.b64encode(png).decode("ascii"), *_on_page(png)) for figure, png in figures],
        samples=samples,
        setting=setting,
        params_text=params_text,
        versions=versions(),
        paper=[(published, with_ours(published, judged)) for published in TABLES[paper]],
    )


def front_table(rows: Sequence[table.Row], steps: int) -> dict[str, Any]:
    """The few rows and columns that the page begins with.

    Args:
        rows: of build_table.
        steps: the budget that the claims are judged at.

    Returns:
        rows, columns; rivals, the rows among which bold is the best; by, the heading of the column that ranks them;
        left_out, how many diffusion rows are not shown.
    """
    rivals, columns = table.over_passes(rows)
    if rivals:
        fewest = min(row["steps"] for row in rows if row["steps"] is not None)
        shown = (f"quality_{fewest}", f"quality_{steps}", f"nfe_{steps}", "area")
        columns = [column for column in columns if column.name in shown]
        by = columns[-1]
    else:
        rivals = table.at_budget(rows, steps)
        axes = table.quality_axes(rows)
        # Without an exact judge quality is the first axis, and repetition stands beside perplexity.
        exact = axes[0].name == "well_formed"
        columns = [table.COLUMNS["quality"], *axes] if exact else [*axes, table.COLUMNS["repetition_4"]]
        columns, by = [*columns, table.COLUMNS["nfe"]], columns[0]
    diffusion = [row for row in rivals if not table.is_reference(row)]
    ranked = sorted(diffusion, key=lambda row: -math.inf if row[by.name] is None else row[by.name], reverse=True)
    best = ranked[:FRONT_ROWS]
    return {
        "rows": [row for row in rivals if table.is_reference(row) or row in best],
        "columns": columns,
        "rivals": rivals,
        "by": by.heading,
        "left_out": len(ranked) - len(best),
    }


def _on_page(png: bytes) -> tuple[int, int]:
    """A picture's width and height in CSS pixels: a little larger than in print, as its IHDR and style.DPI say."""
    width, height = struct.unpack(">II", png[16:24])
    return round(ON_PAGE * 96 * width / DPI), round(ON_PAGE * 96 * height / DPI)


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
