"""Infilling and goal-conditioned generation by decoder and steps: table.json and table.md under results (sweeps)."""

import itertools
import json
from pathlib import Path
from typing import Any

from dlm.pipeline.start import run_script, stage_arguments, start_stage
from dlm.config.params import Params, tracked
from dlm.data.splits import read_split
from dlm.decoding.answers import load_for
from dlm.decoding.lm import DiffusionLM
from dlm.decoding.options import DecoderOptions
from dlm.errors import UserError
from dlm.evaluation.bidirectional import METRICS, TASKS, Gap, Task, make_gap, score_gap, summarise
from dlm.evaluation.builtin.grammar import GRAMMAR, load_grammar
from dlm.evaluation.slots import SlotJudge
from dlm.files import write_table
from dlm.pipeline.tracking import stage_run

CHECKPOINTS = ("sft", "r2ft")
COLUMNS = ["id", "prompt_ids", "answer_ids", "output", "meta"]


def main() -> None:
    arguments = stage_arguments(__doc__).parse_args()
    params = start_stage(arguments)
    build = arguments.build
    if not params.data.has_grammar:
        raise UserError(
            "params.yaml: data.source must be builtin for the infill stage, and data.builtin.task gazetteer: its gaps "
            "are cut and judged by that corpus's sentences"
        )
    judge = SlotJudge(load_grammar(build / "data" / GRAMMAR))
    examples = read_split(build / "data", "eval", COLUMNS)
    rows = []
    with stage_run("infill", params=tracked(params, "infill", "decode", "decoding")) as run:
        for checkpoint in CHECKPOINTS:
            lm = load_for(f"infill@{checkpoint}", build / "models" / checkpoint, params.decode, compile=False)
            gaps = {task: cut(examples, task, judge, lm, params) for task in TASKS}
            for task, steps, decoder in itertools.product(TASKS, params.infill.steps, params.infill.decoders):
                scores = fill(lm, gaps[task], params.decoder(decoder, eos_fill=False), steps, judge, params)
                head = {"checkpoint": checkpoint, "task": task, "decoder": decoder, "steps": steps}
                rows.append({**head, **summarise(scores, params.evaluate.bootstrap_samples)})
        out = Path(params.report.results) / "infill"
        markdown = to_markdown(rows)
        write_table(out, rows, markdown)
        run.table("infill", rows)
        run.outputs([out])
    print(markdown, end="")


def cut(examples: list[dict[str, Any]], task: Task, judge: SlotJudge, lm: DiffusionLM, params: Params) -> list[Gap]:
    """The first `infill.prompts` gaps of a task."""
    length = params.data.canvas_length
    made = (make_gap(row, json.loads(row["meta"]), task, judge, lm.tokenizer, length, lm.padding) for row in examples)
    return list(itertools.islice((gap for gap in made if gap is not None), params.infill.prompts))


def fill(
    lm: DiffusionLM, gaps: list[Gap], options: DecoderOptions, steps: int, judge: SlotJudge, params: Params
) -> list[dict[str, Any]]:
    """The figures of every gap and seed."""
    scores = []
    for seed in params.infill.seeds:
        out = lm.infill([gap.ids for gap in gaps], options, steps=steps, seed=seed, batch_size=params.decode.batch_size)
        scores += [
            {"id": gap.id, **score_gap(gap, filled[0], judge)} for gap, filled in zip(gaps, out.gaps, strict=True)
        ]
    return scores


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
