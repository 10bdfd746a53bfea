"""How fast the decoders are: against a plain implementation, and against the bare forward pass.

Three implementations of every (decoder, length) take turns, one repeat of each after the other, after a warm-up:
  dlm      the library's decode loop on a whole batch;
  plain    benchmarks/plain.py, one prompt at a time (another one each repeat), as published research code is written:
           full canvas, head at all positions, [1, L, V] probabilities in --plain-dtypes, no cache, no early exit;
  forward  the backbone's bare forward pass on the same batch, without head: the floor of a step. With --compile it
           comes compiled in the same way besides.
Ratios are taken repeat by repeat. Times are of whole runs of --steps steps. Medians, smallest and largest are reported.
A step's time is a run's over S, so that a cache that saves passes shows; the floor's share is that of NFE bare passes.

Decoders are names of dlm.decoding.options, with options after a colon: conv conv:suffix=none,kernel_size=65.
A GPU's memory is its allocator's peak above the weights; a CPU's is measured in a child process for each setting
(see benchmarks/memory.py; good to a few MiB), in the plain decoder's case with two steps, all of which need the same.

Writes OUT.json (all runs), OUT.md (the table), OUT.png, OUT.svg and OUT.pdf, and prints the table.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import (
    Arguments,
    check_device,
    command_line,
    default_device,
    ratios,
    report,
    spread,
    variant,
    write,
)
from memory import child_peak, peak_bytes
from plain import PlainDecoder, supports
from subjects import DTYPES, MODELS, Subject, load_subject
from table import to_markdown, write_figure

from dlm.pipeline.start import run_script
from dlm.config.schema import require
from dlm.decoding.decoder import make_decoder
from dlm.decoding.loop import decode
from dlm.decoding.noise import row_keys
from dlm.decoding.options import DecoderOptions
from dlm.models.compiled import MODES
from dlm.pipeline.hardware import hardware

PLAIN_DTYPES = {"float64": torch.float64, "float32": torch.float32}
FORWARD_SECONDS = 0.5  # one repeat of the forward pass is so many passes as take about this long
Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """One implementation at one size. `name` is dlm, plain <dtype>, forward or forward <compile mode>."""

    name: str
    decoder: str
    batch_size: int
    length: int
    prompt_length: int
    steps: int

    @property
    def gen_length(self) -> int:
        return self.length - self.prompt_length

    @property
    def bare(self) -> bool:
        """A forward pass and no decoder."""
        return not self.decoder


class Runner:
    """Runs a setting of a model, one repeat a call, and keeps the NFE (mean over the rows) of each."""

    def __init__(self, subject: Subject, setting: Setting) -> None:
        self.subject, self.setting = subject, setting
        self.options: DecoderOptions | None = variant(setting.decoder) if setting.decoder else None
        self.nfe: dict[int, float] = {}
        self.passes = 1

    def run(self, repeat: int, steps: int | None = None) -> None:
        """One repeat, of fewer steps than the setting's where asked for."""
        if self.setting.bare:
            return self._forward()
        return self._dlm(repeat, steps) if self.setting.name == "dlm" else self._plain(repeat, steps)

    def warm_up(self) -> None:
        """Two steps (of every block); the forward pass also learns how many passes make a repeat."""
        block = self.options.block_length if self.options else None
        blocks = self.setting.gen_length // block if block else 1
        self.run(0, min(2 * blocks, self.setting.steps))
        if self.setting.bare:
            seconds = timed(self.subject, partial(self.run, 0))
            self.passes = min(max(math.ceil(FORWARD_SECONDS / seconds), 1), 200)

    def _forward(self) -> None:
        canvas = self.subject.canvas(self._prompts(), self.setting.gen_length)
        run = self.subject.forward if self.setting.name == "forward" else self.subject.compiled_forward
        for _ in range(self.passes):
            run(canvas)

    def _dlm(self, repeat: int, steps: int | None) -> None:
        assert self.options is not None
        prompts = self._prompts()
        out = decode(
            self.subject.denoiser,
            prompts,
            make_decoder(self.options),
            gen_length=self.setting.gen_length,
            steps=steps or self.setting.steps,
            keys=row_keys(prompts, repeat),
            eos_id=self.subject.eos_id,
        )
        self.nfe[repeat] = float(out.nfe.double().mean())

    def _plain(self, repeat: int, steps: int | None) -> None:
        assert self.options is not None
        dtype = PLAIN_DTYPES[self.setting.name.split()[1]]
        decoder = PlainDecoder(self.subject.model, self.subject.mask_id, self.options, dtype, self.subject.bf16)
        generator = torch.Generator(self.subject.model.device).manual_seed(repeat)
        prompt = self.subject.prompts(repeat + 1, self.setting.prompt_length)[repeat]
        self.nfe[repeat] = float(
            decoder.decode(prompt, self.setting.gen_length, steps or self.setting.steps, generator).nfe
        )

    def _prompts(self) -> list[list[int]]:
        return self.subject.prompts(self.setting.batch_size, self.setting.prompt_length)


