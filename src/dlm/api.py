"""The library's front door: load a masked diffusion LM, generate text, fill gaps."""

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dlm.data.records import Record
from dlm.data.template import Template, load_template
from dlm.data.tokenizer import before_eos, encode
from dlm.data.tokenizer import decode as decode_text
from dlm.decoding.batches import in_batches
from dlm.decoding.canvas import Trace
from dlm.decoding.loop import Decoded, Watch, decode, fill
from dlm.decoding.noise import row_keys
from dlm.decoding.options import DecoderOptions, decoder_options, override
from dlm.decoding.presets import make_decoder
from dlm.errors import UserError
from dlm.models.backbone import load_checkpoint
from dlm.models.denoiser import Denoiser
from dlm.models.precision import use_bf16
from dlm.schema import require

GAP = re.compile(r"\[MASK(?::(\d+))?\]")


@dataclass(frozen=True)
class Generation:
    """What `DiffusionLM.generate` returns; everything in the order of the prompts.

    Attributes:
        texts: the answers, up to their first end-of-text.
        tokens: EOS-padded after the first EOS.
        nfe: forward passes that each row took (S* in the paper).
        leftover_masks: positions the decoder left masked and one extra greedy pass filled.
        commit_step: at which step each position took its token (-1: set by EOS-fill).
        trace: every change of the canvas, with `trace=True`.
    """

    texts: list[str]
    tokens: Int[Tensor, "batch gen_length"]
    nfe: Int[Tensor, " batch"]
    leftover_masks: Int[Tensor, " batch"]
    commit_step: Int[Tensor, "batch gen_length"]
    trace: Trace | None = None


@dataclass(frozen=True)
class Infilling:
    """What `DiffusionLM.infill` returns; everything in the order of the canvases.

    Attributes:
        texts: each canvas as text, its gaps filled.
        gaps: the text of each gap of each canvas, from left to right.
        tokens: each canvas as ids [length].
        nfe, leftover_masks: as in `Generation`.
        commit_step: at which step each position took its token (-1: context).
        trace: every change, with `trace=True`; offsets count from the canvas's first position.
    """

    texts: list[str]
    gaps: list[list[str]]
    tokens: list[Tensor]
    nfe: Int[Tensor, " batch"]
    leftover_masks: Int[Tensor, " batch"]
    commit_step: list[Tensor]
    trace: Trace | None = None


