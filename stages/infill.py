"""Infilling and goal-conditioned generation by decoder and steps: table.json and table.md under results (sweeps)."""

import json
from pathlib import Path
from typing import Any

from dlm import cli
from dlm.api import DiffusionLM
from dlm.data.grammar import load_grammar
from dlm.data.splits import read_split
from dlm.errors import UserError, run_script
from dlm.evaluation.bidirectional import METRICS, TASKS, make_gap, score_gap, summarise
from dlm.evaluation.slots import SlotJudge
from dlm.files import atomic_directory, write_json
from dlm.params import tracked
from dlm.tracking import stage_run

CHECKPOINTS = ("sft", "r2ft")
COLUMNS = ["id", "prompt_ids", "answer_ids", "output", "meta"]


def main() -> None:
    arguments = cli.stage_arguments(__doc__).parse_args()
    params = cli.stage_params(arguments)
    settings, build = params.infill, arguments.build
    if params.data.source != "builtin":
        raise UserError("params.yaml: data.source must be builtin for the infill stage: its judge is the corpus's own")
    judge = SlotJudge(load_grammar(params.data.builtin.grammar))
    examples = read_split(build / "data", "eval", COLUMNS)
    rows = []
    with stage_run("infill", params=tracked(params, "infill", "decode", "decoding")) as run:
        for checkpoint in CHECKPOINTS:
            lm = DiffusionLM.load(build / "models" / checkpoint, precision=params.decode.precision)
            for task in TASKS:
                made = [
                    make_gap(row, json.loads(row["meta"]), task, judge, lm.tokenizer, params.data.canvas_length)
                    for row in examples
                ]
                gaps = [gap for gap in made if gap is not None][: settings.prompts]
                for steps in settings.steps:
                    for decoder in settings.decoders:
                        options = params.decoder(decoder, eos_fill=False)
                        scores: list[dict[str, Any]] = []
                        for seed in settings.seeds:
                            out = lm.infill(
                                [gap.ids for gap in gaps],
                                options,
                                steps=steps,
                                seed=seed,
                                batch_size=params.decode.batch_size,
                            )
                            scores += [
                                {"id": gap.id, **score_gap(gap, filled[0], judge)}
                                for gap, filled in zip(gaps, out.gaps, strict=True)
                            ]
                        head = {"checkpoint": checkpoint, "task": task, "decoder": decoder, "steps": steps}
                        rows.append({**head, **summarise(scores, params.evaluate.bootstrap_samples)})
        out_folder = Path(params.report.results) / "infill"
        with atomic_directory(out_folder) as folder:
            write_json(folder / "table.json", rows)
            (folder / "table.md").write_text(to_markdown(rows), encoding="utf-8")
        run.table("infill", rows)
        run.outputs([out_folder])
    print(to_markdown(rows), end="")


def to_markdown(rows: list[dict[str, Any]]) -> str:
    """The table, every value with its 95% interval."""
    head = ["task", "S", "checkpoint", "decoder", "slot errors ↓", "well-formed ↑", "right context ↑"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    order = {name: place for place, name in enumerate((*TASKS, *CHECKPOINTS))}
    for row in sorted(rows, key=lambda row: (order[row["task"]], row["steps"], order[row["checkpoint"]])):
        values = [f"{row[name]:.2f} [{row[f'{name}_ci'][0]:.2f}, {row[f'{name}_ci'][1]:.2f}]" for name in METRICS]
        cells = [row["task"], str(row["steps"]), row["checkpoint"], row["decoder"], *values]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_script(main)
