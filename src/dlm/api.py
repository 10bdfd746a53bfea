"""The library's front door: load a masked diffusion LM, generate text."""

import operator
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
from dlm.decoding.loop import decode
from dlm.decoding.noise import row_keys
from dlm.decoding.options import DecoderOptions, decoder_options, override
from dlm.decoding.presets import make_decoder
from dlm.errors import UserError
from dlm.models.backbone import load_checkpoint
from dlm.models.denoiser import Denoiser
from dlm.models.precision import use_bf16
from dlm.schema import require


@dataclass(frozen=True)
class Generation:
    """What `DiffusionLM.generate` returns; everything in the order of the prompts.

    Attributes:
        texts: the answers, up to their first end-of-text.
        tokens: EOS-padded after the first EOS.
        nfe: forward passes that each row took (S* in the paper).
        leftover_masks: positions the decoder left masked and one extra greedy pass filled.
        commit_step: at which step each position took its token (-1: set by EOS-fill).
    """

    texts: list[str]
    tokens: Int[Tensor, "batch gen_length"]
    nfe: Int[Tensor, " batch"]
    leftover_masks: Int[Tensor, " batch"]
    commit_step: Int[Tensor, "batch gen_length"]


class DiffusionLM:
    """A masked diffusion language model with its tokenizer.

    lm = DiffusionLM.load("build/models/r2ft")
    out = lm.generate([lm.prompt("Describe Velmora: its trade and its weather.")], decoder="conv", steps=16)
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        template: Template | None = None,
        precision: str = "fp32",
    ) -> None:
        if tokenizer.mask_token_id is None or tokenizer.eos_token_id is None:
            raise UserError("the tokenizer needs a mask and an end-of-text token; add them and save it again")
        self.tokenizer = tokenizer
        self.template = template
        self.denoiser = Denoiser(model, tokenizer.mask_token_id, bf16=use_bf16(precision))

    @classmethod
    def load(cls, path: Path | str, device: str | None = None, precision: str = "fp32") -> "DiffusionLM":
        """Load a checkpoint (folder or hub name; safetensors, no remote code) onto `device` (default: CUDA if any).

        `precision` is fp32 (a row's tokens never depend on its batch mates), bf16, or auto (bf16 where the hardware has
        it): faster, and equal up to rounding.

        Raises:
            UserError: nothing there, not a masked diffusion model, or broken weights.
        """
        model, tokenizer = load_checkpoint(path, causal=False)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        torch.nn.Module.to(model, device)
        return cls(model, tokenizer, load_template(path), precision)

    def prompt(self, instruction: str, input: str = "") -> str:
        """The checkpoint's own template around an instruction. Raises UserError where it was saved without one."""
        if self.template is None:
            raise UserError("this checkpoint carries no prompt template; pass the whole prompt to generate()")
        return self.template.render(Record(instruction, input, ""))

    def generate(
        self,
        prompts: str | Sequence[Any],
        decoder: str | DecoderOptions = "conv",
        *,
        steps: int | None = None,
        gen_length: int = 128,
        seed: int = 0,
        batch_size: int = 32,
        **options: Any,
    ) -> Generation:
        """Generate an answer to every prompt.

        Args:
            prompts: texts, used as they are (see `prompt` for the template), or token ids (lists, tensors).
            decoder: a decoder's name (dlm.decoding.options.OPTIONS), or its options.
            steps: denoising steps S; gen_length unless given.
            gen_length: tokens to generate for each prompt.
            seed: of the noise. The same prompt gives the same answer whatever else is in the call.
            batch_size: rows that go through the model at once; it does not change the result.
            **options: the decoder's options, as in params.yaml (kernel_size=33, top_k=5, eos_fill=True, ...).

        Raises:
            UserError: an unknown decoder or option, a value it cannot have, or a prompt beyond the model's length.
        """
        steps = gen_length if steps is None else steps
        for name, number in (("steps", steps), ("gen_length", gen_length), ("batch_size", batch_size)):
            require(number >= 1, name, "at least 1", number)
        ids = [self._ids(prompt) for prompt in ([prompts] if isinstance(prompts, str) else prompts)]
        if isinstance(decoder, str):
            chosen, where = decoder_options(decoder, options, decoder), decoder
        elif options:
            raise UserError(f"options ({', '.join(options)}) go with a decoder's name, not with checked options")
        else:
            chosen, where = override(decoder, "decoder"), "decoder"
        chosen.check_lengths(gen_length, steps, where)
        self._check_prompts(ids, gen_length)
        return self._generate(ids, chosen, steps, gen_length, seed, batch_size)

    def _ids(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            return encode(self.tokenizer, [prompt])[0]
        try:
            return [operator.index(i) for i in prompt]
        except TypeError:
            raise UserError(f"a prompt must be a text or a list of token ids, got {str(prompt)[:60]}") from None

    def _generate(
        self, ids: list[list[int]], options: DecoderOptions, steps: int, gen_length: int, seed: int, batch_size: int
    ) -> Generation:
        eos_id = self.tokenizer.eos_token_id
        # Rows of like length share a batch: less padding. The noise follows the row, not its place.
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        keys = row_keys(ids, seed)
        parts = []
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            parts.append(
                decode(
                    self.denoiser,
                    [ids[i] for i in chosen],
                    make_decoder(options),
                    gen_length=gen_length,
                    steps=steps,
                    keys=keys[chosen],
                    eos_id=eos_id,
                )
            )
        back = torch.tensor(order).argsort()

        def gather(name: str) -> Tensor:
            return torch.cat([getattr(part, name) for part in parts])[back]

        tokens = cut_at_eos(gather("tokens"), eos_id)
        texts = [decode_text(self.tokenizer, before_eos(row, eos_id)) for row in tokens.tolist()]
        return Generation(texts, tokens, gather("nfe"), gather("leftover_masks"), gather("commit_step"))

    def _check_prompts(self, ids: list[list[int]], gen_length: int) -> None:
        if not ids:
            raise UserError("no prompts were given; pass at least one")
        limit = self.denoiser.model.config.max_position_embeddings
        vocab = self.denoiser.model.config.vocab_size
        for number, prompt in enumerate(ids):
            if len(prompt) + gen_length > limit:
                raise UserError(
                    f"prompt {number} has {len(prompt)} tokens; with gen_length {gen_length} that exceeds the model's "
                    f"{limit} positions; shorten one of them"
                )
            if any(not 0 <= i < vocab for i in prompt):
                raise UserError(f"prompt {number} has a token id outside the vocabulary of {vocab}")


def cut_at_eos(tokens: Int[Tensor, "batch length"], eos_id: int) -> Int[Tensor, "batch length"]:
    """Everything after a row's first EOS becomes EOS."""
    ended = (tokens == eos_id).cumsum(-1) > 0
    return torch.where(ended, eos_id, tokens)
