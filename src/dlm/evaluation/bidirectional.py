"""Filling gaps from context on both sides, judged exactly on the builtin corpus. The paper does not evaluate this.

Two tasks on held-out answers, cut at sentence ends. `infill`: one sentence in the middle is masked. `goal`: everything
between the first and the last sentence is. Prompt, left and right context and the end stay on the canvas.

Limits: facts and sentences are judged, not wording, so any sentence of the grammar counts. The gap has as many masks as
the original text had tokens, so that its length gives something away, and a model that needs another length scores
worse. Facts come in few orders: the right context alone may tell which one is missing, without the prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerFast

from dlm.data.padding import tail
from dlm.data.tokenizer import encode
from dlm.evaluation.bootstrap import mean_with_ci
from dlm.evaluation.slots import SlotJudge, split_sentences

Task = Literal["infill", "goal"]
TASKS: tuple[Task, ...] = ("infill", "goal")
METRICS = ("slot_error_rate", "well_formed", "right_context")


@dataclass(frozen=True)
class Gap:
    """A canvas with one gap.

    Attributes:
        id: the evaluation row's.
        ids: prompt, left context, masks, right context, EOS and padding to the canvas's end.
        left, right: the texts of the answer beside the gap.
        facts: how many of the attributes asked for the masked text stated, at least one.
        topic, slots: what was asked.
    """

    id: int
    ids: list[int]
    left: str
    right: str
    facts: int
    topic: str
    slots: tuple[str, ...]


def make_gap(
    row: dict[str, Any],
    meta: dict[str, Any],
    task: Task,
    judge: SlotJudge,
    tokenizer: PreTrainedTokenizerFast,
    length: int,
    cycle: Sequence[int] = (),
) -> Gap | None:
    """An evaluation row's canvas for a task.

    Args:
        row: id, prompt_ids, answer_ids and output of an evaluation row.
        meta: its topic and slots.
        length: of the canvas; the answer is followed by EOS and padding up to it, as in training.
        cycle: the model's pad tokens (data.padding); none for EOS.

    Returns:
        None where the answer has under three sentences, its gap states no fact, or it does not fit the canvas.
    """
    sentences = split_sentences(row["output"])
    if len(sentences) < 3:
        return None
    middle = len(sentences) // 2
    start, end = (middle, middle + 1) if task == "infill" else (1, len(sentences) - 1)
    left, masked, right = (" ".join(sentences[part]) for part in (slice(start), slice(start, end), slice(end, None)))
    facts = len(meta["slots"]) - judge.judge(masked, meta["topic"], meta["slots"]).missing
    hidden, shown = encode(tokenizer, [f" {masked}", f" {right}"], after=True)
    whole, behind = row["answer_ids"], len(hidden) + len(shown)
    masks = [tokenizer.mask_token_id] * len(hidden)
    ids = [*row["prompt_ids"], *whole[:-behind], *masks, *shown]
    if not facts or len(ids) >= length or whole[-behind:] != hidden + shown:
        return None
    ids += tail(length - len(ids), tokenizer.eos_token_id, cycle)
    return Gap(row["id"], ids, left, right, facts, meta["topic"], tuple(meta["slots"]))


def score_gap(gap: Gap, filled: str, judge: SlotJudge) -> dict[str, float]:
    """The figures of one filled gap.

    slot_error_rate: facts missing from the whole answer, untrue, unasked or said twice / facts that the gap had to
        state; 0 is perfect.
    well_formed: share of the gap's sentences that the grammar derives.
    right_context: 1 where the gap ends a sentence and states nothing that the right context states, else 0.
    """
    whole = judge.judge(f"{gap.left} {filled.strip()} {gap.right}", gap.topic, gap.slots)
    alone = judge.judge(filled, gap.topic, gap.slots)
    behind = [slot for slot in gap.slots if not judge.judge(gap.right, gap.topic, [slot]).missing]
    again = any(not judge.judge(filled, gap.topic, [slot]).missing for slot in behind)
    ends = filled.strip().endswith((".", "!", "?"))
    return {
        "slot_error_rate": (whole.missing + whole.wrong + whole.repeated) / gap.facts,
        "well_formed": alone.well_formed_share,
        "right_context": float(ends and not again),
    }


def summarise(rows: Sequence[dict[str, Any]], samples: int) -> dict[str, Any]:
    """Means with 95% intervals, bootstrap over prompts."""
    clusters = [row["id"] for row in rows]
    summary: dict[str, Any] = {"n": len(rows), "prompts": len(set(clusters))}
    for name in METRICS:
        mean, interval = mean_with_ci([row[name] for row in rows], clusters, samples)
        summary |= {name: mean, f"{name}_ci": interval}
    return summary
