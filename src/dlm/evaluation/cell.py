"""All metrics of one cell (a checkpoint's answers under one decoder), each with its interval."""

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dlm.config.data import DataParams
from dlm.config.evaluation import EvaluateParams
from dlm.data.splits import log_prior, most_frequent, read_split
from dlm.errors import UserError
from dlm.evaluation import metrics
from dlm.evaluation.bootstrap import geometric_mean_with_ci, jackknife_ci, mean_with_ci
from dlm.evaluation.divergence import buckets, mauve, response_features
from dlm.evaluation.exact import CorpusJudge, corpus_judge
from dlm.evaluation.preferences import judge_failed, win_rates
from dlm.evaluation.scoring.relevance import Relevance
from dlm.evaluation.scoring.scorer import Scorer, load_scorer
from dlm.files import read_json
from dlm.models.backbone import load_checkpoint
from dlm.pipeline import processes

# Means over answers of a value each answer has; `perplexity` is the geometric mean.
PER_ANSWER = (
    "quality",
    "nfe",
    "leftover_masks",
    "length",
    "perplexity",
    "inlier",
    "inlier_log",
    "relevance",
    "relevance_total",
    "nonempty",
    "repetition_4",
    "prompt_repetition",
    "high_prior",
    "log_prior",
    "slot_error_rate",
    "well_formed",
    "exact_match",
    "missing_slots",
    "wrong_slots",
    "repeated_slots",
    "grade",
)


@dataclass(frozen=True)
class Corpus:
    """What the metrics need to know besides the answers.

    Attributes:
        examples: evaluation rows by id (instruction, input, prompt_ids, output, meta).
        high_prior: ids of the corpus's most frequent tokens.
        log_prior: smoothed log relative frequency of every id in the training answers.
        inlier_bounds: of the training responses' perplexities.
        log_inlier_bounds: the same, by their logarithms.
        eos_id: the end-of-text id.
        judge: the builtin corpus's exact judge, None for other corpora.
        scorer: for perplexity and relevance.
        reference: the autoregressive reference, for MAUVE.
        real: prompt_ids and answer_ids of held-out records, for MAUVE.
    """

    examples: Mapping[int, dict[str, Any]]
    high_prior: frozenset[int]
    log_prior: np.ndarray
    inlier_bounds: tuple[float, float]
    log_inlier_bounds: tuple[float, float]
    eos_id: int
    judge: CorpusJudge | None
    scorer: Scorer
    reference: torch.nn.Module
    real: Sequence[Mapping[str, list[int]]]


def load_corpus(build: Path, data: DataParams, evaluate: EvaluateParams, split: str = "eval") -> Corpus:
    """The corpus from what the prepare and reference stages left, with the prompts of `split`."""
    prepared, training = build / "data", build / "data/training"
    vocabulary = read_json(training / "vocabulary.json")
    frequent = most_frequent(vocabulary["token_counts"], evaluate.high_prior_tokens)
    reference = load_checkpoint(build / "models" / "reference", causal=True)[0]
    torch.nn.Module.to(reference, processes.device())
    scorer = load_scorer(build, evaluate.scorer, reference, vocabulary["eos_id"])
    perplexities = read_json(build / "models" / "reference" / "training_perplexities.json")
    known = [p for p in perplexities if p is not None]
    columns = ["id", "instruction", "input", "prompt", "prompt_ids", "meta", "output"]
    examples = read_split(prepared if split == "eval" else training, split, columns)
    return Corpus(
        examples={row["id"]: row for row in examples},
        high_prior=frozenset(frequent.tolist()),
        log_prior=log_prior(vocabulary["token_counts"]),
        inlier_bounds=metrics.inlier_bounds(known),
        log_inlier_bounds=metrics.log_inlier_bounds(known),
        eos_id=vocabulary["eos_id"],
        judge=corpus_judge(data, prepared),
        scorer=scorer,
        reference=reference,
        real=read_split(training, "valid", ["prompt_ids", "answer_ids"]),
    )


def check_complete(answers: Sequence[dict[str, Any]], corpus: Corpus, source: Path) -> None:
    """Check that every prompt has one answer for each seed of the file. Raises UserError for one with none, or more."""
    counts = Counter((answer["id"], answer["seed"]) for answer in answers)
    pairs = list(itertools.product(corpus.examples, {answer["seed"]: None for answer in answers} or [0]))
    for problem, wrong_pairs in (
        ("no answer", [pair for pair in pairs if not counts[pair]]),
        ("several answers", [pair for pair, count in counts.items() if count > 1]),
    ):
        if wrong_pairs:
            prompt, seed = wrong_pairs[0]
            raise UserError(
                f"{source}: {problem} to prompt {prompt} with seed {seed} "
                f"({len(wrong_pairs)} such of {len(pairs)}); decode again"
            )


