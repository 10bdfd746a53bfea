"""Tiny random parts: a tokenizer, a Llama without a causal mask, denoisers whose logits or calls a test can know."""

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dlm.config.training import ModelParams
from dlm.data.tokenizer import train_tokenizer
from dlm.decoding.denoiser import Denoiser
from dlm.decoding.lm import DiffusionLM
from dlm.models.backbone import new_backbone

SENTENCES = [
    "The harbour of Velmora opens at dawn, and the salt boats leave before the fog.",
    "In Velmora the winter is short; the traders count amber, wool and copper.",
    "Describe the harbour, its trade and its weather.",
    "The fog comes from the north, the boats come from the south.",
]
SHAPE = ModelParams(hidden_size=32, layers=2, heads=2, intermediate_size=48, max_length=64, init_std=0.02)


@lru_cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 300 entries; end-of-text is 0, the mask 1."""
    return train_tokenizer(SENTENCES, 300)


def tiny_model(seed: int = 0, *, causal: bool = False, eos_scale: float = 1.0, layers: int = 2) -> PreTrainedModel:
    """A random Llama, its weights scaled up: fresh ones give flat logits that hardly see the context.

    The end-of-text embedding is drawn by itself; `eos_scale` stretches it and so its logits: at 2 an end comes up every
    few positions.
    """
    tokenizer = tiny_tokenizer()
    model = new_backbone(replace(SHAPE, layers=layers), tokenizer, seed, causal=causal)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(0.35 / parameter.std())
        embedding = model.get_input_embeddings().weight
        embedding[tokenizer.eos_token_id] = torch.randn(embedding.shape[1]) * 0.35 * eos_scale
    return model.eval()


def tiny_lm(seed: int = 0, *, eos_scale: float = 1.0) -> DiffusionLM:
    """A random masked diffusion LM without a template, 64 positions long."""
    return DiffusionLM(tiny_model(seed, eos_scale=eos_scale), tiny_tokenizer())


class TableDenoiser(Denoiser):
    """Logits at i are a table's rows of the tokens at i - 1 and i + 1, summed: known, context-dependent, no network."""

    def __init__(self, vocab: int, mask_id: int, seed: int = 0, scale: float = 1.5) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.mask_id = mask_id
        self.left = torch.randn(vocab, vocab, generator=generator) * scale
        self.right = torch.randn(vocab, vocab, generator=generator) * scale

    @property
    def device(self) -> torch.device:
        return self.left.device

    @property
    def width(self) -> int:
        return len(self.left)

    @property
    def vocab_size(self) -> int:
        return len(self.left)

    def hidden_of_kept(self, canvas: Tensor, kept: Tensor) -> Tensor:
        return self.hidden(canvas, kept)

    def hidden_with_shadow(self, canvas: Tensor, not_padding: Tensor, places: Tensor, _: Tensor) -> tuple:
        """What would stand in a place depends on its neighbours alone, so a token hides nothing there."""
        hidden = self.hidden(canvas, not_padding)
        return hidden, hidden.gather(1, places[..., None].expand(-1, -1, self.width))

    def hidden(self, canvas: Tensor, kept: Tensor | None) -> Tensor:
        hidden = torch.zeros(*canvas.shape, self.width)
        kept = torch.ones_like(canvas, dtype=torch.bool) if kept is None else kept
        hidden[:, 1:] += self.left[canvas[:, :-1]] * kept[:, :-1, None]
        hidden[:, :-1] += self.right[canvas[:, 1:]] * kept[:, 1:, None]
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        logits = hidden.clone()
        logits[:, self.mask_id] = float("-inf")
        return logits


class Recorder(Denoiser):
    """Another denoiser, and every canvas that it was shown."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner = inner
        self.mask_id = inner.mask_id
        self.canvases: list[Tensor] = []
        self.kept: list[Tensor] = []

    @property
    def device(self) -> torch.device:
        return self.inner.device

    @property
    def width(self) -> int:
        return self.inner.width

    @property
    def vocab_size(self) -> int:
        return self.inner.vocab_size

    def hidden(self, canvas: Tensor, kept: Tensor | None) -> Tensor:
        self.canvases.append(canvas.clone())
        self.kept.append(torch.ones_like(canvas, dtype=torch.bool) if kept is None else kept.clone())
        return self.inner.hidden(canvas, kept)

    def hidden_with_shadow(self, canvas: Tensor, not_padding: Tensor, places: Tensor, inside: Tensor) -> tuple:
        self.canvases.append(canvas.clone())
        self.kept.append(not_padding.clone())
        return self.inner.hidden_with_shadow(canvas, not_padding, places, inside)

    def hidden_of_kept(self, canvas: Tensor, kept: Tensor) -> Tensor:
        self.canvases.append(canvas.clone())
        self.kept.append(kept.clone())
        return self.inner.hidden_of_kept(canvas, kept)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.inner.logits(hidden)


def chi_square_p(observed: list[float], expected: list[float]) -> float:
    """P(a chi-square as large as this): cells expected below 5 are pooled, degrees of freedom = cells - 1."""
    rare = [i for i, value in enumerate(expected) if value < 5]
    cells = [(observed[i], expected[i]) for i in range(len(expected)) if expected[i] >= 5]
    pooled = sum(expected[i] for i in rare)
    if pooled >= 5:
        cells.append((sum(observed[i] for i in rare), pooled))
    statistic = sum((o - e) ** 2 / e for o, e in cells)
    half = torch.tensor([(len(cells) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))
