"""Metrics and judges: the blocks `evaluate` and `likelihood`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from dlm.config.schema import AtLeast, Count, dotted, require


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
    concurrency: Count
    grades: bool
    difficulty: str | None

    def check(self, where: str) -> None:
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

    high_prior_tokens: Count
    scorer: str | None
    bootstrap_samples: Annotated[int, AtLeast(10)]
    judge: JudgeParams


@dataclass(frozen=True)
class LikelihoodParams:
    """The bound on every checkpoint's log-likelihood of held-out answers (dlm.likelihood).

    Attributes:
        records: the first so many of valid.
        samples: masked canvases an answer.
    """

    records: Count
    samples: Annotated[int, AtLeast(16)]

    def check(self, where: str) -> None:
        require(self.samples % 8 == 0, dotted(where, "samples"), "a multiple of 8", self.samples)
