"""The models that are measured: the shipped checkpoint, and random weights in published shapes."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from dlm.decoding.denoiser import Denoiser
from dlm.errors import UserError
from dlm.models.backbone import load_checkpoint

BUILTIN = Path(__file__).parents[1] / "data" / "base" / "mdlm"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Shape:
    """A Llama without a causal mask, its head untied.

    Attributes:
        intermediate: of the gated MLP; 2/3 of a plain MLP's width has the same FLOPs.
    """

    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocab: int
    positions: int
    mask_id: int
    eos_id: int
    rope_theta: float = 10000.0


SHAPES = {
    # Sahoo et al. 2024: 12 x 768, a plain MLP of 3072, GPT-2's vocabulary and a mask.
    "mdlm-small": Shape(12, 768, 12, 2048, 50258, 2048, 50257, 50256),
    # Nie et al. 2025.
    "llada-8b": Shape(32, 4096, 32, 12288, 126464, 4096, 126336, 126081, 500000.0),
}
MODELS = ("builtin", *SHAPES)
GPU_ONLY = ("llada-8b",)


@dataclass(frozen=True)
class Subject:
    """A model and the two ids that decoding needs. With `bf16` its weights are bfloat16 and autocast is on."""

    name: str
    model: PreTrainedModel
    mask_id: int
    eos_id: int
    bf16: bool
    compile: str = "none"

    @cached_property
    def denoiser(self) -> Denoiser:
        return Denoiser(self.model, self.mask_id, bf16=self.bf16, compile=self.compile)

    def canvas(self, prompts: list[list[int]], gen_length: int) -> Tensor:
        """Prompts of one length with their masks, [batch, length]."""
        masks = [self.mask_id] * gen_length
        return torch.tensor([[*prompt, *masks] for prompt in prompts], device=self.model.device)

    @torch.inference_mode()
    def forward(self, canvas: Tensor) -> None:
        """The bare forward pass: final hidden states, no head."""
        with torch.autocast(canvas.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            self.model.get_decoder()(input_ids=canvas, use_cache=False)

    @torch.inference_mode()
    def compiled_forward(self, canvas: Tensor) -> None:
        """The same as the denoiser runs it."""
        self.denoiser.hidden(canvas, None)

    def prompts(self, count: int, length: int) -> list[list[int]]:
        """Random ids, neither mask nor end-of-text; the first n of a longer list are the shorter one."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.arange(self.model.config.vocab_size)
        ids = ids[(ids != self.mask_id) & (ids != self.eos_id)]
        return ids[torch.randint(len(ids), (count, length), generator=generator)].tolist()


def load_subject(name: str, device: str, dtype: str, compile: str = "none") -> Subject:
    """Make or load a model on `device` with weights of `dtype`.

    Raises:
        UserError: a model that is too large for a CPU, or no means to compile.
    """
    if name in GPU_ONLY and not device.startswith("cuda"):
        raise UserError(f"--model {name} needs a GPU with 24 GB or more; pass --device cuda there, or another --model")
    bf16 = dtype == "bfloat16"
    if name == "builtin":
        model, tokenizer = load_checkpoint(BUILTIN, causal=False)
        for parameter in model.parameters():  # not the buffers: rotary frequencies stay float32
            parameter.data = parameter.data.to(device, DTYPES[dtype])
        torch.nn.Module.to(model, device)
        return Subject(name, model.eval(), tokenizer.mask_token_id, tokenizer.eos_token_id, bf16, compile)
    shape = SHAPES[name]
    return Subject(name, random_model(shape, device, DTYPES[dtype]), shape.mask_id, shape.eos_id, bf16, compile)


def random_model(shape: Shape, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """Random weights, drawn on the device itself. They never see the end of a text, so every token costs the same."""
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.positions,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=False,
        use_cache=False,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=shape.eos_id,
    )
    config.is_causal = False
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval()
