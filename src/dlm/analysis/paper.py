"""What the paper reports, to stand beside what was measured here."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from dlm.analysis.columns import Row


@dataclass(frozen=True)
class Line:
    """A row of one of the paper's tables.

    Attributes:
        names: model and decoder (and EOS-fill where the table has it).
        values: in the order of the table's columns.
        ours: the cell (checkpoint, decoder) of this pipeline that stands for it, if any.
    """

    names: tuple[str, ...]
    values: tuple[float, ...]
    ours: tuple[str, str] | None = None


@dataclass(frozen=True)
class PaperTable:
    """One of the paper's tables.

    Attributes:
        title, setting: what it is of.
        names: headings of the lines' names.
        columns: headings of the values.
        measured: our metric for each column ("" where we have none).
    """

    title: str
    setting: str
    names: tuple[str, ...]
    columns: tuple[str, ...]
    measured: tuple[str, ...]
    lines: tuple[Line, ...] = field(repr=False)


WIN_RATES = ("LC win rate, %", "win rate, %")
RATES = ("lc_win_rate", "win_rate")
# The ablation's runs with the cache; without it a pass is made at every step, as many as S.
SPEED = ("without cache", "with cache", "with cache and EOS-fill")
LONG = (None, ("r2ft", "plain"), ("r2ft", "eos_fill"))


def _speed(setting: str, values: tuple[float, float, float]) -> PaperTable:
    lines = tuple(Line((name,), (value,), ours) for name, value, ours in zip(SPEED, values, LONG, strict=True))
    return PaperTable("Table 5", setting, ("Conv",), ("tokens/step",), ("tokens_per_step",), lines)


SMALL = (
    PaperTable(
        "Table 1",
        "AlpacaEval, MDLM with 170 million parameters, 1,024 tokens in 128 steps, block and kernel 256, top-k 20. Win "
        "rates against GPT-2 fine-tuned on the same data, by the judgement of gpt-4-turbo. Ours are with EOS-fill.",
        ("model", "decoder", "EOS-fill"),
        WIN_RATES,
        RATES,
        (
            Line(("AR (gpt2-alpaca)", "nucleus", "–"), (41.08, 40.74)),
            Line(("SEDD, SFT", "categorical", "no"), (6.04, 7.34), ("sedd", "tweedie")),
            Line(("MDLM, SFT", "categorical", "no"), (32.16, 31.79), ("sft", "categorical")),
            Line(("MDLM, SFT", "repetition penalty", "no"), (28.92, 28.66), ("sft", "repetition_penalty")),
            Line(("MDLM, SFT", "LLADA (semi-AR 512)", "no"), (14.54, 10.65), ("sft", "low_confidence")),
            Line(("MDLM, R2FT", "LLADA", "no"), (37.47, 34.25), ("r2ft", "low_confidence")),
            Line(("MDLM, R2FT", "categorical", "no"), (23.31, 21.48), ("r2ft", "categorical")),
            Line(("MDLM, R2FT", "top-k", "no"), (40.72, 40.24)),
            Line(("MDLM, R2FT", "top-k", "yes"), (41.17, 40.98), ("r2ft", "top_k")),
            Line(("MDLM, R2FT", "top-k + semi-AR", "yes"), (42.31, 41.91), ("r2ft", "semi_ar")),
            Line(("MDLM, SFT", "top-k + Conv", "yes"), (46.32, 42.19), ("sft", "conv")),
            Line(("MDLM, R2FT", "top-k + Conv", "yes"), (46.92, 45.92), ("r2ft", "conv")),
        ),
    ),
    PaperTable(
        "Table 2",
        "The small model on MT-Bench's first turns (80) and on about 500 prompts that ask to explain an entity.",
        ("model", "decoder"),
        ("MT-Bench: LC", "win rate, %", "Wiki: LC", "win rate, %"),
        ("", "", "", ""),
        (
            Line(("SFT", "categorical"), (31.26, 30.55, 28.90, 28.48)),
            Line(("R2FT", "categorical"), (13.20, 18.81, 23.85, 23.44)),
            Line(("SFT", "LLADA"), (20.12, 12.21, 19.11, 14.65)),
            Line(("R2FT", "LLADA"), (41.81, 39.81, 34.25, 32.56)),
            Line(("R2FT", "top-k"), (45.27, 45.87, 35.75, 34.54)),
            Line(("SFT", "top-k + Conv"), (45.23, 36.44, 39.64, 38.55)),
            Line(("R2FT", "top-k + Conv"), (45.29, 40.47, 44.42, 44.00)),
        ),
    ),
    _speed("Tokens a step of the small model, 128 steps (45.4 passes with cache and EOS-fill).", (0.89, 0.89, 2.51)),
)
LARGE = (
    PaperTable(
        "Table 3",
        "AlpacaEval, LLaDA-8B-Base with adapters, block and kernel 512. Win rates by the judgement of gpt-4-turbo.",
        ("model", "decoder"),
        WIN_RATES,
        RATES,
        (
            Line(("LLaDA-8B-Instruct", "LLADA"), (35.63, 36.52)),
            Line(("SFT", "categorical"), (31.71, 31.92), ("sft", "categorical")),
            Line(("SFT", "LLADA"), (16.07, 15.72), ("sft", "low_confidence")),
            Line(("R2FT", "LLADA"), (17.04, 16.02), ("r2ft", "low_confidence")),
            Line(("R2FT", "categorical"), (45.04, 44.83), ("r2ft", "categorical")),
            Line(("SFT", "top-k + Conv"), (43.79, 43.64), ("sft", "conv")),
            Line(("R2FT", "top-k"), (54.39, 54.03), ("r2ft", "top_k")),
            Line(("R2FT", "top-k + Conv"), (55.96, 55.65), ("r2ft", "conv")),
        ),
    ),
    PaperTable(
        "Table 6",
        "The 8B model, 512 tokens in 128 steps, top-k 5, block and kernel 128.",
        ("model", "decoder"),
        ("win rate, %", "inlier"),
        ("win_rate", "inlier"),
        (
            Line(("SFT", "semi-AR"), (21.50, 0.35), ("sft", "semi_ar")),
            Line(("SFT", "categorical"), (37.98, 1.00), ("sft", "categorical")),
            Line(("SFT", "ReMDM + top-k"), (41.64, 0.95), ("sft", "remdm")),
            Line(("SFT", "LLADA"), (39.18, 0.75), ("sft", "low_confidence")),
            Line(("SFT", "top-k"), (42.48, 0.95), ("sft", "top_k")),
            Line(("SFT", "top-k + Conv"), (46.99, 0.99), ("sft", "conv")),
            Line(("R2FT", "semi-AR"), (26.97, 0.80), ("r2ft", "semi_ar")),
            Line(("R2FT", "LLADA"), (47.37, 0.82), ("r2ft", "low_confidence")),
            Line(("R2FT", "categorical"), (50.22, 1.00), ("r2ft", "categorical")),
            Line(("R2FT", "ReMDM + top-k"), (51.68, 1.00), ("r2ft", "remdm")),
            Line(("R2FT", "top-k"), (55.38, 1.00), ("r2ft", "top_k")),
            Line(("R2FT", "top-k + Conv"), (57.38, 1.00), ("r2ft", "conv")),
            Line(("R2FT", "top-k + Conv, kernel 256"), (67.73, 1.00)),
        ),
    ),
    PaperTable(
        "Table 4",
        "GSM8K, the 8B model, 512 tokens in 64 steps, block and kernel 128, top-k 1: exact match of the last number.",
        ("model", "decoder"),
        ("accuracy, %",),
        ("exact_match",),
        (
            Line(("SFT", "categorical"), (7.20,), ("sft", "categorical")),
            Line(("SFT", "LLADA"), (17.13,), ("sft", "low_confidence")),
            Line(("SFT", "top-k + Conv"), (23.50,), ("sft", "conv")),
            Line(("R2FT", "categorical"), (7.49,), ("r2ft", "categorical")),
            Line(("R2FT", "LLADA"), (18.11,), ("r2ft", "low_confidence")),
            Line(("R2FT", "top-k + Conv"), (22.97,), ("r2ft", "conv")),
            Line(("LLaDA-8B-Instruct", "LLADA"), (29.49,)),
            Line(("LLaDA-8B-Instruct", "top-k + Conv"), (39.34,)),
        ),
    ),
    _speed("Tokens a step of the 8B model, 128 steps (109.1 passes with cache and EOS-fill).", (2.66, 2.56, 3.23)),
)
TABLES = {"small": SMALL, "large": LARGE}
PERCENT = {"exact_match"}  # shares here, percent there


def with_ours(table: PaperTable, rows: Sequence[Row]) -> tuple[list[str], list[list[float | None]]]:
    """The table's numbers with ours behind them: the headings of all columns, and the values of every line.

    A column of ours stands where any line has a value here; None is where nothing here stands for the line.
    """
    cells = {(row["checkpoint"], row["decoder"]): row for row in rows}

    def here(line: Line, metric: str) -> float | None:
        row = cells.get(line.ours) if line.ours else None
        value = row.get(metric) if row else None
        return 100 * value if value is not None and metric in PERCENT else value

    ours = {metric: [here(line, metric) for line in table.lines] for metric in table.measured if metric}
    ours = {metric: values for metric, values in ours.items() if any(value is not None for value in values)}
    headings = [f"here: {name}" for name, metric in zip(table.columns, table.measured, strict=True) if metric in ours]
    lines = [[*line.values, *(values[i] for values in ours.values())] for i, line in enumerate(table.lines)]
    return [*table.columns, *headings], lines
