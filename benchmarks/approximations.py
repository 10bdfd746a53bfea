"""What the approximations and the early commits cost in quality, beside what they save.

Families of decoders; each member is compared with the first of its family, prompt by prompt and seed by seed (the same
noise). Quality on the builtin corpus is the exact judge's: share of well-formed sentences, and slot error rate; on
others the share of inliers under the reference, and of repeated 4-grams. With 95% bootstrap intervals over prompts; so
are the changes against the family's first. Seconds are of whole runs over all prompts, the members taking turns within
each seed. Decoders are blocks of params.yaml or names of dlm.decoding.options, with options after a colon; EOS-fill is
on unless a decoder says otherwise.

Needs the artefacts of prepare, reference and the checkpoint's own stage (make repro). Writes OUT.json and OUT.md.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import (
    Arguments,
    check_device,
    command_line,
    default_device,
    grid,
    numbers,
    ratios,
    report,
    spread,
    write,
)

from dlm.pipeline.start import run_script
from dlm.config.params import Params, load_params
from dlm.config.schema import require
from dlm.config.yaml import split_variant
from dlm.decoding.answers import decode_prompts
from dlm.decoding.lm import DiffusionLM
from dlm.decoding.options import DecoderOptions, decoder_options
from dlm.evaluation.bootstrap import bootstrap_ci
from dlm.evaluation.cell import Corpus, load_corpus, score_answers, summarise
from dlm.pipeline.hardware import hardware

RESTRICT = "semi_ar:rule=low_confidence,variant=restrict"
FAMILIES = [
    ["conv", "conv:suffix=none", "conv:suffix=dropout"],
    ["conv:rule=low_confidence", "conv:rule=low_confidence,suffix=none", "conv:rule=low_confidence,suffix=dropout"],
    [RESTRICT, f"{RESTRICT},kv_cache=prefix", f"{RESTRICT},kv_cache=dual"],
    ["low_confidence", "threshold", "factor"],
]
EXACT = {"well_formed": "well-formed ↑", "slot_error_rate": "slot errors ↓"}
ESTIMATED = {"inlier": "inlier ↑", "repetition_4": "repetition-4 ↓"}
Row = dict[str, Any]


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    params = load_params(arguments.params)
    gen_length = params.decode.gen_length
    families = {steps: check(params, arguments.families, steps, gen_length) for steps in arguments.steps}
    corpus = load_corpus(arguments.build, params.data, params.evaluate)
    lm = DiffusionLM.load(arguments.build / "models" / arguments.checkpoint, arguments.device, params.decode.precision)
    rows: list[Row] = []
    for steps, checked in families.items():
        for family in checked:
            rows += compare(arguments, params, lm, corpus, family, steps)
    result = {
        "title": arguments.out.name,
        "command": command_line(),
        "hardware": hardware(str(lm.denoiser.device)),
        "settings": {
            "checkpoint": Path(arguments.checkpoint).name,
            "gen_length": gen_length,
            "batch_size": params.decode.batch_size,
            "seeds": arguments.seeds,
        },
        "rows": rows,
    }
    write(arguments.out, result, to_markdown(result))


def parse() -> argparse.Namespace:
    parser = Arguments(__doc__)
    add = parser.add_argument
    add("--params", type=Path, default=Path("params.yaml"), help="parameter file (default: params.yaml)")
    add("--build", type=Path, default=Path("build"), help="folder of the artefacts (default: build)")
    add("--checkpoint", default="sft", help="a folder of build/models (default: sft), or a path")
    add("--family", nargs="+", action="append", dest="families", metavar="DECODER", help="the exact one first; repeat")
    add("--prompts", type=int, default=50, metavar="N", help="of the evaluation set (default 50)")
    add("--steps", nargs="+", type=int, default=[16, 128], metavar="N", help="S (default 16 and 128)")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="decoding seeds, also the timed repeats")
    add("--device", default=default_device(), help="cpu or cuda (default: a GPU if any)")
    add("--threads", type=int, default=torch.get_num_threads(), metavar="N", help="of torch on the CPU")
    add("--out", type=Path, required=True, help="where to write, without an ending: results/benchmarks/NAME")
    arguments = parser.parse_args()
    arguments.families = arguments.families or FAMILIES
    for name in ("prompts", "threads"):
        require(getattr(arguments, name) >= 1, f"--{name}", "at least 1", getattr(arguments, name))
    for steps in arguments.steps:
        require(steps >= 1, "--steps", "at least 1", steps)
    check_device(arguments.device)
    return arguments


def check(
    params: Params, families: Sequence[Sequence[str]], steps: int, gen_length: int
) -> list[list[tuple[str, DecoderOptions]]]:
    """The options of every member. Raises UserError for an unknown one, or steps it cannot divide."""
    found = []
    for family in families:
        found.append([(text, options_of(params, text)) for text in family])
        for text, options in found[-1]:
            options.check_lengths(gen_length, steps, f"--family {text}")
    return found


def options_of(params: Params, text: str) -> DecoderOptions:
    """A block of params.yaml with changes, or a decoder of the library with EOS-fill."""
    name, changes = split_variant(text, f"decoder {text!r}")
    if name in params.decoding:
        return params.decoder(name, **changes)
    return decoder_options(name, {"eos_fill": True, **changes}, name)


def compare(
    arguments: argparse.Namespace,
    params: Params,
    lm: DiffusionLM,
    corpus: Corpus,
    family: list[tuple[str, DecoderOptions]],
    steps: int,
) -> list[Row]:
    """One row for each member of a family."""
    examples = list(corpus.examples.values())[: arguments.prompts]
    setting: dict[str, Any] = {
        "gen_length": params.decode.gen_length,
        "batch_size": params.decode.batch_size,
        "steps": steps,
    }
    answers: dict[str, list[Row]] = {text: [] for text, _ in family}
    seconds: dict[str, list[float]] = {text: [] for text, _ in family}
    for _, options in family:
        decode_prompts(lm, examples[:2], options, seeds=[0], **setting)  # warm-up
    for seed in arguments.seeds:
        for text, options in family:
            some, time = decode_prompts(lm, examples, options, seeds=[seed], **setting)
            answers[text] += some
            seconds[text].append(time)
            report(f"S {steps}, seed {seed}, {text}: {time:.1f} s")
    scores = {text: score_answers(found, corpus, params.decode.batch_size) for text, found in answers.items()}
    first, names = family[0][0], ESTIMATED if corpus.judge is None else EXACT
    samples = params.evaluate.bootstrap_samples
    return [
        {
            "decoder": text,
            "base": first,
            "steps": steps,
            "seconds": seconds[text],
            "seconds_per_answer": spread([time / len(examples) for time in seconds[text]]),
            "speedup": ratios(seconds[first], seconds[text]),
            "change": {name: change(scores[text], scores[first], name, samples) for name in names},
            **summarise(scores[text], samples),
        }
        for text, _ in family
    ]


def change(scores: Sequence[Row], base: Sequence[Row], name: str, samples: int) -> dict[str, Any]:
    """The mean difference of a metric over the same prompts and seeds, with its 95% interval (over prompts)."""
    pairs = [(a.get(name), b.get(name), a["id"]) for a, b in zip(scores, base, strict=True)]
    known = [(a - b, cluster) for a, b, cluster in pairs if a is not None and b is not None]
    if not known:
        return {"mean": None, "ci": None}
    values, clusters = zip(*known, strict=True)
    interval = bootstrap_ci(values, clusters, samples=samples)
    return {"mean": sum(values) / len(values), "ci": interval and list(interval)}


def to_markdown(result: dict[str, Any]) -> str:
    machine, settings = result["hardware"], result["settings"]
    rows = result["rows"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores used"
    counts = f"{rows[0]['prompts']} prompts x {len(settings['seeds'])} seeds, {settings['gen_length']} tokens"
    heading = ["decoder", "S", "s/answer", "speed-up", "NFE"]
    names = list(rows[0]["change"])
    heading += [cell for name in names for cell in ((EXACT | ESTIMATED)[name], "change")]
    lines = [
        [
            row["decoder"],
            str(row["steps"]),
            numbers(row["seconds_per_answer"], 3),
            numbers(row["speedup"], 2) if row["decoder"] != row["base"] else "–",
            f"{row['nfe']:.1f}",
            *(cell for name in names for cell in quality(row, name)),
        ]
        for row in rows
    ]
    notes = (
        "- s/answer, speed-up: median (smallest–largest) over the seeds, members of a family taking turns; batches of "
        f"{settings['batch_size']}.\n- speed-up and change: against the family's first, the row above without them; "
        "change is paired.\n- [ , ]: 95% bootstrap interval over prompts."
    )
    title = f"**{result['title']}**: {settings['checkpoint']}, {counts}, on {where}, torch {machine['torch']}."
    return "\n\n".join([title, f"`{result['command']}`", grid([heading, *lines], 1), notes]) + "\n"


def quality(row: Row, name: str) -> tuple[str, str]:
    """A metric and its change, each with its interval."""
    found = row["change"][name]
    moved = "–" if row["decoder"] == row["base"] else with_interval(found["mean"], found["ci"], "+.3f")
    return with_interval(row[name], row[f"{name}_ci"], ".3f"), moved


def with_interval(value: float | None, interval: Sequence[float] | None, form: str) -> str:
    if value is None:
        return "–"
    return f"{value:{form}}" + (f" [{interval[0]:{form}}, {interval[1]:{form}}]" if interval else "")


if __name__ == "__main__":
    run_script(main)
