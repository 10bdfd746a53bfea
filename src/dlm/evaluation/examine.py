"""The evaluation of a cell's answers at each budget: metrics, win rates against the reference, the area over passes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dlm.config.params import Params
from dlm.evaluation.area import quality_area
from dlm.evaluation.cell import Corpus, check_complete, closeness, load_corpus, real_features, score_answers, summarise
from dlm.evaluation.judges.choice import make_judges
from dlm.evaluation.judges.grades import Grader
from dlm.evaluation.judges.pairs import Judge
from dlm.evaluation.preferences import (
    Baseline,
    add_grades,
    add_preferences,
    baseline_of,
    places,
    read_difficulty,
)
from dlm.files import read_jsonl

Answers = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Examiner:
    """What judges and measures answers to the evaluation prompts.

    Attributes:
        baseline: the reference's answers, None where they are not compared with.
    """

    params: Params
    corpus: Corpus
    judge: Judge | None
    grader: Grader | None
    baseline: Baseline | None = None
    difficulty: Any = None
    real: Any = field(default=None, repr=False)

    @classmethod
    def load(cls, build: Path, params: Params, *, compare: bool = True) -> "Examiner":
        """From what the prepare and reference stages left.

        Args:
            compare: whether answers are compared with the reference's.
        """
        corpus = load_corpus(build, params.data, params.evaluate)
        judge, grader = make_judges(params.evaluate.judge, corpus.judge, params.seed)
        baseline = difficulty = None
        if judge is not None and compare:
            baseline = baseline_of(read_jsonl(build / "models/reference/answers.jsonl"))
            if params.evaluate.judge.difficulty is not None:
                difficulty = read_difficulty(params.evaluate.judge.difficulty, places(corpus.examples))
        real = real_features(corpus, params.decode.batch_size)
        return cls(params, corpus, judge, grader, baseline, difficulty, real)

    def results(self, checkpoint: str, decoder: str, answers: Iterable[dict[str, Any]], source: Path) -> Answers:
        """A cell's figures at each budget, in the order in which the answers have them.

        Args:
            answers: with `steps`; the reference's have none.
            source: what errors say they are from.

        Raises:
            UserError: a prompt without an answer, or with several; whatever the judge raises.
        """
        params, samples = self.params, self.params.evaluate.bootstrap_samples
        budgets: dict[int | None, list[dict[str, Any]]] = {}
        for answer in answers:
            budgets.setdefault(answer.get("steps"), []).append(answer)
        found, scored = [], {}
        for steps, of_budget in budgets.items():
            check_complete(of_budget, self.corpus, source)
            rows = self._scored(of_budget)
            result = {
                "checkpoint": checkpoint,
                "decoder": decoder,
                "steps": steps,
                "gen_length": params.decode.gen_length,
                **summarise(rows, samples, self.difficulty),
                **closeness(of_budget, self.real, self.corpus, params.decode.batch_size, params.seed),
            }
            found.append(result)
            if steps is not None:
                scored[steps] = rows
        area = quality_area(scored, samples)
        return [{**result, **area} for result in found]

    def _scored(self, answers: Answers) -> list[dict[str, Any]]:
        rows = score_answers(answers, self.corpus, self.params.decode.batch_size)
        if self.judge is not None and self.baseline is not None:
            add_preferences(rows, answers, self.corpus.examples, self.baseline, self.judge)
        if self.grader is not None:
            add_grades(rows, answers, self.corpus.examples, self.grader)
        return rows
