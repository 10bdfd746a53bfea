"""The blocks of params.yaml from decoding to the report, as frozen dataclasses (blocks.py has the others)."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from dlm.blocks import check_launcher, check_seeds
from dlm.decoding.options import Gain
from dlm.schema import at_least, dotted, require


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

    steps: int
    learning_rate: float
    every: int
    decoders: tuple[str, ...]
    negatives: dict[str, Any]

    def check(self, where: str) -> None:
        at_least(self, where, 1, ["steps", "every"])
        require(self.learning_rate > 0, dotted(where, "learning_rate"), "above 0", self.learning_rate)
        require(self.steps % self.every == 0, dotted(where, "steps"), f"a multiple of every ({self.every})", self.steps)


@dataclass(frozen=True)
class NgramParams:
    """The n-gram scorer (evaluation/ngram.py): its order, and at most how many tokens of text it is made of."""

    order: int
    tokens: int

    def check(self, where: str) -> None:
        at_least(self, where, 1, ["order", "tokens"])


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
    """

    prompts: int
    seeds: tuple[int, ...]
    baseline: str
    steps: tuple[int, ...]
    size_steps: tuple[int, ...]
    blocks: tuple[int, ...]
    kernels: tuple[int, ...]
    gains: tuple[Gain, ...]
    top_k: tuple[int, ...]
    candidates: int
    ngram: NgramParams
    distance_bin: int
    rejection: RejectionParams

    def check(self, where: str) -> None:
        at_least(self, where, 1, ["prompts", "candidates", "distance_bin"])
        check_seeds(self.seeds, dotted(where, "seeds"))
        for name in ("steps", "size_steps", "blocks", "kernels", "top_k"):
            require(min(getattr(self, name), default=0) >= 1, dotted(where, name), "a list from 1", getattr(self, name))
        for size in self.kernels:
            require(size % 2 == 1, dotted(where, "kernels"), "odd", size)


@dataclass(frozen=True)
class JudgeParams:
    """Who compares each answer with the reference's for the win rates (evaluation/judges).

    Attributes:
        kind: auto (the builtin corpus's exact judge, none elsewhere), endpoint (OpenAI-compatible chat) or local (a
            causal LM of transformers).
        model: the endpoint's name for it, or a folder or hub name for local.
        key_variable: the environment variable that holds the endpoint's key.
        grades: also grade every answer from 1 to 5 (endpoint and local).
        difficulty: a CSV with a column instruction_difficulty, one row for each prompt of the evaluation set.
    """

    kind: Literal["auto", "none", "endpoint", "local"]
    base_url: str
    model: str
    key_variable: str
    concurrency: int
    grades: bool
    difficulty: str | None

    def check(self, where: str) -> None:
        at_least(self, where, 1, ["concurrency"])
        is_model = self.kind in ("endpoint", "local")
        named = bool(self.model) or not is_model
        require(named, dotted(where, "model"), f"the judge's name where kind is {self.kind}", self.model)
        gives = is_model or not self.grades
        require(gives, dotted(where, "grades"), f"false where kind is {self.kind}, which gives none", self.grades)


@dataclass(frozen=True)
class EvaluateParams:
    """Metrics, win rates and their intervals.

    Attributes:
        scorer: a causal LM (folder or hub name) for perplexity and inlier; None for the reference.
    """

    high_prior_tokens: int
    scorer: str | None
    bootstrap_samples: int
    judge: JudgeParams

    def check(self, where: str) -> None:
        at_least(self, where, 1, ["high_prior_tokens"])
        at_least(self, where, 10, ["bootstrap_samples"])


@dataclass(frozen=True)
class ReportParams:
    """The report page; `decoders` are the cells it shows, the decoder axes of dvc.yaml.

    Attributes:
        paper: which of the paper's tables stand beside ours, those of its small or of its large model.
    """

    results: str
    decoders: tuple[str, ...]
    title: str
    samples: int
    paper: Literal["small", "large"]
