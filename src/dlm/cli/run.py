"""`dlm generate` and `dlm infill`: load the checkpoint, decode, write, print."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.console import Console

from dlm.cli.output import print_objects, print_texts, write_trace
from dlm.cli.prompts import Prompt
from dlm.cli.record import recorded, write_picture
from dlm.cli.request import Choice, Request
from dlm.cli.watch import watched
from dlm.data.records import Record
from dlm.data.template import TEMPLATES
from dlm.decoding.lm import DiffusionLM, Generation, Infilling
from dlm.decoding.loop import Watch
from dlm.errors import UserError


@dataclass(frozen=True)
class Job:
    """What is decoded.

    Attributes:
        given: what --json says of each row besides its result.
        canvas: the first row's, before the first step, for who watches it.
        decode: takes a decoder's options and the settings of DiffusionLM.generate and infill.
    """

    given: list[dict[str, Any]]
    canvas: list[int]
    steps: int
    decode: Callable[..., Generation | Infilling]


def run(arguments: argparse.Namespace, request: Request) -> None:
    """Load, decode, write the trace or the picture, print. Raises UserError."""
    lm = load(arguments)
    job = (_infilling if arguments.infill else _generation)(lm, arguments, request.prompts)

    def decode(decoder: Choice, watch: Watch | None = None) -> Generation | Infilling:
        return job.decode(
            decoder.options,
            steps=job.steps,
            seed=arguments.seed,
            batch_size=arguments.batch_size,
            trace=arguments.trace is not None or arguments.record is not None,
            watch=watch,
        )

    first, watching = request.decoders[0], arguments.watch and sys.stdout.isatty()
    try:
        if arguments.record is not None:
            pairs = [recorded(lm, job.canvas, job.steps, partial(decode, decoder)) for decoder in request.decoders]
            outs = [out for out, _ in pairs]
        elif watching:
            outs = [watched(Console(highlight=False), lm, job.canvas, job.steps, partial(decode, first))]
        else:
            outs = [decode(first)]
    except torch.OutOfMemoryError:
        raise UserError("the device is out of memory; take a smaller --batch-size or --gen-length") from None
    asked, titles = [prompt.text for prompt in request.prompts], [decoder.title for decoder in request.decoders]
    if arguments.record is not None:
        masks = job.canvas.count(lm.denoiser.mask_id)
        note = " · ".join([f"{masks} tokens in {job.steps} steps", f"seed {arguments.seed}", *arguments.set])
        recordings = [(title, recording) for title, (_, recording) in zip(titles, pairs, strict=True)]
        write_picture(arguments.record, lm, asked[0], note, recordings)
    if arguments.trace is not None and outs[0].trace is not None:
        write_trace(arguments.trace, lm, outs[0].trace)
    if arguments.json:
        print_objects(outs[0], job.given)
    elif len(outs) > 1:
        print_texts([out.texts[0] for out in outs], titles)
    elif not watching:
        print_texts(outs[0].texts, asked)


def load(arguments: argparse.Namespace) -> DiffusionLM:
    """The checkpoint on its device. Raises UserError."""
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


def load_to_talk(arguments: argparse.Namespace) -> DiffusionLM:
    """The checkpoint, with the prompt template that --template names. Raises UserError."""
    lm = load(arguments)
    if arguments.template is not None:
        if lm.tokenizer.chat_template is not None:
            raise UserError(
                f"--template {arguments.template}: {arguments.checkpoint} has a chat template; leave it out"
            )
        lm.template = TEMPLATES[arguments.template]
    return lm


def _generation(lm: DiffusionLM, arguments: argparse.Namespace, prompts: Sequence[Prompt]) -> Job:
    whole = [whole_prompt(lm, prompt, arguments) for prompt in prompts]
    length = arguments.gen_length
    return Job(
        given=[{"prompt": text, "prompt_ids": ids} for ids, text in whole],
        canvas=[lm.denoiser.mask_id] * length,
        steps=length if arguments.steps is None else arguments.steps,
        decode=partial(lm.generate, [ids for ids, _ in whole], gen_length=length),
    )


def _infilling(lm: DiffusionLM, arguments: argparse.Namespace, prompts: Sequence[Prompt]) -> Job:
    given = [list(prompt.ids) if prompt.kind == "ids" else prompt.text for prompt in prompts]
    canvases = [lm._canvas(one, prompt.where) for one, prompt in zip(given, prompts, strict=True)]
    most = max(canvas.count(lm.denoiser.mask_id) for canvas in canvases)
    return Job(
        given=[{"canvas": prompt.text, "canvas_ids": ids} for prompt, ids in zip(prompts, canvases, strict=True)],
        canvas=canvases[0],
        steps=most if arguments.steps is None else arguments.steps,
        decode=partial(lm.infill, given),
    )


def whole_prompt(lm: DiffusionLM, prompt: Prompt, arguments: argparse.Namespace) -> tuple[list[int], str]:
    """What the model is given, and its text. Raises UserError for what has no template to go into."""
    if prompt.kind == "ids":
        return list(prompt.ids), prompt.text
    if prompt.kind == "messages" or (arguments.chat and prompt.kind != "prompt"):
        return _chat(lm, prompt, arguments)
    as_instruction = prompt.kind == "instruction" or lm.template is not None
    if arguments.template is not None:
        as_instruction = arguments.template
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
