"""A decoder's settings for each number of steps, chosen among its candidates on prompts of valid.

Candidates are the lists in the decoder's block of params.yaml; without lists there is nothing to decode.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlm.pipeline.start import run_script, stage_arguments, start_stage
from dlm.config.params import Params, tracked
from dlm.decoding.answers import load_for
from dlm.decoding.budgets import choose
from dlm.evaluation.cell import load_corpus
from dlm.evaluation.setting import measure
from dlm.files import write_json
from dlm.pipeline import processes
from dlm.pipeline.progress import progress
from dlm.pipeline.records import log_inputs
from dlm.pipeline.tracking import stage_run


def main() -> None:
    parser = stage_arguments(__doc__)
    parser.add_argument("--decoder", required=True, help="a block of params.yaml: decoding.<name>")
    parser.add_argument("--checkpoints", nargs="+", required=True, help="folders of build/models that share the choice")
    arguments = parser.parse_args()
    params = start_stage(arguments)
    name, candidates = arguments.decoder, params.block(arguments.decoder).candidates
    tracked_params = tracked(params, "select", "decode", f"decoding.{name}")
    with stage_run("select", cell=name, params=tracked_params) as run:
        log_inputs(run, "select", arguments.build)
        grid = []
        if len(candidates) > 1:
            grid = measure_all(params, arguments.build, name, candidates, arguments.checkpoints)
        if not processes.is_main():
            return
        choices = [{"steps": steps, "options": choose(candidates, grid, steps)} for steps in params.decode.steps]
        outs = [arguments.build / "selection" / file for file in (f"{name}.json", f"{name}-grid.json")]
        # Two files, so that new figures with the same choice do not make DVC decode again.
        for out, content in zip(outs, (choices, grid), strict=True):
            write_json(out, content)
        run.table("selection", grid)
        run.outputs(outs)


def measure_all(
    params: Params, build: Path, name: str, candidates: Sequence[dict[str, Any]], checkpoints: list[str]
) -> list[dict[str, Any]]:
    """A row of figures with intervals for each checkpoint, number of steps and candidate."""
    corpus = load_corpus(build, params.data, params.evaluate, "valid")
    prompts, seeds = params.select.prompts, params.select.seeds
    settings = list(itertools.product(params.decode.steps, candidates))
    rows, count = [], len(checkpoints) * len(settings) * prompts * len(seeds)
    with progress(f"select@{name}", count, "answers") as advance:
        for checkpoint in checkpoints:
            weights = build / "models" / checkpoint
            lm = load_for(f"select@{name}", weights, params.decode)
            for steps, candidate in settings:
                options = params.decoder(name, **candidate)
                summary = measure(
                    lm, corpus, options, params, prompts=prompts, seeds=seeds, steps=steps, advance=advance
                )
                rows.append({"checkpoint": checkpoint, "decoder": name, "candidate": candidate, **summary})
    return rows


if __name__ == "__main__":
    run_script(main)
