"""The options of each decoder, as plain dataclasses: what a block `decoding.<name>` of params.yaml may hold.

No torch here: params.yaml is checked before anything heavy is imported.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from dlm.errors import UserError
from dlm.schema import at_least, build, dotted, require

Gain = Literal["tanh", "linear", "sigmoid", "step"]


@dataclass(frozen=True, kw_only=True)
class DecoderOptions:
    """Common to all decoders.

    Attributes:
        eos_fill: once a response position holds EOS, everything to its right becomes EOS (paper §B.2).
        cache: a step that committed nothing leaves its logits to the next (paper §B.2); exact.
    """

    eos_fill: bool = False
    cache: bool = True

    def check_lengths(self, gen_length: int, steps: int, where: str) -> None:
        """Refuse a window or a number of steps this decoder cannot divide."""


@dataclass(frozen=True, kw_only=True)
class CategoricalOptions(DecoderOptions):
    """Ancestral sampling over the whole vocabulary (MDLM; paper Eq. 4)."""


@dataclass(frozen=True, kw_only=True)
class TopKOptions(DecoderOptions):
    """The k best candidates per position, one global rescaling (paper §A.3)."""

    top_k: int = 20

    def check(self, where: str) -> None:
        at_least(self, where, 1, ["top_k"])


@dataclass(frozen=True, kw_only=True)
class LowConfidenceOptions(DecoderOptions):
    """A fixed number of positions a step, the most confident first, greedy tokens (LLaDA)."""


@dataclass(frozen=True, kw_only=True)
class SemiArOptions(TopKOptions):
    """Hard blocks from left to right over `rule`: `stride` (the paper's baseline) or `restrict` (LLaDA)."""

    rule: Literal["categorical", "top_k", "low_confidence"] = "top_k"
    variant: Literal["stride", "restrict"] = "stride"
    block_length: int = 32

    def check(self, where: str) -> None:
        at_least(self, where, 1, ["top_k", "block_length"])

    def check_lengths(self, gen_length: int, steps: int, where: str) -> None:
        if gen_length % self.block_length:
            raise UserError(
                f"{dotted(where, 'block_length')} must divide gen_length ({gen_length}), got {self.block_length}"
            )
        blocks = gen_length // self.block_length
        if steps % blocks:
            raise UserError(
                f"{where}: steps must be a multiple of the {blocks} blocks "
                f"(gen_length {gen_length} / block_length {self.block_length}), got {steps}"
            )


@dataclass(frozen=True, kw_only=True)
class ConvOptions(TopKOptions):
    """Conv (paper §4.1): a soft window, g of a convolution over what is already decoded, on top_k or low_confidence."""

    rule: Literal["top_k", "low_confidence"] = "top_k"
    kernel_size: int = 33
    gain: Gain = "tanh"
    conv_mult: float = 1.0

    def check(self, where: str) -> None:
        at_least(self, where, 1, ["top_k"])
        odd = self.kernel_size >= 1 and self.kernel_size % 2 == 1
        require(odd, dotted(where, "kernel_size"), "odd and at least 1", self.kernel_size)
        require(self.conv_mult > 0, dotted(where, "conv_mult"), "above 0", self.conv_mult)


OPTIONS: dict[str, type[DecoderOptions]] = {
    "categorical": CategoricalOptions,
    "top_k": TopKOptions,
    "low_confidence": LowConfidenceOptions,
    "semi_ar": SemiArOptions,
    "conv": ConvOptions,
}


def decoder_options(name: str, block: Any, where: str) -> DecoderOptions:
    """Check a decoder's options. A block may name its `decoder`; otherwise the block's own name is the decoder's.

    Raises:
        UserError: an unknown decoder or option, or an impossible value.
    """
    if block is not None and not isinstance(block, dict):
        raise UserError(f"{where} must be a block of options, got {block!r}")
    options = dict(block or {})
    decoder = options.pop("decoder", name)
    if not isinstance(decoder, str) or decoder not in OPTIONS:
        raise UserError(f"{where}: {decoder!r} is not a decoder; known: {', '.join(OPTIONS)}")
    return build(OPTIONS[decoder], options, where)


def override(options: DecoderOptions, where: str, **changes: Any) -> DecoderOptions:
    """The same decoder with some options changed, checked again."""
    return build(type(options), {**asdict(options), **changes}, where)
