"""Block diffusion on the base, records and steps of the SFT-only model, decoded and evaluated at the same budgets and
beside cells of the matrix: build/families/block_diffusion, results/block_diffusion (sweeps)."""

from pathlib import Path
from typing import Any

from dlm.pipeline.start import run_script, stage_arguments, start_stage
from dlm.analysis.blocks import block_figures, block_table
from dlm.analysis.figures import write_figures
from dlm.analysis.table import to_markdown
from dlm.config.params import Params, tracked
from dlm.data.splits import read_split
from dlm.decoding.answers import decode_budgets, load_for
from dlm.errors import UserError
from dlm.evaluation.examine import Examiner
from dlm.files import read_json, write_table
from dlm.models.adapt import make_block_causal
from dlm.models.adapters import unwrapped
from dlm.pipeline import processes
from dlm.pipeline.progress import progress
from dlm.pipeline.records import log_checkpoint, log_inputs
from dlm.pipeline.tracking import stage_run
from dlm.training.blocks import diffusion_trainer
from dlm.training.sft import FineTuning

NAME = "block_diffusion"
Rows = list[dict[str, Any]]


def main() -> None:
    arguments = stage_arguments(__doc__).parse_args()
    params = start_stage(arguments)
    build, weights = arguments.build, arguments.build / "families" / NAME
    out = Path(params.report.results) / NAME
    beside, settings = cells_beside(params, build)
    logged = {**tracked(params, "seed", "sft", "decode"), NAME: params.block_diffusion.values}
    with stage_run(NAME, params=logged) as run:
        log_inputs(run, "sft", build)
        curve = train(params, build, weights)
        log_checkpoint(run, weights, curve)
        answers = decode(params, build, weights)
        examiner = Examiner.load(build, params)
        cells = [row for name, found in answers.items() for row in examiner.results(NAME, name, found, weights)]
        if not processes.is_main():
            return
        rows = block_table(beside, settings, cells, params.block_diffusion.block_size)
        markdown = to_markdown(rows) + "\n![quality, repetition and length over passes](figures/passes.png)\n"
        write_table(out, rows, markdown)
        write_figures(out / "figures", block_figures(rows))
        run.table(NAME, rows)
        run.outputs([weights, out])
    print(markdown, end="")


def cells_beside(params: Params, build: Path) -> tuple[Rows, dict[tuple[str, int], Any]]:
    """The results of the cells that stand beside it, and the settings that were chosen for their decoders.

    Raises:
        UserError: a cell that was not evaluated.
    """
    found: Rows = []
    settings: dict[tuple[str, int], Any] = {}
    for cell in params.block_diffusion.beside:
        path, decoder = build / "evaluation" / f"{cell}.json", cell.partition("-")[2]
        if not path.is_file():
            raise UserError(f"params.yaml: block_diffusion.beside: {path} is not there; evaluate {cell} first")
        found += read_json(path)
        chosen = build / "selection" / f"{decoder}.json"
        made = read_json(chosen) if chosen.is_file() else []
        settings |= {(decoder, choice["steps"]): choice["options"] for choice in made}
    return found, settings


def train(params: Params, build: Path, out: Path) -> list[dict[str, float]]:
    """What the stage sft does for the SFT-only model, with the mask of blocks; adapters are merged."""
    blocks, tuning = params.block_diffusion, FineTuning.load(build, params)
    make_block_causal(unwrapped(tuning.model), blocks.block_size)
    objective = diffusion_trainer(tuning.model, t_range=blocks.bounds, **tuning.settings)
    model, curve = tuning.fit(NAME, objective, params.sft.training.steps + params.r2ft.training.steps)
    tuning.save(out, model, curve)
    processes.gather(None)  # before it is loaded it has been written
    return curve


def decode(params: Params, build: Path, weights: Path) -> dict[str, Rows]:
    """The answers to the evaluation prompts by decoder, at every budget."""
    settings, blocks = params.decode, params.block_diffusion
    lm = load_for(NAME, weights, settings)
    prompts = read_split(build / "data", "eval", ["id", "prompt_ids"])
    count = len(prompts) * len(settings.seeds) * len(settings.steps) * len(blocks.decoders)
    with progress(NAME, count, "answers") as advance:
        return {name: decode_budgets(lm, prompts, blocks.options(name), settings, advance) for name in blocks.decoders}


if __name__ == "__main__":
    run_script(main)