class DiffusionLM:
    """A masked diffusion language model with its tokenizer.

    lm = DiffusionLM.load("build/models/r2ft")
    out = lm.generate([lm.prompt("Describe Velmora: its trade and its weather.")], decoder="conv", steps=16)
    out = lm.infill("Velmora lives from [MASK:8], and the winter there is short.", steps=8)
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        template: Template | None = None,
        precision: str = "fp32",
        compile: str = "none",
    ) -> None:
        if tokenizer.mask_token_id is None or tokenizer.eos_token_id is None:
            raise UserError("the tokenizer needs a mask and an end-of-text token; add them and save it again")
        self.tokenizer = tokenizer
        self.template = template
        self.denoiser = Denoiser(model, tokenizer.mask_token_id, bf16=use_bf16(precision), compile=compile)

    @classmethod
    def load(
        cls,
        path: Path | str,
        device: str | None = None,
        precision: str = "fp32",
        compile: str = "none",
        *,
        layout: str = "auto",
        tokenizer: Path | str | None = None,
    ) -> "DiffusionLM":
        """Load a checkpoint (folder or hub name; safetensors, no remote code) onto `device` (default: CUDA if any).

        `precision` is fp32 (a row's tokens never depend on its batch mates), bf16, or auto (bf16 on a GPU that has it):
        faster, and equal up to rounding. So is `compile`: default (torch.compile), or cuda_graphs on a GPU; each new
        shape of a batch costs the time to compile it. In bf16 weights that are saved in half precision stay in it.

        `layout` and `tokenizer` are for published checkpoints that do not say what they are (load_checkpoint).

        Raises:
            UserError: nothing there, not a masked diffusion model, broken weights, or no means to compile.
        """
        dtype = "auto" if use_bf16(precision) else torch.float32
        model, own_tokenizer = load_checkpoint(path, causal=False, layout=layout, tokenizer=tokenizer, dtype=dtype)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        torch.nn.Module.to(model, device)
        return cls(model, own_tokenizer, load_template(path), precision, compile)

    def prompt(self, instruction: str, input: str = "") -> list[int]:
        """Token ids of an instruction in the checkpoint's own template. Raises UserError where it has none."""
        if self.template is None:
            raise UserError("this checkpoint carries no prompt template; pass the whole prompt to generate()")
        return self.template.encode(self.tokenizer, [Record(instruction, input, "")])[0]

    def generate(
        self,
        prompts: str | Sequence[Any],
        decoder: str | DecoderOptions = "conv",
        *,
        steps: int | None = None,
        gen_length: int = 128,
        seed: int = 0,
        batch_size: int = 32,
        trace: bool = False,
        watch: Watch | None = None,
        **options: Any,
    ) -> Generation:
        """Generate an answer to every prompt.

        Args:
            prompts: texts, used as they are (see `prompt` for the template), or token ids (lists, tensors).
            decoder: a decoder's name (dlm.decoding.options.DECODERS), or its options.
            steps: denoising steps S; gen_length unless given.
            gen_length: tokens to generate for each prompt.
            seed: of the noise. The same prompt gives the same answer whatever else is in the call.
            batch_size: rows that go through the model at once; it does not change the result.
            trace: record every commit with its step and confidence.
            watch: called as watch(step, tokens [rows, gen_length]) after every step of every batch, the masks still in.
            **options: the decoder's options, as in params.yaml (kernel_size=33, top_k=5, eos_fill=True, ...).

        Raises:
            UserError: an unknown decoder or option, a value it cannot have, or a prompt beyond the model's length.
        """
        steps = gen_length if steps is None else steps
        _at_least_one(steps=steps, gen_length=gen_length, batch_size=batch_size)
        ids = [self._ids(prompt) for prompt in ([prompts] if isinstance(prompts, str) else prompts)]
        chosen, where = _checked(decoder, options)
        chosen.check_lengths(gen_length, steps, where)
        self._check_ids(ids, gen_length)
        eos_id, keys = self.tokenizer.eos_token_id, row_keys(ids, seed)

        def run(batch: list[int]) -> Decoded:
            return decode(
                self.denoiser,
                [ids[i] for i in batch],
                make_decoder(chosen),
                gen_length=gen_length,
                steps=steps,
                keys=keys[batch],
                eos_id=eos_id,
                trace=trace,
                watch=watch,
            )

        parts = in_batches(ids, batch_size, run)
        tokens = cut_at_eos(torch.stack(parts.tokens), eos_id)
        texts = [decode_text(self.tokenizer, before_eos(row, eos_id)) for row in tokens.tolist()]
        return Generation(texts, tokens, parts.nfe, parts.leftover_masks, torch.stack(parts.commit_step), parts.trace)

    def infill(
        self,
        canvases: str | Sequence[Any],
        decoder: str | DecoderOptions = "conv",
        *,
        steps: int | None = None,
        seed: int = 0,
        batch_size: int = 32,
        trace: bool = False,
        watch: Watch | None = None,
        **options: Any,
    ) -> Infilling:
        """Fill the gaps of every canvas from the context on all their sides.

        Args:
            canvases: texts with gaps written `[MASK]` (one token) or `[MASK:40]` (40 tokens), or token ids with the
                tokenizer's mask id wherever a token is wanted.
            steps: denoising steps S; as many as the fullest canvas has masks unless given.
            decoder, seed, batch_size, trace, watch, options: as in `generate`.

        Raises:
            UserError: as in `generate`; a canvas without a gap; EOS-fill, hard blocks or a sliding window, which go
                from left to right.
        """
        given = [canvases] if isinstance(canvases, str) else canvases
        ids = [self._canvas(canvas) for canvas in given]
        self._check_ids(ids, 0)
        mask_id = self.denoiser.mask_id
        for number, canvas in enumerate(ids):
            require(mask_id in canvas, f"canvas {number}", "a text with a gap such as [MASK:8]", given[number])
        steps = max(canvas.count(mask_id) for canvas in ids) if steps is None else steps
        _at_least_one(steps=steps, batch_size=batch_size)
        chosen, where = _checked(decoder, options)
        chosen.check_infilling(where)
        keys = row_keys(ids, seed)

        def run(batch: list[int]) -> Decoded:
            return fill(
                self.denoiser,
                [ids[i] for i in batch],
                make_decoder(chosen),
                gen_length=max(map(len, ids)),
                steps=steps,
                keys=keys[batch],
                eos_id=self.tokenizer.eos_token_id,
                trace=trace,
                watch=watch,
            )

        parts = in_batches(ids, batch_size, run)
        tokens = [row[: len(canvas)] for row, canvas in zip(parts.tokens, ids, strict=True)]
        gaps = [
            [decode_text(self.tokenizer, row[start:end].tolist()) for start, end in _runs(canvas, mask_id)]
            for row, canvas in zip(tokens, ids, strict=True)
        ]
        return Infilling(
            [decode_text(self.tokenizer, row.tolist()) for row in tokens],
            gaps,
            tokens,
            parts.nfe,
            parts.leftover_masks,
            [row[: len(canvas)] for row, canvas in zip(parts.commit_step, ids, strict=True)],
            parts.trace,
        )

    def _ids(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            return encode(self.tokenizer, [prompt])[0]
        try:
            return [operator.index(i) for i in prompt]
        except TypeError:
            raise UserError(f"a prompt must be a text or a list of token ids, got {str(prompt)[:60]}") from None

    def _canvas(self, canvas: Any) -> list[int]:
        """A text's ids, its gaps as mask ids; ids as they are."""
        if not isinstance(canvas, str):
            return self._ids(canvas)
        ids: list[int] = []
        end = 0
        for gap in GAP.finditer(canvas):
            ids += self._ids(canvas[end : gap.start()]) + [self.denoiser.mask_id] * int(gap[1] or 1)
            end = gap.end()
        return ids + self._ids(canvas[end:])

    def _check_ids(self, ids: list[list[int]], gen_length: int) -> None:
        if not ids:
            raise UserError("no prompts were given; pass at least one")
        limit = self.denoiser.model.config.max_position_embeddings
        vocab = self.denoiser.vocab_size
        for number, prompt in enumerate(ids):
            if len(prompt) + gen_length > limit:
                raise UserError(
                    f"prompt {number} has {len(prompt)} tokens; with gen_length {gen_length} that exceeds the model's "
                    f"{limit} positions; shorten one of them"
                )
            if any(not 0 <= i < vocab for i in prompt):
                raise UserError(f"prompt {number} has a token id outside the vocabulary of {vocab}")


def _checked(decoder: str | DecoderOptions, options: dict[str, Any]) -> tuple[DecoderOptions, str]:
    """The options of a decoder, and what errors call it."""
    if isinstance(decoder, str):
        return decoder_options(decoder, options, decoder), decoder
    if options:
        raise UserError(f"options ({', '.join(options)}) go with a decoder's name, not with checked options")
    return override(decoder, "decoder"), "decoder"


def _at_least_one(**numbers: int) -> None:
    for name, number in numbers.items():
        require(number >= 1, name, "at least 1", number)


def _runs(ids: list[int], value: int) -> list[tuple[int, int]]:
    """[start, end) of every unbroken run of `value`."""
    starts = [i for i, x in enumerate(ids) if x == value and (i == 0 or ids[i - 1] != value)]
    ends = [i + 1 for i, x in enumerate(ids) if x == value and (i + 1 == len(ids) or ids[i + 1] != value)]
    return list(zip(starts, ends, strict=True))


def cut_at_eos(tokens: Int[Tensor, "batch length"], eos_id: int) -> Int[Tensor, "batch length"]:
    """Everything after a row's first EOS becomes EOS."""
    ended = (tokens == eos_id).cumsum(-1) > 0
    return torch.where(ended, eos_id, tokens)
