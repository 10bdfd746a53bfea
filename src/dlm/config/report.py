"""The report and the figures of the sweeps: the blocks `report`, `sweeps`."""

from dataclasses import dataclass
from typing import Any, Literal

from dlm.config.checks import check_seeds
from dlm.config.schema import Count, Positive, dotted, require
from dlm.decoding.options import Gain


@dataclass(frozen=True)
class ReportParams:
    """The report page; `decoders` are the cells it shows, the decoder axis of dvc.yaml.

    Attributes:
        paper: which of the paper's tables stand beside ours, those of its small or of its large model.
    """

    results: str
    decoders: tuple[str, ...]
    title: str
    samples: int
    paper: Literal["small", "large"]


@dataclass(frozen=True)
class RejectionParams:
    """R2FT with other negatives and for longer (paper Fig. 12); no part of the default run.

    Attributes:
        steps: of each run.
        learning_rate: instead of r2ft's: a larger one shows in few steps what too many steps do.
        every: steps between two looks at what the model writes.
        decoders: what it writes with.
        negatives: name -> what it changes in the block `negatives`.
    """

    steps: Count
    learning_rate: Positive
    every: Count
    decoders: tuple[str, ...]
    negatives: dict[str, Any]

    def check(self, where: str) -> None:
        require(self.steps % self.every == 0, dotted(where, "steps"), f"a multiple of every ({self.every})", self.steps)


@dataclass(frozen=True)
class NgramParams:
    """The n-gram scorer (evaluation/ngram.py): its order, and at most how many tokens of text it is made of."""

    order: Count
    tokens: Count


@dataclass(frozen=True)
class SweepsParams:
    """Settings of decoders and of R2FT that the figures go through (`make sweeps`); no part of the default run.

    Attributes:
        prompts, seeds: of each setting.
        baseline: the cell (CHECKPOINT-DECODER of the matrix) whose answers the win rates compare with.
        steps: S of the decoders of the report.
        blocks, kernels: semi-AR's block lengths and Conv's kernel sizes, each with S of size_steps.
        gains, top_k: of Conv and of top_k, at the first of decode.steps.
        candidates: k of the candidate zone; distance_bin: positions that one point of a curve averages over.
        profiles: files of profiles/ that the whole pipeline runs on as well.
    """

    prompts: Count
    seeds: tuple[int, ...]
    baseline: str
    steps: tuple[int, ...]
    size_steps: tuple[int, ...]
    blocks: tuple[int, ...]
    kernels: tuple[int, ...]
    gains: tuple[Gain, ...]
    top_k: tuple[int, ...]
    candidates: Count
    ngram: NgramParams
    distance_bin: Count
    profiles: tuple[str, ...]
    rejection: RejectionParams

    def check(self, where: str) -> None:
        check_seeds(self.seeds, dotted(where, "seeds"))
        for name in ("steps", "size_steps", "blocks", "kernels", "top_k"):
            require(min(getattr(self, name), default=0) >= 1, dotted(where, name), "a list from 1", getattr(self, name))
        for size in self.kernels:
            require(size % 2 == 1, dotted(where, "kernels"), "odd", size)
