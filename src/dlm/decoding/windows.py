"""Windows: how strongly each position is preferred, as a log-weight added to its score; -inf for not yet."""

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
