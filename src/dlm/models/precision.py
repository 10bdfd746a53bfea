"""Which floating-point type a run computes in."""

import torch

from dlm.errors import UserError


def use_bf16(precision: str) -> bool:
    """`auto` takes bfloat16 where the hardware computes in it: CUDA, or a CPU with AVX512-BF16 or AMX.

    Raises:
        UserError: another word than auto, fp32 or bf16.
    """
    if precision not in ("auto", "fp32", "bf16"):
        raise UserError(f"precision must be auto, fp32 or bf16, got {precision!r}")
    if precision != "auto":
        return precision == "bf16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