def main() -> None:
    parser = Arguments(__doc__)
    add_arguments(parser)
    arguments = parser.parse_args()
    settle(arguments)
    torch.set_num_threads(arguments.threads)
    if arguments.child:
        print(json.dumps({"peak_bytes": measure_memory(arguments, Setting(**json.loads(arguments.child)))}))
        return
    require(arguments.out is not None, "--out", "given: a path without an ending", None)
    subject = load_subject(arguments.model, arguments.device, arguments.dtype, arguments.compile)
    check(arguments, subject)
    rows: list[Row] = []
    for length in arguments.lengths:
        for text in arguments.decoders:
            rows += group(arguments, subject, text, length)
    settings = {
        name: getattr(arguments, name) for name in ("model", "dtype", "compile", "prompt_length", "steps", "repeats")
    }
    result = {
        "title": arguments.out.name,
        "command": command_line(),
        "hardware": hardware(arguments.device),
        "settings": {**settings, "device": arguments.device.partition(":")[0], "parameters": parameters(subject)},
        "rows": rows,
    }
    write_figure(arguments.out, result["rows"])
    write(arguments.out, result, to_markdown(result))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", choices=MODELS, default="builtin", help="the shipped checkpoint, or random weights in a shape")
    add("--decoders", nargs="+", default=["top_k", "conv"], metavar="NAME[:KEY=VALUE,...]")
    add("--batch-sizes", nargs="+", type=int, default=[1, 8], metavar="N")
    add("--lengths", nargs="+", type=int, default=[192], metavar="N", help="canvas lengths: prompt and response")
    add("--prompt-length", type=int, default=64, metavar="N")
    add("--steps", type=int, default=16, metavar="N", help="S, denoising steps (default 16; the paper has 128)")
    add("--repeats", type=int, default=5, metavar="N", help="timed runs of each implementation (default 5)")
    add("--plain-dtypes", nargs="*", choices=PLAIN_DTYPES, default=["float64"], help="none leaves it out")
    add("--device", default=default_device(), help="cpu or cuda (default: a GPU if any)")
    add("--dtype", choices=DTYPES, help="of weights and arithmetic (default: bfloat16 on a GPU, else float32)")
    add("--compile", choices=("none", *MODES), default="none", help="torch.compile for dlm (default: none)")
    add("--threads", type=int, default=torch.get_num_threads(), metavar="N", help="of torch on the CPU")
    add("--no-memory", action="store_true", help="leave memory out; on a CPU it takes one more run of each")
    add("--out", type=Path, help="where to write, without an ending: results/benchmarks/NAME")
    add("--child", help=argparse.SUPPRESS)


def settle(arguments: argparse.Namespace) -> None:
    """Defaults that depend on others, and what can be refused before a model is loaded."""
    check_device(arguments.device)
    if arguments.dtype is None:
        arguments.dtype = "bfloat16" if arguments.device.startswith("cuda") else "float32"
    for name in ("batch_sizes", "lengths", "prompt_length", "steps", "repeats", "threads"):
        value = getattr(arguments, name)
        for number in value if isinstance(value, list) else [value]:
            require(number >= 1, f"--{name.replace('_', '-')}", "at least 1", number)
    for length in arguments.lengths:
        least = arguments.prompt_length + 1
        require(length >= least, "--lengths", f"at least {least} (--prompt-length + 1)", length)
        for text in arguments.decoders:
            variant(text).check_lengths(length - arguments.prompt_length, arguments.steps, f"--decoders {text}")


def check(arguments: argparse.Namespace, subject: Subject) -> None:
    most = subject.model.config.max_position_embeddings
    for length in arguments.lengths:
        require(length <= most, "--lengths", f"at most {most}, the positions of {subject.name}", length)


def parameters(subject: Subject) -> int:
    return sum(parameter.numel() for parameter in subject.model.parameters())


