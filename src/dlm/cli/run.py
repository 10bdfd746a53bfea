"""`dlm generate` and `dlm infill`: load the checkpoint, decode, write."""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from rich.console import Console

from dlm.cli.output import print_generation, print_infilling, print_texts, write_trace
from dlm.cli.prompts import Prompt
from dlm.cli.record import recorded, write_picture
from dlm.cli.request import Request
from dlm.cli.watch import watched
from dlm.config.decoders import DecoderOptions
from dlm.data.records import Record
from dlm.decoding.lm import DiffusionLM, Generation, Infilling
from dlm.decoding.loop import Watch
from dlm.errors import UserError

Result = TypeVar("Result", Generation, Infilling)


def generate(arguments: argparse.Namespace, request: Request) -> None:
    """Decode, write the trace or the picture, print."""
    lm = _load(arguments)
    whole = [whole_prompt(lm, prompt, arguments) for prompt in request.prompts]
    prompts, shown = [ids for ids, _ in whole], [text for _, text in whole]
    steps = arguments.gen_length if arguments.steps is None else arguments.steps

    def run(options: DecoderOptions, watch: Watch | None) -> Generation:
        return lm.generate(
            prompts,
            options,
            steps=steps,
            gen_length=arguments.gen_length,
            seed=arguments.seed,
            batch_size=arguments.batch_size,
            trace=_tracing(arguments),
            watch=watch,
        )

    canvas = [lm.denoiser.mask_id] * arguments.gen_length
    out = _decoded(arguments, request, lm, canvas, steps, run)
    if out is not None:
        print_generation(out, shown, prompts, [prompt.text for prompt in request.prompts], json=arguments.json)


def infill(arguments: argparse.Namespace, request: Request) -> None:
    """As `generate`, for texts with gaps."""
    lm = _load(arguments)
    given = [list(prompt.ids) if prompt.kind == "ids" else prompt.text for prompt in request.prompts]
    canvases = [lm._canvas(one, prompt.where) for one, prompt in zip(given, request.prompts, strict=True)]
    canvas = canvases[0]
    one = arguments.watch or arguments.record is not None  # several texts: as many steps as the fullest has masks
    steps = canvas.count(lm.denoiser.mask_id) if arguments.steps is None and one else arguments.steps

    def run(options: DecoderOptions, watch: Watch | None) -> Infilling:
        return lm.infill(
            given,
            options,
            steps=steps,
            seed=arguments.seed,
            batch_size=arguments.batch_size,
            trace=_tracing(arguments),
            watch=watch,
        )

    out = _decoded(arguments, request, lm, canvas, steps, run)
    if out is not None:
        print_infilling(out, [prompt.text for prompt in request.prompts], canvases, json=arguments.json)


def whole_prompt(lm: DiffusionLM, prompt: Prompt, arguments: argparse.Namespace) -> tuple[list[int], str]:
    """What the model is given, and its text. Raises UserError for what has no template to go into."""
    if prompt.kind == "ids":
        return list(prompt.ids), prompt.text
    if prompt.kind == "messages" or (arguments.chat and prompt.kind != "prompt"):
        return _chat(lm, prompt, arguments)
    template = arguments.template
    as_instruction = prompt.kind == "instruction" or lm.template is not None if template is None else template
    if prompt.kind == "prompt" or not as_instruction:
        if prompt.input:
            raise UserError(f"{prompt.where}: has an `input`, which --raw has no place for; write both into `prompt`")
        return lm._ids(prompt.text, prompt.where), prompt.text
    if lm.template is None:
        raise UserError(
            f"{arguments.checkpoint}: carries no prompt template; give whole prompts (--raw, or `prompt` in a file), "
            "or --chat if it has a chat template"
        )
    if not prompt.text.strip():
        raise UserError(f"{prompt.where}: the instruction is empty; write one")
    return lm.prompt(prompt.text, prompt.input), lm.template.render(Record(prompt.text, prompt.input, ""))


def _chat(lm: DiffusionLM, prompt: Prompt, arguments: argparse.Namespace) -> tuple[list[int], str]:
    """A conversation, or a text as its first message, in the chat template; its text shows special tokens."""
    messages = list(prompt.messages)
    if prompt.kind != "messages":
        messages = [{"role": "user", "content": "\n\n".join(filter(None, (prompt.text, prompt.input)))}]
    elif arguments.template is not None:
        raise UserError(
            f"{prompt.where}: has `messages`, which go into the chat template; leave --raw, --instruction out"
        )
    if arguments.system is not None and messages[:1] and messages[0].get("role") != "system":
        messages = [{"role": "system", "content": arguments.system}, *messages]
    try:
        ids = lm.chat_prompt(messages)
    except UserError as error:
        raise UserError(f"{prompt.where}: {error}") from None
    return ids, str(lm.tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _load(arguments: argparse.Namespace) -> DiffusionLM:
    device = arguments.device
    try:
        if device is not None:
            torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {device!r} cannot be used ({reason}); name another, such as cpu") from None
    return DiffusionLM.load(
        arguments.checkpoint,
        device,
        arguments.precision,
        arguments.compile,
        layout=arguments.layout,
        tokenizer=arguments.tokenizer,
    )


def _watching(arguments: argparse.Namespace) -> bool:
    return arguments.watch and sys.stdout.isatty()


def _tracing(arguments: argparse.Namespace) -> bool:
    return arguments.trace is not None or arguments.record is not None


def _decoded(
    arguments: argparse.Namespace,
    request: Request,
    lm: DiffusionLM,
    canvas: list[int],
    steps: int | None,
    run: Callable[[DecoderOptions, Watch | None], Result],
) -> Result | None:
    """Decode and write what was asked for. None where the texts have been shown already."""
    try:
        if arguments.record is not None:
            results = _recorded(arguments, request, lm, canvas, steps or 0, run)
        elif _watching(arguments):
            results = [watched(Console(highlight=False), lm, canvas, steps or 0, partial(run, request.options))]
        else:
            results = [run(request.options, None)]
    except torch.OutOfMemoryError:
        raise UserError("the device is out of memory; take a smaller --batch-size or --gen-length") from None
    out = results[0]
    if arguments.trace is not None and out.trace is not None:
        write_trace(arguments.trace, lm, out.trace)
    if len(results) > 1:
        print_texts([one.texts[0] for one in results], [decoder.title for decoder in request.decoders])
    return None if _watching(arguments) or len(results) > 1 else out


def _recorded(
    arguments: argparse.Namespace,
    request: Request,
    lm: DiffusionLM,
    canvas: list[int],
    steps: int,
    run: Callable[[DecoderOptions, Watch | None], Result],
) -> list[Result]:
    """Each decoder's result; all of them in one picture."""
    results, recordings = [], []
    for decoder in request.decoders:
        out, recording = recorded(lm, canvas, steps, partial(run, decoder.options))
        results.append(out)
        recordings.append((decoder.title, recording))
    masks = canvas.count(lm.denoiser.mask_id)
    note = " · ".join([f"{masks} tokens in {steps} steps", f"seed {arguments.seed}", *arguments.set])
    write_picture(arguments.record, lm, request.prompts[0].text, note, recordings)
    return results
