"""What is decoded: the blocks `decode`, `decoding`, `select`, `ablation`, `infill`."""

import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal

from dlm.config.checks import check_launcher, check_seeds
from dlm.config.schema import Count, dotted, require
from dlm.decoding.options import DecoderOptions, decoder_options


@dataclass(frozen=True)
class DecodeParams:
    """What every cell of the decoder x checkpoint matrix shares.

    Attributes:
        steps: the budgets: each S of the table, fewest first.
    """

    launcher: str
    seeds: tuple[int, ...]
    steps: tuple[int, ...]
    gen_length: Count
    batch_size: Count
    precision: Literal["auto", "fp32", "bf16"]
    compile: Literal["none", "default", "cuda_graphs"]

    def check(self, where: str) -> None:
        check_launcher(self.launcher, where)
        rising = bool(self.steps) and self.steps[0] >= 1 and list(self.steps) == sorted(set(self.steps))
        require(rising, dotted(where, "steps"), "a list of numbers from 1, each above the one before", self.steps)
        check_seeds(self.seeds, dotted(where, "seeds"))

    @property
    def judged_steps(self) -> int:
        """The budget that the claims are judged at: the nearest by ratio to the paper's S = 128.

        The paper commits 8 tokens a step in a kernel of 256 on a canvas of 1,024: 1/16 of the kernel's reach of 128.
        With a kernel of a quarter of the window that share is 8 / S, whatever the window's length.
        """
        return min(self.steps, key=lambda steps: abs(math.log(steps / 128)))


@dataclass(frozen=True)
class SelectParams:
    """Choosing among the candidates of a decoder's block, on prompts of valid."""

    prompts: Count
    seeds: tuple[int, ...]

    def check(self, where: str) -> None:
        check_seeds(self.seeds, dotted(where, "seeds"))


@dataclass(frozen=True)
class AblationParams:
    """As many steps as tokens: semi-AR (claim 4), and Conv with the cache, without and with EOS-fill (claim 5)."""

    prompts: Count
    seeds: tuple[int, ...]
    steps: Count

    def check(self, where: str) -> None:
        check_seeds(self.seeds, dotted(where, "seeds"))


@dataclass(frozen=True)
class InfillParams:
    """Bidirectional generation on the builtin corpus (evaluation/bidirectional.py); no part of the default run."""

    prompts: Count
    seeds: tuple[int, ...]
    steps: tuple[int, ...]
    decoders: tuple[str, ...]

    def check(self, where: str) -> None:
        check_seeds(self.seeds, dotted(where, "seeds"))
        require(min(self.steps, default=0) >= 1, dotted(where, "steps"), "a list from 1", self.steps)


@dataclass(frozen=True)
class DecoderBlock:
    """decoding.<name>: a decoder, and what lists in its block leave to choose.

    `kernel_size: [17, 9]` gives the candidates {"kernel_size": 17} and {"kernel_size": 9}; several lists give every
    combination; a block without lists has the one candidate {}.

    Attributes:
        where: what errors call it.
        values: the block as it stands in the file.
        options: of each candidate, checked.
    """

    name: str
    where: str
    values: dict[str, Any]
    candidates: tuple[dict[str, Any], ...]
    options: tuple[DecoderOptions, ...]

    def changed(self, **changes: Any) -> DecoderOptions:
        """The first candidate's options, some of them changed. Raises UserError for an impossible value."""
        if not changes:
            return self.options[0]
        return decoder_options(self.name, {**self.values, **self.candidates[0], **changes}, self.where)


def decoder_blocks(raw: Any, where: str) -> dict[str, DecoderBlock]:
    """The block `decoding`, every candidate checked. Raises UserError."""
    require(isinstance(raw, dict), where, "a block of keys", raw)
    return {str(name): _decoder_block(str(name), values, dotted(where, name)) for name, values in raw.items()}


def _decoder_block(name: str, raw: Any, where: str) -> DecoderBlock:
    if not isinstance(raw, dict):
        return DecoderBlock(name, where, {}, ({},), (decoder_options(name, raw, where),))
    lists = {key: value for key, value in raw.items() if isinstance(value, list)}
    candidates = tuple(dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values()))
    require(bool(candidates), where, "without empty lists", raw)
    options = tuple(decoder_options(name, {**raw, **chosen}, where) for chosen in candidates)
    return DecoderBlock(name, where, raw, candidates, options)
