"""The columns of the results table: what each metric is called, what it means, and which end of it is good."""

from dataclasses import dataclass
from typing import Any, Literal

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """One metric of the table.

    Attributes:
        name: its key in the rows; `<name>_ci` is its interval.
        heading: what stands above it.
        meaning: the footnote.
        better: which end is the good one; None where neither is.
        digits: after the point.
        often_zero: left out where it is 0 everywhere.
    """

    name: str
    heading: str
    meaning: str
    better: Literal["higher", "lower"] | None
    digits: int = 2
    often_zero: bool = False

    @property
    def arrow(self) -> str:
        return {"higher": " ↑", "lower": " ↓", None: ""}[self.better]


QUALITY = (
    Column(
        "quality",
        "quality",
        "mean of well-formed and 1 - slot errors; without an exact judge relevance, total",
        "higher",
    ),
    Column("well_formed", "well-formed", "share of sentences that the grammar derives", "higher"),
    Column(
        "slot_error_rate",
        "slot errors",
        "(missing + wrong + repeated facts) / facts asked for; silence scores 1",
        "lower",
    ),
    Column("missing_slots", "missing", "facts asked for and not stated / facts asked for", "lower"),
    Column("wrong_slots", "wrong", "facts stated untruly, unasked or of another town / facts asked for", "lower"),
    Column("repeated_slots", "repeated", "facts stated again / facts asked for", "lower"),
    Column(
        "lc_win_rate",
        "LC win rate",
        "percent of the answers that the judge prefers to the reference's, were both equally long",
        "higher",
        1,
        often_zero=True,
    ),
    Column(
        "win_rate",
        "win rate",
        "percent of the answers that the judge prefers to the reference's",
        "higher",
        1,
        often_zero=True,
    ),
    Column("grade", "grade", "the judge's, from 1 to 5, its probabilities of the five averaged", "higher"),
    Column(
        "judge_failed",
        "judge failed",
        "share of the judge's verdicts and grades that did not come; they count nowhere",
        None,
        often_zero=True,
    ),
    Column("exact_match", "exact match", "share of answers whose last number is the right one", "higher"),
    Column("nonempty", "non-empty", "share of answers with any token", "higher"),
    Column("length", "length", "content tokens before the first end-of-text (L*)", None, 1),
    Column("nfe", "NFE", "forward passes for an answer (S*)", "lower", 1),
    Column(
        "tokens_per_step",
        "tokens/step",
        "mean length over all diffusion cells / NFE; an autoregressive model makes 1",
        "higher",
    ),
)
STRUCTURE = (
    Column("inlier", "inlier", "share of answers whose perplexity is like the training answers' (± 2 sd)", "higher"),
    Column("inlier_log", "inlier (log)", "as inlier, of log-perplexity: a few enormous ones count less", "higher"),
    Column("mauve", "MAUVE", "how near the answers lie to held-out ones, 1 for the same distribution", "higher"),
    Column("perplexity", "perplexity", "geometric mean under the reference; repetition lowers it", None, 1),
    Column("relevance", "relevance", "nats that the prompt adds to a token's log-probability, copied ones 0", None),
    Column("relevance_total", "relevance, total", "the same, summed over an answer", None, 1),
    Column("repetition_4", "repetition-4", "share of an answer's 4-grams that it already used", "lower", 3),
    Column("distinct_2", "distinct-2", "different bigrams / all bigrams of the cell", "higher", 3),
    Column("prompt_repetition", "prompt words", "share of tokens copied from the prompt, frequent ones left out", None),
    Column("high_prior", "high-prior", "share of tokens among the corpus's most frequent", None),
    Column("log_prior", "log-prior", "mean log frequency of the tokens, nats", None),
    Column(
        "leftover_masks",
        "leftover",
        "positions still masked after the last step, filled greedily",
        "lower",
        often_zero=True,
    ),
)
GROUPS = {"Quality and speed": QUALITY, "Structure and degeneration": STRUCTURE}
# The ablation's runs: variant -> what stands in the decoder's column.
LONG_RUNS = {
    "plain": "conv without EOS-fill",
    "eos_fill": "conv",
    "low_confidence": "conv over low_confidence",
    "semi_ar": "semi_ar, block {block_length}",
}
STEPS = Column("steps", "S", "denoising steps", None, 0)
LONG_COLUMNS = (STEPS, *(column for column in QUALITY if column.name != "tokens_per_step"))
LONG_TITLE = "As many steps as tokens"
BOUND_TITLE = "Likelihood of held-out answers"
BOUND_COLUMNS = (
    Column("nll", "nats a token", "the bound on -log p(answer, end of text | prompt), over all tokens", "lower", 3),
    Column(
        "nll_change",
        "against base",
        "what that is more than the base's; the same answers and masks, so that most of the spread cancels",
        None,
        4,
    ),
)
AREA = Column("area", "area", "mean quality from the fewest steps to the most, over the log of the passes", "higher")
OVER_PASSES_TITLE = "Quality over forward passes"
COLUMNS = {column.name: column for group in GROUPS.values() for column in group}
BOLD = (
    "Bold: the best diffusion value of a column. A column without an arrow has no good end: the reference is its mark."
)
PLUS_MINUS = (
    "± is half the width of the 95% interval (bootstrap over prompts; jackknife for distinct-2 and MAUVE; normal for "
    "the win rates); – means not defined."
)
