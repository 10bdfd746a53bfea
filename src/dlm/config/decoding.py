"""What is decoded: the blocks `decode`, `select`, `ablation`, `infill` (decoders.py has the decoders' own)."""

import math
from dataclasses import dataclass
from typing import Literal

from dlm.config.checks import check_launcher, check_seeds
from dlm.config.schema import at_least, dotted, require


@dataclass(frozen=True)
class DecodeParams:
    """What every cell of the decoder x checkpoint matrix shares.

    Attributes:
        steps: the budgets: each S of the table, fewest first.
    """

    launcher: str
    seeds: tuple[int, ...]
    steps: tuple[int, ...]
    gen_length: int
    batch_size: int
    precision: Literal["auto", "fp32", "bf16"]
    compile: Literal["none", "default", "cuda_graphs"]

    def check(self, where: str) -> None:
        check_launcher(self.launcher, where)
        at_least(self, where, 1, ["gen_length", "batch_size"])
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

    prompts: int
    seeds: tuple[int, ...]

    def check(self, where: str) -> None:
        at_least(self, where, 1, ["prompts"])
        check_seeds(self.seeds, dotted(where, "seeds"))


@dataclass(frozen=True)
class AblationParams:
    """As many steps as tokens: semi-AR (claim 4), and Conv with the cache, without and with EOS-fill (claim 5)."""

    prompts: int
    seeds: tuple[int, ...]
    steps: int

    def check(self, where: str) -> None:
        at_least(self, where, 1, ["prompts", "steps"])
        check_seeds(self.seeds, dotted(where, "seeds"))


@dataclass(frozen=True)
class InfillParams:
    """Bidirectional generation on the builtin corpus (evaluation/bidirectional.py); no part of the default run."""

    prompts: int
    seeds: tuple[int, ...]
    steps: tuple[int, ...]
    decoders: tuple[str, ...]

    def check(self, where: str) -> None:
        at_least(self, where, 1, ["prompts"])
        check_seeds(self.seeds, dotted(where, "seeds"))
        require(min(self.steps, default=0) >= 1, dotted(where, "steps"), "a list from 1", self.steps)