def score_answers(answers: Sequence[dict[str, Any]], corpus: Corpus, batch_size: int) -> list[dict[str, Any]]:
    """One row of per-answer values (PER_ANSWER, None where a metric does not apply) for every answer.

    `quality` is one number for an answer: the mean of its well-formed share and 1 - its slot errors where there is an
    exact judge, elsewhere its relevance, total.

    Raises:
        UserError: an answer to a prompt that is not in the evaluation set.
    """
    unknown = {answer["id"] for answer in answers} - set(corpus.examples)
    if unknown:
        raise UserError(f"answers to unknown prompts ({sorted(unknown)[:5]}); decode again with this evaluation set")
    examples = [corpus.examples[answer["id"]] for answer in answers]
    perplexities, relevances = corpus.scorer.scores(examples, answers, batch_size)
    return [
        _score(answer, example, perplexity, relevance, corpus)
        for answer, example, perplexity, relevance in zip(answers, examples, perplexities, relevances, strict=True)
    ]


def _score(
    answer: dict[str, Any], example: dict[str, Any], perplexity: float | None, relevance: Relevance, corpus: Corpus
) -> dict[str, Any]:
    tokens = answer["tokens"]
    row = {
        "id": answer["id"],
        "seed": answer["seed"],
        "tokens": tokens,
        "quality": relevance.total,
        "nfe": answer["nfe"],
        "leftover_masks": answer["leftover_masks"],
        "length": len(tokens),
        "characters": len(answer["answer"]),
        "perplexity": perplexity,
        "inlier": float(metrics.is_inlier(perplexity, corpus.inlier_bounds)),
        "inlier_log": float(metrics.is_inlier(perplexity, corpus.log_inlier_bounds)),
        "relevance": relevance.per_token,
        "relevance_total": relevance.total,
        "nonempty": float(len(tokens) > 0),
        "repetition_4": metrics.repetition(tokens),
        "prompt_repetition": metrics.prompt_repetition(tokens, example["prompt_ids"], corpus.high_prior),
        "high_prior": metrics.high_prior_share(tokens, corpus.high_prior),
        "log_prior": metrics.mean_log_prior(tokens, corpus.log_prior),
    }
    meta = json.loads(example["meta"])
    if meta.get("set") == "gsm8k":
        row["exact_match"] = float(metrics.last_number(answer["answer"]) == metrics.last_number(example["output"]))
    report = None if corpus.judge is None else corpus.judge.report(answer["answer"], meta)
    if report is not None:
        row |= {
            "quality": (report.well_formed_share + 1 - report.slot_error_rate) / 2,
            "slot_error_rate": report.slot_error_rate,
            "well_formed": report.well_formed_share,
            "missing_slots": report.missing / report.requested,
            "wrong_slots": report.wrong / report.requested,
            "repeated_slots": report.repeated / report.requested,
        }
    return row


def summarise(
    rows: Sequence[dict[str, Any]], samples: int, difficulty: Mapping[int, float] | None = None
) -> dict[str, Any]:
    """Means with 95% intervals: bootstrap over prompts, whose seeds stay together (jackknife for distinct-2).

    Args:
        rows: of score_answers; with the judge's opinion where they carry it (evaluation.preferences).
        difficulty: of each prompt id, for the length-controlled win rate.
    """
    clusters = [row["id"] for row in rows]
    summary: dict[str, Any] = {"n": len(rows), "prompts": len(set(clusters))}
    for name in PER_ANSWER:
        average = geometric_mean_with_ci if name == "perplexity" else mean_with_ci
        mean, interval = average([row.get(name) for row in rows], clusters, samples)
        summary |= {name: mean, f"{name}_ci": interval}
    bigrams = metrics.numbered_ngrams([row["tokens"] for row in rows], 2)
    spread = jackknife_ci(clusters, lambda chosen: metrics.distinct_share([bigrams[i] for i in chosen]))
    summary |= {"distinct_2": metrics.distinct_share(bigrams), "distinct_2_ci": list(spread) if spread else None}
    return summary | win_rates(rows, difficulty) | {"judge_failed": judge_failed(rows)}


def real_features(corpus: Corpus, batch_size: int) -> np.ndarray:
    """response_features of the held-out records, the same for every budget of a cell."""
    prompts, replies = ([row[name] for row in corpus.real] for name in ("prompt_ids", "answer_ids"))
    return response_features(corpus.reference, prompts, replies, corpus.eos_id, batch_size)


def closeness(
    answers: Sequence[dict[str, Any]], real: np.ndarray, corpus: Corpus, batch_size: int, seed: int
) -> dict[str, Any]:
    """MAUVE of the answers against the held-out records' (divergence.mauve), with its interval (jackknife).

    Args:
        real: of real_features.
        seed: of the clustering.
    """
    asked = [corpus.examples[answer["id"]]["prompt_ids"] for answer in answers]
    ours = response_features(corpus.reference, asked, [a["tokens"] for a in answers], corpus.eos_id, batch_size)
    mine, theirs, count = buckets(ours, real, seed)
    interval = jackknife_ci([answer["id"] for answer in answers], lambda chosen: mauve(mine[chosen], theirs, count))
    return {"mauve": mauve(mine, theirs, count), "mauve_ci": list(interval) if interval else None}
