"""A plain decoder to compare with: one prompt at a time, as public research code is written.

Every step runs the whole canvas through the model with the head at all positions, turns [1, L, V] logits into
probabilities (SUBS), ranks the whole vocabulary at all positions, and draws jointly over the kept tokens and the mask.
No cache, no early exit, no batch. Only torch here: nothing of dlm.decoding but the options' types.

The public code of Conv computes probabilities in the model's own type (float32 for its small model), MDLM's later
versions and LLaDA's in float64; so the type is an argument.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from dlm.decoding.options import CategoricalOptions, DecoderOptions, LowConfidenceOptions, TopKOptions


@dataclass(frozen=True)
class Plain:
    """A decoded canvas and the forward passes it took."""

    tokens: Int[Tensor, " length"]
    nfe: int


@dataclass(frozen=True)
class PlainDecoder:
    """What a plain decoder needs besides a prompt.

    Attributes:
        model: a bidirectional causal-LM class: input ids [1, L] -> logits [1, L, V].
        options: the library's options; `supports` says which of them are understood here.
        dtype: of probabilities and noise, float64 or float32.
        bf16: run the model under bfloat16 autocast.
    """

    model: PreTrainedModel
    mask_id: int
    options: DecoderOptions
    dtype: torch.dtype = torch.float64
    bf16: bool = False

    @torch.inference_mode()
    def decode(self, prompt: list[int], gen_length: int, steps: int, generator: torch.Generator) -> Plain:
        """Fill `gen_length` masks behind `prompt` in `steps` steps (and one greedy pass where masks are left)."""
        canvas = torch.tensor([[*prompt, *[self.mask_id] * gen_length]], device=self.model.device)
        block = self.options.block_length or gen_length
        each = steps // (gen_length // block)
        nfe = 0
        for start in range(len(prompt), canvas.shape[1], block):
            for step in range(each):
                canvas = self._step(canvas, start + block, step, each, generator)
                nfe += 1
        if (canvas == self.mask_id).any():
            best = self.log_probs(canvas).argmax(-1)
            canvas = torch.where(canvas == self.mask_id, best, canvas)
            nfe += 1
        return Plain(canvas[0].cpu(), nfe)

    def log_probs(self, canvas: Int[Tensor, "1 length"]) -> Float[Tensor, "1 length vocab"]:
        """SUBS: the mask has no probability; an unmasked position keeps its token with probability 1."""
        with torch.autocast(canvas.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            logits = self.model(input_ids=canvas, use_cache=False).logits
        logits = logits.float()
        logits[..., self.mask_id] = float("-inf")
        log_probs = logits - logits.logsumexp(-1, keepdim=True)
        unmasked = canvas != self.mask_id
        log_probs[unmasked] = float("-inf")
        log_probs[unmasked, canvas[unmasked]] = 0
        return log_probs

    def _step(self, canvas: Tensor, end: int, step: int, steps: int, generator: torch.Generator) -> Tensor:
        probs = torch.softmax(self.log_probs(canvas).to(self.dtype), dim=-1)
        if isinstance(self.options, LowConfidenceOptions):
            return self._most_confident(canvas, probs, end, steps - step)
        weights, ids = self.transition(canvas, probs, (steps - step) / steps, (steps - step - 1) / steps)
        noise = torch.rand(weights.shape, dtype=self.dtype, device=weights.device, generator=generator)
        # An exponential race: the largest weight / Exp(1) is a draw in proportion to the weights.
        drawn = (weights / (1e-10 - (noise + 1e-10).log())).argmax(-1, keepdim=True)
        tokens = drawn[..., 0] if ids is None else ids.gather(-1, drawn)[..., 0]
        return torch.where(canvas == self.mask_id, tokens, canvas)

    def transition(
        self, canvas: Int[Tensor, "1 length"], probs: Float[Tensor, "1 length vocab"], t: float, s: float
    ) -> tuple[Float[Tensor, "1 length slots"], Int[Tensor, "1 length slots"] | None]:
        """Unnormalised weights of every outcome at every position, and the tokens they stand for (None: the ids).

        Token j of position i: p_ij·s_i·s_norm·(t - s), s_norm = Σ_i Σ_V p_ij / Σ_i Σ_k p_ij·s_i over the masked i
        (paper §4.1, §A.3; Eq. 4 over the whole vocabulary); the mask: s, or 1 where no token has any weight.
        """
        if not isinstance(self.options, TopKOptions):
            weights = probs * (t - s)
            weights[..., self.mask_id] = s
            return weights, None
        best, ids = probs.topk(min(self.options.top_k, probs.shape[-1]), dim=-1)
        masked = canvas == self.mask_id
        near = self._nearness(canvas)
        kept = best * near[..., None]
        norm = probs[masked].sum() / kept[masked].sum()
        stay = torch.where(near > 0, s, 1.0).to(probs.dtype)
        weights = torch.cat([kept * norm * (t - s), stay[..., None]], dim=-1)
        return weights, torch.cat([ids, torch.full_like(ids[..., :1], self.mask_id)], dim=-1)

    def _nearness(self, canvas: Int[Tensor, "1 length"]) -> Float[Tensor, "1 length"]:
        """s_i = tanh(conv_mult·u_i), u_i the unmasked positions within the kernel; 1 without a kernel."""
        size = self.options.kernel_size
        if size is None:
            return torch.ones(canvas.shape, dtype=self.dtype, device=canvas.device)
        unmasked = (canvas != self.mask_id).float()
        kernel = torch.ones(1, 1, size, device=canvas.device)
        return torch.tanh(self.options.conv_mult * F.conv1d(unmasked[:, None], kernel, padding=size // 2)[:, 0])

    def _most_confident(self, canvas: Tensor, probs: Tensor, end: int, steps_left: int) -> Tensor:
        """LLaDA: the best token of the most confident positions of the block, ceil(masks left / steps left) of them."""
        masked = canvas == self.mask_id
        masked[:, end:] = False
        confidence, tokens = probs.max(-1)
        confidence = torch.where(masked, confidence * self._nearness(canvas), float("-inf"))
        count = -(-int(masked.sum()) // steps_left)
        chosen = confidence[0].topk(count).indices
        chosen = chosen[confidence[0, chosen] > 0]
        canvas = canvas.clone()
        canvas[0, chosen] = tokens[0, chosen]
        return canvas


def supports(options: DecoderOptions) -> bool:
    """Whether the plain decoder computes what these options ask for, but for approximations, caches and early exits."""
    checks: dict[type[DecoderOptions], Callable[[], bool]] = {
        CategoricalOptions: lambda: options.block_length is None and options.kernel_size is None,
        TopKOptions: lambda: options.block_length is None,
        LowConfidenceOptions: lambda: (
            isinstance(options, LowConfidenceOptions)
            and (options.confidence, options.temperature) == ("probability", 0.0)
            and (options.block_length is None or options.variant == "restrict")
        ),
    }
    known = checks.get(type(options))
    window = options.kernel_size is None or (options.gain, options.kernel) == ("tanh", "box")
    logits = (options.penalty, options.cfg_scale, options.eos) == (1, 0, "free")
    return known is not None and known() and window and logits
