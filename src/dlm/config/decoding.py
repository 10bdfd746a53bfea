"""What is decoded: the blocks `decode`, `decoding`, `select`, `ablation`, `infill`, `rivals`, `sedd`."""

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
    told = "left out here, for DVC would know nothing of that file; the stage rivals takes the training answers'"
    require(raw.get("background") is None, dotted(where, "background"), told, raw.get("background"))
    lists = {key: value for key, value in raw.items() if isinstance(value, list)}
    candidates = tuple(dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values()))
    require(bool(candidates), where, "without empty lists", raw)
    options = tuple(decoder_options(name, {**raw, **chosen}, where) for chosen in candidates)
    return DecoderBlock(name, where, raw, candidates, options)


@dataclass(frozen=True)
class RivalsParams:
    """Decoders that need no training, over forward passes, without and with Conv's window (`make sweeps`).

    Attributes:
        checkpoint: a folder of build/models.
        passes: from how many forward passes to how many the area under a curve goes.
        options: what all of them have.
        window: options of Conv's window, which each decoder gets as well.
        decoders: name -> its options, as in `decoding`. A list is what its curve goes through; `steps` may be one, and
            is gen_length unless given.
    """

    checkpoint: str
    prompts: Count
    seeds: tuple[int, ...]
    passes: tuple[int, ...]
    options: dict[str, Any]
    window: dict[str, Any]
    decoders: dict[str, Any]

    def check(self, where: str) -> None:
        check_seeds(self.seeds, dotted(where, "seeds"))
        rising = len(self.passes) == 2 and 1 <= self.passes[0] < self.passes[1]
        require(rising, dotted(where, "passes"), "two numbers from 1, the second above the first", self.passes)
        require("kernel_size" in self.window, dotted(where, "window"), "with kernel_size", self.window)
        require(bool(self.decoders), dotted(where, "decoders"), "a decoder or more", self.decoders)
        for name, block in self.decoders.items():
            inside = dotted(dotted(where, "decoders"), name)
            require(block is None or isinstance(block, dict), inside, "a block of options", block)
            plain = not {*self.options, *(block or {})} & self.window.keys()
            plain &= all(options.kernel_size is None for options, _ in self.curve(name, False, 1, where))
            require(plain, inside, "without a window, which the stage adds", block)
            self.curve(name, True, 1, where)

    def curve(
        self, name: str, windowed: bool, gen_length: int, where: str = "params.yaml: rivals"
    ) -> list[tuple[DecoderOptions, int]]:
        """(options, steps) of every point of a decoder's curve, in the order of its lists.

        Raises:
            UserError: a decoder or an option that is none.
        """
        inside = dotted(dotted(where, "decoders"), name)
        block = {**self.options, **(self.decoders[name] or {}), **(self.window if windowed else {})}
        steps = block.pop("steps", gen_length)
        points = [
            (options, count)
            for options in _decoder_block(name, block, inside).options
            for count in (steps if isinstance(steps, list) else [steps])
        ]
        for _, count in points:
            whole = isinstance(count, int) and not isinstance(count, bool) and count >= 1
            require(whole, dotted(inside, "steps"), "a whole number from 1, or a list of them", steps)
        require(bool(points), dotted(inside, "steps"), "no empty list", steps)
        return points


@dataclass(frozen=True)
class SeddParams:
    """SEDD, trained by score entropy, beside the SFT-only model (`make sweeps`, docs/sedd.md).

    Attributes:
        steps: of training; None for as many as the SFT-only model has.
        options: of `tweedie`, and of `categorical`, with which both models are decoded.
    """

    steps: Count | None
    options: dict[str, Any]

    def check(self, where: str) -> None:
        for name in ("tweedie", "categorical"):
            self.decoder(name, where)

    def decoder(self, name: str, where: str = "params.yaml: sedd") -> DecoderOptions:
        """A decoder with the block's options. Raises UserError."""
        return decoder_options(name, self.options, dotted(where, "options"))
