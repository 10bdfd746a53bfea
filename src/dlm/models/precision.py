"""Which floating-point type a run computes in."""

from dataclasses import dataclass

import torch
from torch import nn

from dlm.errors import UserError

WIDE = 256  # hidden size from which `auto` takes bfloat16 on a CPU


@dataclass(frozen=True)
class Precision:
    """bfloat16 (autocast over weights of any type) or float32; `why` is empty where a parameter names it."""

    bf16: bool
    why: str = ""

    def __str__(self) -> str:
        return f"{'bf16' if self.bf16 else 'fp32'}{f' ({self.why})' if self.why else ''}"


def check_precision(precision: str) -> None:
    """Raises UserError: another word than auto, fp32 or bf16."""
    if precision not in ("auto", "fp32", "bf16"):
        raise UserError(f"precision must be auto, fp32 or bf16, got {precision!r}")


def decide(precision: str, width: int, device: str) -> Precision:
    """`auto` takes bfloat16 on a GPU that computes in it, and on a CPU that does for models from WIDE on; else float32.

    On one thread of a processor with AVX512-BF16 training steps of 8 x 128 tokens were 2.2 times as fast at a width of
    256, 2.7 times at 576. Narrow models stay in float32, in which one run is like another wherever it runs.

    Args:
        width: the model's hidden size.
        device: cuda or cpu, where the model will be.

    Raises:
        UserError: as `check_precision`.
    """
    check_precision(precision)
    if precision != "auto":
        return Precision(precision == "bf16")
    if device != "cpu":
        has = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        return Precision(has, f"auto: the GPU {'computes' if has else 'does not compute'} in bfloat16")
    unit = bf16_unit()
    if unit is None:
        return Precision(False, "auto: the processor has neither avx512_bf16 nor amx_bf16")
    if width < WIDE:
        return Precision(False, f"auto: the model is {width} wide, {unit} pays from {WIDE} on")
    return Precision(True, f"auto: {unit}, the model is {width} wide")


def autocast(model: nn.Module) -> torch.autocast:
    """What `auto` comes to for a causal LM that is only read, a scorer or the reference, where it is."""
    weight = model.get_output_embeddings().weight  # type: ignore[operator]
    bf16 = decide("auto", weight.shape[1], weight.device.type).bf16
    return torch.autocast(weight.device.type, dtype=torch.bfloat16, enabled=bf16)


def bf16_unit() -> str | None:
    """What this machine's processor computes in bfloat16 with, None for nothing."""
    try:
        known = torch.cpu.get_capabilities()
    except AttributeError:  # an older torch
        return None
    return next((name for name in ("amx_bf16", "avx512_bf16") if known.get(name)), None)
