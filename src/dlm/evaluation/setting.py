"""One decoder setting on some prompts: answers, their scores, the summary with its intervals."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dlm.config.params import Params
from dlm.decoding.answers import decode_prompts
from dlm.decoding.lm import DiffusionLM
from dlm.decoding.options import DecoderOptions
from dlm.evaluation.cell import Corpus, score_answers, summarise
from dlm.evaluation.judges.pairs import Judge
from dlm.evaluation.preferences import Baseline, add_preferences
from dlm.pipeline.progress import Advance


def answer(
    lm: DiffusionLM,
    corpus: Corpus,
    options: DecoderOptions,
    params: Params,
    *,
    prompts: int,
    seeds: Sequence[int],
    steps: int,
    advance: Advance | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The answers and their rows of score_answers, one for each seed and prompt. Several processes share the prompts;
    each gets the result. Arguments as those of `measure`."""
    answers, _ = decode_prompts(
        lm,
        list(corpus.examples.values())[:prompts],
        options,
        seeds=seeds,
        steps=steps,
        gen_length=params.decode.gen_length,
        batch_size=params.decode.batch_size,
        advance=advance,
    )
    return answers, score_answers(answers, corpus, params.decode.batch_size)


def measure(
    lm: DiffusionLM,
    corpus: Corpus,
    options: DecoderOptions,
    params: Params,
    *,
    prompts: int,
    seeds: Sequence[int],
    steps: int,
    rival: tuple[Judge, Baseline] | None = None,
    advance: Advance | None = None,
) -> dict[str, Any]:
    """The options, `steps` and cell.summarise's figures. Several processes share the prompts; each gets the result.

    Args:
        params: gen_length and batch_size of `decode`, and `evaluate`'s bootstrap samples.
        prompts: the first so many of the evaluation set.
        rival: a judge and the answers that it compares with, for win rates.
        advance: as in decode_prompts.
    """
    answers, rows = answer(lm, corpus, options, params, prompts=prompts, seeds=seeds, steps=steps, advance=advance)
    if rival is not None:
        judge, baseline = rival
        add_preferences(rows, answers, corpus.examples, baseline, judge)
    return {**asdict(options), "steps": steps, **summarise(rows, params.evaluate.bootstrap_samples)}
