"""Windows: how strongly each position is preferred, as a log-weight added to its score; -inf for not yet."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from dlm.decoding.options import Gain, Kernel

Window = Callable[[Bool[Tensor, "batch length"]], Float[Tensor, "batch length"]]


def flat(committed: Bool[Tensor, "batch length"]) -> Float[Tensor, "batch length"]:
    """No window: every position weighs the same."""
    return torch.zeros(committed.shape, device=committed.device)


def both(one: Window, other: Window) -> Window:
    """The product of the weights of two windows."""
    return lambda committed: one(committed) + other(committed)


def certainty(sigma: float) -> Window:
    """d2Cache's certainty prior (arXiv 2509.23094, Eq. 3): the share of known tokens around, by a Gaussian.

    s_i = Σ_j φ(i - j)·[j known] / Σ_j φ(i - j), φ(d) = exp(-d² / 2σ²), over all whole j: what stands left of the canvas
    counts as known, what stands right of it does not. Never 0. Up to 8σ; beyond, φ is below 1e-13.
    """
    reach = math.ceil(8 * sigma)
    distance = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = torch.exp(-(distance**2) / (2 * sigma**2))
    beyond = kernel[: reach + 1].cumsum(0)[:reach].flip(0)  # Σ_{d > i} φ(d), i = 0, 1, ..., reach - 1

    def window(committed: Bool[Tensor, "batch length"]) -> Float[Tensor, "batch length"]:
        weights, left = kernel.to(committed.device), beyond.to(committed.device)
        known = F.conv1d(committed.double()[:, None], weights.view(1, 1, -1), padding=reach)[:, 0]
        length = committed.shape[1]
        known = known + F.pad(left[:length], (0, max(length - reach, 0)))
        return (known / weights.sum()).log().float()

    return window


def conv(kernel_size: int, gain: Gain, conv_mult: float, kernel: Kernel = "box") -> Window:
    """Convolutional decoding (paper §4.1): s_i = g(u_i), u_i = unmasked positions within the kernel centred at i.

    u is a 1-D convolution of the committed positions with the kernel, zero padding. The kernel is `kernel_size` ones
    (box, the paper's) or exp(-2·distance / (kernel_size // 2)) (exponential). The gains g, with u's share of the kernel
    for `linear`:
        tanh(conv_mult·u), the paper's; min(1, conv_mult·u / kernel_size); sigmoid(conv_mult·u), which leaves 1/2 where
        there is no context; step, 1 where there is any.
    Returns log s: -inf where s = 0, a position that cannot commit yet. A row where nothing is committed at all, which
    has no place to start from, weighs all its positions alike.
    """
    reach = kernel_size // 2
    gains: dict[str, Callable[[Tensor], Tensor]] = {
        "tanh": lambda u: torch.tanh(conv_mult * u),
        "linear": lambda u: (conv_mult * u / kernel_size).clamp(max=1),
        "sigmoid": lambda u: torch.sigmoid(conv_mult * u),
        "step": lambda u: (u > 0).float(),
    }
    apply = gains[gain]

    def window(committed: Bool[Tensor, "batch length"]) -> Float[Tensor, "batch length"]:
        log_s = apply({"box": _box, "exponential": _exponential}[kernel](committed, reach)).log()
        return log_s.masked_fill(log_s.isneginf() & ~committed.any(-1, keepdim=True), 0.0)

    return window


def _box(committed: Bool[Tensor, "batch length"], reach: int) -> Float[Tensor, "batch length"]:
    """The convolution with ones: a difference of running totals."""
    length = committed.shape[1]
    total = F.pad(committed.long().cumsum(-1), (1, 0))
    place = torch.arange(length, device=committed.device)
    within = total[:, (place + reach + 1).clamp(max=length)] - total[:, (place - reach).clamp(min=0)]
    return within.float()


def _exponential(committed: Bool[Tensor, "batch length"], reach: int) -> Float[Tensor, "batch length"]:
    distance = torch.arange(-reach, reach + 1, device=committed.device).abs()
    weights = torch.exp(-2.0 * distance / max(reach, 1))
    return F.conv1d(committed.float()[:, None], weights.view(1, 1, -1), padding=reach)[:, 0]
