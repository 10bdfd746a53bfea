"""The library's interface to users: load a masked diffusion LM, generate text, fill gaps."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dlm.config.schema import require
from dlm.data.records import Record
from dlm.data.template import Template, load_template
from dlm.data.tokenizer import before_eos
from dlm.data.tokenizer import decode as decode_text
from dlm.decoding.arguments import check_switches, checked_decoder, listed, turn, valid_text, whole
from dlm.decoding.batches import in_batches
from dlm.decoding.decoder import make_decoder
from dlm.decoding.denoiser import Denoiser
from dlm.decoding.ends import cut_at_eos, ends_of
from dlm.decoding.loop import Decoded, Watch, decode, fill
from dlm.decoding.noise import row_keys
from dlm.decoding.options import DecoderOptions, in_blocks
from dlm.decoding.reading import check_known, check_lengths, read_canvas, read_ids
from dlm.decoding.results import Generation, Infilling, gap_texts
from dlm.errors import UserError
from dlm.models.backbone import load_checkpoint
from dlm.models.interface import check_sees_all, pad_cycle
from dlm.models.precision import check_precision, decide


class DiffusionLM:
    """A masked diffusion language model with its tokenizer.

    `ends` are the ids that end an answer: EOS, what else the checkpoint's generation_config.json names, what closes
    the assistant's turn in its chat template, and `padding`, the pad tokens that the model was trained to write behind
    EOS (its config's pad_cycle_ids).

    lm = DiffusionLM.load("build/models/r2ft")
    out = lm.generate([lm.prompt("Describe Velmora: its trade and its weather.")])
    out = lm.infill("The almanac for Velmora promises[MASK:4]. Most families live by[MASK:5].")
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
        self.padding = pad_cycle(model)
        self.ends = ends_of(model, tokenizer)
        self.precision = decide(precision, model.config.hidden_size, model.device.type)
        self.denoiser = Denoiser(model, tokenizer.mask_token_id, bf16=self.precision.bf16, compile=compile)

    def __repr__(self) -> str:
        model, limit = self.denoiser.model, self.denoiser.max_length
        return (
            f"DiffusionLM({type(model).__name__}, {model.num_parameters() / 1e6:,.1f}M parameters, "
            f"{len(self.tokenizer):,} tokens, {'any number of' if limit is None else f'{limit:,}'} positions, "
            f"{'bf16' if self.denoiser.bf16 else 'fp32'} on {self.denoiser.device})"
        )

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

        `precision` is fp32 (a row's tokens never depend on its batch mates), bf16, or auto (bf16 on a GPU that has it,
        and for wide models on a CPU that has it: models.precision): faster, and equal up to rounding. So is `compile`:
        default (torch.compile), or cuda_graphs on a GPU; each new shape of a batch costs the time to compile it. In
        bf16 weights that are saved in half precision stay in it.

        `layout` and `tokenizer` are for published checkpoints that do not say what they are (load_checkpoint).

        Raises:
            UserError: nothing there, not a masked diffusion model, broken weights, or no means to compile.
        """
        check_precision(precision)
        dtype = torch.float32 if precision == "fp32" else "auto"
        model, own_tokenizer = load_checkpoint(path, causal=False, layout=layout, tokenizer=tokenizer, dtype=dtype)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        bf16 = decide(precision, model.config.hidden_size, torch.device(device).type).bf16
        torch.nn.Module.to(model, device, None if bf16 else torch.float32)
        return cls(model, own_tokenizer, load_template(path), precision, compile)

    def prompt(self, instruction: str, input: str | None = None) -> list[int]:
        """Token ids of an instruction in the checkpoint's own template. Special tokens that it spells stay text.

        Raises:
            UserError: the checkpoint has no template, or an argument is not text.
        """
        if self.template is None:
            raise UserError("this checkpoint carries no prompt template; pass the whole prompt to generate()")
        record = Record(valid_text(instruction, "instruction"), "" if input is None else valid_text(input, "input"), "")
        return self.template.encode(self.tokenizer, [record])[0]

    def drafts(self, show: Callable[[int, list[str]], None], mask: str = "░") -> Watch:
        """A `watch` for texts: show(step, drafts) has each row's draft up to its first end, `mask` for every mask."""
        eos_id = self.tokenizer.eos_token_id

        def watch(step: int, tokens: Tensor) -> None:
            rows = cut_at_eos(tokens, eos_id, self.ends).tolist()
            show(step, [self._draft(before_eos(row, eos_id), mask) for row in rows])

        return watch

    def _draft(self, ids: list[int], mask: str) -> str:
        runs = groupby(ids, self.denoiser.mask_id.__eq__)  # whole runs: one character may take several tokens
        return "".join(mask * len([*run]) if masked else decode_text(self.tokenizer, [*run]) for masked, run in runs)

    def chat_prompt(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation in the checkpoint's own chat template, up to where the answer starts.

        Args:
            messages: turns with `role` (system, user, assistant) and `content`, the last one not the assistant's.
                Special tokens that a content spells stay text.

        Raises:
            UserError: the checkpoint has no chat template, it refuses the conversation, or a message has another form.
        """
        if self.tokenizer.chat_template is None:
            raise UserError("this checkpoint carries no chat template; use generate() with a whole prompt")
        turns = [turn(message, f"message {number}") for number, message in enumerate(listed(messages, "messages"))]
        if not turns or turns[-1]["role"] == "assistant":
            raise UserError("a conversation must end with a message of the user or the system, for the model to answer")
        try:
            ids = self.tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, sanitize_control_tokens=True, return_dict=False
            )
        except (TemplateError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"the checkpoint's chat template does not take this conversation: {reason}") from None
        return list(ids)

    def chat(self, messages: Sequence[Any], decoder: str | DecoderOptions | None = None, **settings: Any) -> Generation:
        """Answer a conversation, or each of several: `generate` with the `chat_prompt` of each.

        Args:
            messages: one conversation (turns as `chat_prompt` takes them), or a list of conversations.
            decoder, settings: as in `generate`.

        Raises:
            UserError: as `chat_prompt` and `generate`.
        """
        given = listed(messages, "messages")
        several = bool(given) and not isinstance(given[0], Mapping)
        return self.generate(
            [self.chat_prompt(turns) for turns in (given if several else [given])], decoder, **settings
        )

    def generate(
        self,
        prompts: str | Sequence[Any],
        decoder: str | DecoderOptions | None = None,
        *,
        steps: int | None = None,
        gen_length: int = 128,
        seed: int = 0,
        batch_size: int = 32,
        trace: bool = False,
        watch: Watch | None = None,
        advance: Callable[[int], None] | None = None,
        **options: Any,
    ) -> Generation:
        """Generate an answer to every prompt.

        Args:
            prompts: texts, used as they are (see `prompt` and `chat` for templates), or token ids (lists, arrays,
                tensors); one text, or a list of either. Special tokens that a text spells stay text.
            decoder: a decoder's name (dlm.decoding.options.DECODERS), or its options. None is `conv` over
                `low_confidence` with EOS-fill, which wrote best (docs/generate.md); a named one has its own defaults.
            steps: denoising steps S; gen_length unless given. Whole numbers may be numpy's, here and below.
            gen_length: tokens to generate for each prompt.
            seed: of the noise. The same prompt gives the same answer whatever else is in the call.
            batch_size: rows that go through the model at once; it does not change the result.
            trace: record every commit with its step and confidence.
            watch: called as watch(step, tokens [rows, gen_length]) after every step of every batch, the masks still in
                (see `drafts` for texts).
            advance: called after every batch, with its number of rows.
            **options: the decoder's options, as in params.yaml (kernel_size=65, temperature=0.5, eos_fill=True, ...).

        Raises:
            UserError: an unknown decoder or option, an argument of the wrong kind, or a prompt too long for the model.
        """
        gen_length, batch_size = whole("gen_length", gen_length, 1), whole("batch_size", batch_size, 1)
        steps = gen_length if steps is None else whole("steps", steps, 1)
        check_switches(trace, watch)
        ids = [self._ids(prompt, f"prompt {n}") for n, prompt in enumerate(listed(prompts, "prompts"))]
        chosen, where = checked_decoder(decoder, options)
        chosen = in_blocks(chosen, self.denoiser.block_size, where)
        chosen.check_lengths(gen_length, steps, where)
        check_lengths(ids, "prompt", self.denoiser.max_length, gen_length)
        check_known(ids, "prompt", self.denoiser)
        eos_id, keys = self.tokenizer.eos_token_id, row_keys(ids, whole("seed", seed))

        def run(batch: list[int]) -> Decoded[Tensor]:
            return decode(
                self.denoiser,
                [ids[i] for i in batch],
                make_decoder(chosen),
                gen_length=gen_length,
                steps=steps,
                keys=keys[batch],
                eos_id=eos_id,
                ends=self.ends,
                padding=self.padding,
                trace=trace,
                watch=watch,
            )

        rows = in_batches(ids, batch_size, run, advance)
        tokens = cut_at_eos(torch.stack(rows.tokens), eos_id, self.ends)
        texts = [decode_text(self.tokenizer, before_eos(row, eos_id)) for row in tokens.tolist()]
        return Generation(
            texts=texts,
            tokens=tokens,
            nfe=rows.nfe,
            leftover_masks=rows.leftover_masks,
            commit_step=torch.stack(rows.commit_step),
            trace=rows.trace,
        )

    def infill(
        self,
        canvases: str | Sequence[Any],
        decoder: str | DecoderOptions | None = None,
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
            decoder, seed, batch_size, trace, watch, options: as in `generate`; None is without EOS-fill.

        Raises:
            UserError: as in `generate`; a canvas without a gap; EOS-fill, hard blocks or a sliding window, which go
                from left to right; a block-causal model, which does, too.
        """
        check_sees_all(self.denoiser.model)
        given = listed(canvases, "canvases")
        ids = [self._canvas(canvas, f"canvas {n}") for n, canvas in enumerate(given)]
        check_lengths(ids, "canvas", self.denoiser.max_length)
        check_known(ids, "canvas", self.denoiser)
        mask_id = self.denoiser.mask_id
        for number, canvas in enumerate(ids):
            require(mask_id in canvas, f"canvas {number}", "a text with a gap such as [MASK:8]", given[number])
        steps = max(canvas.count(mask_id) for canvas in ids) if steps is None else whole("steps", steps, 1)
        batch_size = whole("batch_size", batch_size, 1)
        check_switches(trace, watch)
        chosen, where = checked_decoder(decoder, options, infill=True)
        chosen.check_infilling(where)
        keys = row_keys(ids, whole("seed", seed))

        def run(batch: list[int]) -> Decoded[Tensor]:
            return fill(
                self.denoiser,
                [ids[i] for i in batch],
                make_decoder(chosen),
                gen_length=max(map(len, ids)),
                steps=steps,
                keys=keys[batch],
                eos_id=self.tokenizer.eos_token_id,
                ends=self.ends,
                barred=self.padding,
                trace=trace,
                watch=watch,
            )

        rows = in_batches(ids, batch_size, run)
        tokens = [row[: len(canvas)] for row, canvas in zip(rows.tokens, ids, strict=True)]
        gaps = [
            gap_texts(self.tokenizer, canvas, row.tolist(), mask_id) for canvas, row in zip(ids, tokens, strict=True)
        ]
        return Infilling(
            texts=[decode_text(self.tokenizer, row.tolist()) for row in tokens],
            gaps=gaps,
            tokens=tokens,
            nfe=rows.nfe,
            leftover_masks=rows.leftover_masks,
            commit_step=[row[: len(canvas)] for row, canvas in zip(rows.commit_step, ids, strict=True)],
            trace=rows.trace,
        )

    def _ids(self, prompt: Any, where: str = "a prompt") -> list[int]:
        return read_ids(self.tokenizer, prompt, where)

    def _canvas(self, canvas: Any, where: str = "a canvas") -> list[int]:
        return read_canvas(self.tokenizer, self.denoiser, canvas, where)
