"""A block-causal model beside the SFT-only one: the block `block_diffusion`."""

from dataclasses import dataclass, field
from typing import Any

from dlm.config.decoding import DecoderBlock, decoder_blocks
from dlm.config.schema import Count, dotted, require
from dlm.decoding.options import DecoderOptions, in_blocks


@dataclass(frozen=True)
class BlockDiffusionParams:
    """Block diffusion on the records and for the steps of the SFT-only model (`make sweeps`).

    Attributes:
        block_size: positions a block.
        t_range: lowest and highest masking rate that training draws, null for the paper's of this size.
        decoders: name -> its options, as in `decoding`, without lists.
        beside: cells (CHECKPOINT-DECODER of the matrix) that stand in the same table and figure.
    """

    block_size: Count
    t_range: tuple[float, ...] | None
    decoders: dict[str, DecoderBlock] = field(metadata={"parse": decoder_blocks})
    beside: tuple[str, ...]

    def check(self, where: str) -> None:
        bounds = self.t_range
        rising = bounds is None or (len(bounds) == 2 and 0 < bounds[0] <= bounds[1] <= 1)
        require(rising, dotted(where, "t_range"), "null, or two rates above 0 and up to 1, the lower first", bounds)
        require(bool(self.decoders), dotted(where, "decoders"), "a decoder or more", self.decoders)
        for name, block in self.decoders.items():
            require(len(block.options) == 1, dotted(dotted(where, "decoders"), name), "without lists", block.values)
            self.options(name)

    @property
    def bounds(self) -> tuple[float, float] | None:
        """`t_range` as a pair."""
        return None if self.t_range is None else (self.t_range[0], self.t_range[1])

    @property
    def values(self) -> dict[str, Any]:
        """As they stand in the file, for the tracker."""
        decoders = {name: block.values for name, block in self.decoders.items()}
        return {"block_size": self.block_size, "t_range": self.t_range, "decoders": decoders, "beside": self.beside}

    def options(self, name: str) -> DecoderOptions:
        """A decoder's options inside the model's blocks. Raises UserError for one that does not go with them."""
        block = self.decoders[name]
        return in_blocks(block.options[0], self.block_size, block.where)
