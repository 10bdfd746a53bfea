"""Decoders that need no training over forward passes, without and with Conv's window: under results/rivals (sweeps)."""

from pathlib import Path
from typing import Any

from dlm.pipeline.start import run_script, stage_arguments, start_stage
from dlm.analysis.figures import write_figures
from dlm.analysis.rivals import rival_figures, to_markdown
from dlm.config.params import Params, tracked
from dlm.decoding.answers import load_for
from dlm.decoding.lm import DiffusionLM
from dlm.decoding.options import DecoderOptions, PcSamplerOptions, override
from dlm.errors import UserError
from dlm.evaluation.area import answer_areas, mean_of_areas
from dlm.evaluation.cell import Corpus, load_corpus, summarise
from dlm.evaluation.setting import answer
from dlm.files import write_table
from dlm.pipeline import processes
from dlm.pipeline.progress import Advance, progress, tell
from dlm.pipeline.tracking import stage_run

Rows = list[dict[str, Any]]
Curves = dict[bool, list[tuple[DecoderOptions, int]]]  # with the window or not -> its settings
KEPT = (
    "n",
    "prompts",
    "nfe",
    "nfe_ci",
    "quality",
    "quality_ci",
    "length",
    "length_ci",
    "repetition_4",
    "repetition_4_ci",
)


def main() -> None:
    arguments = stage_arguments(__doc__).parse_args()
    params = start_stage(arguments)
    build, rivals = arguments.build, params.rivals
    curves = {name: settings(name, params, build) for name in rivals.decoders}
    with stage_run("rivals", cell=rivals.checkpoint, params=tracked(params, "rivals", "decode")) as run:
        corpus = load_corpus(build, params.data, params.evaluate)
        weights = build / "models" / rivals.checkpoint
        run.decodes(weights)
        lm = load_for("rivals", weights, params.decode)
        rows: Rows = []
        areas: Rows = []
        count = sum(len(points) for curve in curves.values() for points in curve.values())
        with progress("rivals", count * rivals.prompts * len(rivals.seeds), "answers") as advance:
            for name, curve in curves.items():
                try:
                    found, area = measure_curves(name, curve, lm, corpus, params, advance)
                except UserError as error:  # what this model cannot do, wino with shifted logits for one
                    tell(f"rivals: {name} is left out: {error}")
                    continue
                rows += found
                areas.append(area)
        if not processes.is_main():
            return
        out = Path(params.report.results) / "rivals"
        markdown = to_markdown(areas, rows, rivals.passes)
        write_table(out, {"passes": rivals.passes, "areas": areas, "rows": rows}, markdown)
        write_figures(out / "figures", rival_figures(rows))
        run.table("rivals", rows)
        run.outputs([out])
    print(markdown, end="")


def settings(name: str, params: Params, build: Path) -> Curves:
    """A decoder's settings, without and with the window. PC-Sampler's background is the training answers."""
    counts = str(build / "data/training/vocabulary.json")
    curves: Curves = {}
    for windowed in (False, True):
        points = params.rivals.curve(name, windowed, params.decode.gen_length)
        curves[windowed] = [
            (override(options, name, background=counts), steps)
            if isinstance(options, PcSamplerOptions) and options.background is None
            else (options, steps)
            for options, steps in points
        ]
    return curves


def measure_curves(
    name: str, curves: Curves, lm: DiffusionLM, corpus: Corpus, params: Params, advance: Advance
) -> tuple[Rows, dict[str, Any]]:
    """A row for each setting; and the areas under the two curves with their difference, of the same prompts."""
    rivals, samples = params.rivals, params.evaluate.bootstrap_samples
    rows: Rows = []
    areas, passes = {}, {}
    for windowed, points in curves.items():
        scored = []
        for options, steps in points:
            _, found = answer(
                lm, corpus, options, params, prompts=rivals.prompts, seeds=rivals.seeds, steps=steps, advance=advance
            )
            scored.append(found)
            summary = summarise(found, samples)
            head = {"decoder": name, "window": windowed, "setting": setting(options, steps, name, params)}
            rows.append({**head, "steps": steps, **{key: summary[key] for key in KEPT}})
        areas[windowed] = answer_areas(scored, rivals.passes)
        nfe = [row["nfe"] for row in rows if row["window"] == windowed]
        passes[windowed] = [min(nfe), max(nfe)]
    gain = {place: areas[True][place] - areas[False][place] for place in areas[False]}
    result: dict[str, Any] = {"decoder": name, "passes": passes[False], "passes_with_window": passes[True]}
    for key, values in (("area", areas[False]), ("area_with_window", areas[True]), ("difference", gain)):
        result[key], result[f"{key}_ci"] = mean_of_areas(values, samples)
    return rows, result


def setting(options: DecoderOptions, steps: int, name: str, params: Params) -> str:
    """What tells a point from the others of its curve: `gamma 0.1`, `S 16`."""
    block = params.rivals.decoders[name] or {}
    lists = [key for key, value in block.items() if isinstance(value, list)]
    values = {key: steps if key == "steps" else getattr(options, key) for key in lists}
    return ", ".join(f"{'S' if key == 'steps' else key} {value}" for key, value in values.items())


if __name__ == "__main__":
    run_script(main)