def group(arguments: argparse.Namespace, subject: Subject, decoder: str, length: int) -> list[Row]:
    """All rows of one decoder at one canvas length: its runs take turns."""
    report(f"{decoder}, length {length}")
    make = partial(Setting, length=length, prompt_length=arguments.prompt_length, steps=arguments.steps)
    plain = [f"plain {dtype}" for dtype in arguments.plain_dtypes] if supports(variant(decoder)) else []
    batches = sorted(set(arguments.batch_sizes))
    settings = [make(name, decoder, 1) for name in plain]
    settings += [make("dlm", decoder, size) for size in batches]
    floors = ["forward"] if arguments.compile == "none" else ["forward", f"forward {arguments.compile}"]
    settings += [make(name, "", size) for size in sorted({*batches, *([1] if plain else [])}) for name in floors]
    runners = {(setting.name, setting.batch_size): Runner(subject, setting) for setting in settings}
    seconds = interleaved(subject, list(runners.values()), arguments.repeats)
    timings = dict(zip(runners, seconds, strict=True))
    peaks = {}
    if not arguments.no_memory:
        peaks = {key: memory_of(arguments, subject, runner.setting) for key, runner in runners.items()}
    return [row(runner, timings, plain, peaks.get(key)) | {"decoder": decoder} for key, runner in runners.items()]


def interleaved(subject: Subject, runners: list[Runner], repeats: int) -> list[list[float]]:
    """Seconds of every repeat of every runner; a forward runner's are of one pass."""
    for runner in runners:
        runner.warm_up()
    seconds: list[list[float]] = [[] for _ in runners]
    for repeat in range(repeats):
        for index, runner in enumerate(runners):
            seconds[index].append(timed(subject, partial(runner.run, repeat)) / runner.passes)
        report(f"  repeat {repeat + 1}: {sum(times[-1] for times in seconds):.1f} s")
    return seconds


def timed(subject: Subject, call: Callable[[], None]) -> float:
    gpu = subject.model.device.type == "cuda"
    if gpu:
        torch.cuda.synchronize(subject.model.device)
    started = time.perf_counter()
    call()
    if gpu:
        torch.cuda.synchronize(subject.model.device)
    return time.perf_counter() - started


def row(runner: Runner, timings: dict[tuple[str, int], list[float]], plain: list[str], peak: int | None) -> Row:
    """The numbers of one setting; the raw seconds are of one run of the batch (of one pass for `forward`)."""
    setting = runner.setting
    size, steps = setting.batch_size, setting.steps
    seconds = timings[setting.name, size]
    found: Row = {
        "implementation": setting.name,
        "batch_size": size,
        "length": setting.length,
        "gen_length": setting.gen_length,
        "steps": steps,
        "seconds": seconds,
        "peak_bytes": peak,
    }
    if setting.bare:
        return {**found, "steps": 1, "ms_per_step": spread([1000 * s for s in seconds])}
    each = spread([s / size for s in seconds])
    floor = timings["forward", size]
    compiled = timings.get((f"forward {runner.subject.compile}", size))
    nfe = [runner.nfe[repeat] for repeat in range(len(seconds))]
    return {
        **found,
        "seconds_per_sequence": each,
        "sequences_per_second": 1 / each["median"],
        "tokens_per_second": setting.gen_length / each["median"],
        "ms_per_step": spread([1000 * s / steps for s in seconds]),
        "nfe": sum(nfe) / len(nfe),
        "step_over_forward": ratios([s / steps for s in seconds], floor),
        "step_over_compiled": ratios([s / steps for s in seconds], compiled) if compiled else None,
        "floor_share": ratios([n * f for n, f in zip(nfe, floor, strict=True)], seconds),
        "speedup": {name: ratios(timings[name, 1], [s / size for s in seconds]) for name in plain},
    }


def memory_of(arguments: argparse.Namespace, subject: Subject, setting: Setting) -> int:
    """Peak bytes of a setting: here on a GPU, in a child process on a CPU."""
    if subject.model.device.type == "cuda":
        return peak_of(subject, setting, arguments.device)
    names = ("model", "device", "dtype", "compile", "threads")
    options = [word for name in names for word in (f"--{name}", str(getattr(arguments, name)))]
    return child_peak(Path(__file__), (*options, "--child", json.dumps(vars(setting))))


def measure_memory(arguments: argparse.Namespace, setting: Setting) -> int:
    subject = load_subject(arguments.model, arguments.device, arguments.dtype, arguments.compile)
    return peak_of(subject, setting, arguments.device)


def peak_of(subject: Subject, setting: Setting, device: str) -> int:
    """The warm-up is one row of 16 positions; of a plain decoder's steps two are enough, they are all alike."""
    small = Runner(subject, Setting(setting.name, setting.decoder.partition(":")[0], 1, 40, 8, 2))
    runner = Runner(subject, setting)
    whole = runner.options is None or runner.options.block_length is None
    steps = min(2, setting.steps) if setting.name.startswith("plain") and whole else None
    return peak_bytes(lambda: runner.run(0, steps), lambda: small.run(0), device)


if __name__ == "__main__":
    run_script(main)
