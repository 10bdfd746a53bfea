"""The paper's claims (docs/method.md §7), tested on the table, the grids of settings and the ablations by one rule.

They are judged at one budget (DecodeParams.judged_steps); what others show stands beside it. Quality has two axes
(table.quality_axes). Two values differ only when their 95% intervals do not overlap.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from dlm.analysis.columns import COLUMNS, Row
from dlm.analysis.comparisons import (
    WORDS,
    Relation,
    compared,
    fall,
    fall_in_brief,
    figures,
    gain,
    in_brief,
    length_note,
    nearer,
    relation,
    reverse,
    separated,
    speed,
    together,
)
from dlm.analysis.selection import sizes
from dlm.analysis.table import at_budget, is_reference, quality_axes

Verdict = Literal["seen", "not seen", "mixed", "not tested"]
Cells = dict[tuple[str, str], Row]

RULE = (
    "A difference counts as seen only when the two 95% intervals do not overlap. One setting is better than another "
    "when it is so on at least one of the two quality axes and worse on neither. A claim is seen when all its "
    "comparisons are, not seen when none is, and mixed otherwise. Overlap does not show that two settings are equal. "
    "Claim 2 also compares what R2FT works against: repetition, the lower the better, and the share of frequent words, "
    "the nearer to the reference's the better."
)
AS_VERDICT: dict[Relation, Verdict] = {
    "better": "seen",
    "conflict": "mixed",
    "same": "not seen",
    "worse": "not seen",
}
# Claim 5 gives "1.5 to 3 times".
LEAST_SAVING = 1.5


@dataclass(frozen=True)
class Claim:
    """One claim of the paper, and what the data say of it.

    Attributes:
        evidence: all figures behind the verdict.
        brief: one of them, with its interval.
        beside: the verdict at every other budget that tests the claim.
    """

    number: int
    text: str
    verdict: Verdict
    evidence: str
    brief: str = ""
    beside: tuple[tuple[int, Verdict], ...] = ()


def judge_claims(rows: Sequence[Row], grid: Sequence[Row], ablation: Sequence[Row], steps: int) -> list[Claim]:
    """Claims 1 to 6.

    Args:
        rows: of build_table.
        grid: the select stage's rows of all decoders.
        ablation: the ablation stage's rows of all checkpoints.
        steps: the budget that the claims are judged at.
    """
    judged = at_budget(rows, steps)
    claims = [
        few_steps(judged),
        r2ft_and_decoder(judged),
        block_and_kernel(grid, steps),
        conv_against_slow_semi_ar(judged, ablation),
        saving(ablation),
        rescue(judged),
    ]
    for other in dict.fromkeys(row["steps"] for row in rows if row["steps"] not in (None, steps)):
        other_rows = at_budget(rows, other)
        for claim in (
            few_steps(other_rows),
            r2ft_and_decoder(other_rows),
            block_and_kernel(grid, other),
            rescue(other_rows),
        ):
            if claim.verdict == "not tested":
                continue
            other_budget = f"Beside it, at S = {other} ({claim.verdict}): {' '.join(claim.evidence.splitlines())}"
            place = claim.number - 1
            claims[place] = replace(
                claims[place],
                evidence=f"{claims[place].evidence}\n{other_budget}",
                beside=(*claims[place].beside, (other, claim.verdict)),
            )
    return claims


def density_note(gen_length: int, budgets: Sequence[int], steps: int) -> str:
    """How tokens a step and reach compare with the paper's, and why claims are judged at `steps`."""
    each = ", ".join(f"{gen_length / budget:g} at S = {budget} ({8 / budget:.2f} of that reach)" for budget in budgets)
    return (
        "The paper commits 8 tokens a step in a kernel of a quarter of its window, which reaches 128 tokens: 0.06 of "
        f"its reach. Here a kernel of a quarter would reach {gen_length / 8:g}, and a step commits {each}: claims are "
        f"judged at S = {steps}."
    )


def few_steps(rows: Sequence[Row]) -> Claim:
    claim = Claim(1, "Conv beats top-k, and both beat categorical and LLADA at few steps.", "not tested", "")
    names = ("conv", "top_k", "categorical", "low_confidence")
    cells, axes = _cells(rows), quality_axes(rows)
    verdicts, evidence, brief = [], [], []
    for checkpoint in _checkpoints(rows):
        if any((checkpoint, name) not in cells for name in names):
            continue
        settings = {name: cells[checkpoint, name] for name in names}
        relations = {
            (a, b): relation(settings[a], settings[b], axes) for i, a in enumerate(names[:2]) for b in names[i + 1 :]
        }
        verdicts += [AS_VERDICT[value] for value in relations.values()]
        each = "; ".join(f"{name} {figures(row, axes)}" for name, row in settings.items())
        pair = {name: settings[name] for name in names[:2]}
        brief.append(f"after {checkpoint}, {in_brief(pair, axes)}")
        steps = f"{checkpoint}, {settings['conv']['steps']} steps for {settings['conv']['gen_length']} tokens"
        evidence.append(f"{steps}: {each}. {compared(relations)}{length_note(settings, rows)}")
    if not verdicts:
        return replace(claim, evidence=f"It needs cells of {', '.join(names)} for one checkpoint.")
    return replace(claim, verdict=combine(verdicts), evidence="\n".join(evidence), brief=brief[0])


def r2ft_and_decoder(rows: Sequence[Row]) -> Claim:
    """First what R2FT is for, by top_k (fewer repetitions, as many frequent words as the reference), then quality."""
    claim = Claim(2, "R2FT helps top-k and hurts categorical on the small model.", "not tested", "")
    cells, axes = _cells(rows), quality_axes(rows)
    if any((checkpoint, name) not in cells for checkpoint in ("sft", "r2ft") for name in ("top_k", "categorical")):
        return replace(claim, evidence="It needs top_k and categorical for both sft and r2ft.")
    before, after = cells["sft", "top_k"], cells["r2ft", "top_k"]
    value = degeneration(before, after, rows)
    verdicts = [AS_VERDICT[value]]
    columns = COLUMNS["repetition_4"], COLUMNS["high_prior"]
    evidence = [
        f"Degeneration of top_k: {figures(before, columns)} with sft; {figures(after, columns)} with r2ft: R2FT is "
        f"{WORDS[value]} SFT alone."
    ]
    for name, hoped in (("top_k", "better"), ("categorical", "worse")):
        before, after = cells["sft", name], cells["r2ft", name]
        value = relation(after, before, axes)
        verdicts.append(AS_VERDICT[value if hoped == "better" else reverse(value)])
        evidence.append(
            f"{name}: {figures(before, axes)} with sft; {figures(after, axes)} with r2ft: R2FT is {WORDS[value]} SFT "
            f"alone (the claim: {hoped}).{length_note({'sft': before, 'r2ft': after}, rows)}"
        )
    top_k = {checkpoint: cells[checkpoint, "top_k"] for checkpoint in ("sft", "r2ft")}
    brief = f"top_k, {in_brief(top_k, axes)}"
    return replace(claim, verdict=combine(verdicts), evidence="\n".join(evidence), brief=brief)


def degeneration(before: Row, after: Row, rows: Sequence[Row]) -> Relation:
    """How `after` stands to `before`: repetition is better the lower, the share of frequent words the nearer to the
    reference's, where there is one."""
    mark = next((row["high_prior"] for row in rows if is_reference(row)), None)
    signs = {separated(after, before, COLUMNS["repetition_4"])}
    if mark is not None:
        signs.add(nearer(after, before, COLUMNS["high_prior"], mark))
    return together(signs)


def block_and_kernel(grid: Sequence[Row], steps: int) -> Claim:
    """Seen where semi-AR's largest and smallest block are separated on the first axis, and Conv's kernels are not.

    On the prompts of valid that settings are chosen on: all candidates count alike, none because it was chosen.
    """
    claim = Claim(3, "Semi-AR falls sharply as blocks shrink, Conv hardly as kernels shrink.", "not tested", "")
    axes = quality_axes(grid)
    verdicts: list[Verdict] = []
    evidence, brief = [], []
    for checkpoint in _checkpoints(grid):
        rows = [row for row in grid if row["checkpoint"] == checkpoint and row["steps"] == steps]
        blocks, kernels = sizes(rows, "semi_ar", "block_length"), sizes(rows, "conv", "kernel_size")
        if len(blocks) < 2 or len(kernels) < 2:
            continue
        (block_falls, block_fall), (kernel_falls, kernel_fall) = (
            (separated(sizes[-1], sizes[0], axes[0]) > 0, gain(sizes[-1], sizes[0], axes[0]))
            for sizes in (blocks, kernels)
        )
        if not block_falls or kernel_fall >= block_fall:
            verdicts.append("not seen")
        else:
            verdicts.append("mixed" if kernel_falls else "seen")
        semi = fall("semi-AR, block", "block_length", blocks, axes, block_falls)
        conv = fall("Conv, kernel", "kernel_size", kernels, axes, kernel_falls)
        evidence.append(f"{checkpoint}: {semi}; {conv}.")
        block_ends = fall_in_brief(blocks[-1], blocks[0], "block_length", axes[0])
        kernel_ends = fall_in_brief(kernels[-1], kernels[0], "kernel_size", axes[0])
        brief.append(f"after {checkpoint}, {axes[0].heading}: blocks {block_ends}; kernels {kernel_ends}")
    if not verdicts:
        needs = "two block lengths and two kernel sizes among the candidates (decoding.semi_ar, decoding.conv)"
        return replace(claim, evidence=f"It needs {needs}.")
    head = f"{steps} steps, prompts of valid. Judged by {axes[0].heading}, largest against smallest"
    head += f"; {axes[1].heading} beside it."
    return replace(claim, verdict=combine(verdicts), evidence="\n".join([head, *evidence]), brief=brief[0])


def conv_against_slow_semi_ar(rows: Sequence[Row], ablation: Sequence[Row]) -> Claim:
    """Conv + R2FT of the table against semi-AR with as many steps as tokens; seen only where Conv is the better one."""
    claim = Claim(
        4,
        "Quality at S = 128 with Conv + R2FT is at least semi-AR's at S = 1024 (few steps, all steps).",
        "not tested",
        "",
    )
    cells, axes = _cells(rows), quality_axes(rows)
    fast = cells.get(("r2ft", "conv"))
    slow = [row for row in ablation if row["variant"] == "semi_ar"]
    if fast is None or not slow:
        return replace(claim, evidence="It needs the cell r2ft-conv and the ablation's semi-AR.")
    verdicts, evidence = [], [f"r2ft conv, {fast['steps']} steps: {figures(fast, axes)}."]
    for row in slow:
        value = relation(fast, row, axes)
        verdicts.append("mixed" if value == "same" else AS_VERDICT[value])
        evidence.append(
            f"semi-AR, {row['checkpoint']}, block {row['block_length']}, {row['steps']} steps: {figures(row, axes)}; "
            f"Conv is {WORDS[value]} it."
        )
    against = f"semi-AR in {slow[0]['steps']} ({slow[0]['checkpoint']})"
    brief = in_brief({f"r2ft conv in {fast['steps']} steps": fast, against: slow[0]}, axes)
    return replace(claim, verdict=combine(verdicts), evidence="\n".join(evidence), brief=brief)


def saving(ablation: Sequence[Row]) -> Claim:
    """Seen where the whole interval of the ratio is at least 1.5 (above 3 included) and quality is no worse."""
    claim = Claim(5, "EOS-fill with the cache cuts NFE by 1.5 to 3 times.", "not tested", "")
    axes = quality_axes(ablation)
    verdicts: list[Verdict] = []
    evidence, brief = [], []
    for checkpoint in _checkpoints(ablation):
        runs = {row["variant"]: row for row in ablation if row["checkpoint"] == checkpoint}
        plain, filled = runs.get("plain"), runs.get("eos_fill")
        if plain is None or filled is None or not (plain["nfe_ci"] and filled["nfe_ci"] and filled["nfe_ci"][0] > 0):
            continue
        # The widest ratio that the two intervals allow.
        low, high = plain["nfe_ci"][0] / filled["nfe_ci"][1], plain["nfe_ci"][1] / filled["nfe_ci"][0]
        quality = relation(filled, plain, axes)
        if low <= 1:
            verdicts.append("not seen")
        else:
            verdicts.append("seen" if low >= LEAST_SAVING and quality in ("better", "same") else "mixed")
        times = f"{plain['nfe'] / filled['nfe']:.2f} times fewer [{low:.2f}, {high:.2f}]"
        brief.append(f"after {checkpoint}, {times} in {plain['steps']} steps")
        evidence.append(
            f"{checkpoint}, {plain['steps']} steps, both with the cache. Without EOS-fill: {speed(plain, axes)}. "
            f"With it: {speed(filled, axes)}. That is {times}; the "
            f"answers are {WORDS[quality]} those without."
        )
    if not verdicts:
        return replace(claim, evidence="It needs the ablation's runs without and with EOS-fill, with intervals.")
    return replace(claim, verdict=combine(verdicts), evidence="\n".join(evidence), brief=brief[0])


def rescue(rows: Sequence[Row]) -> Claim:
    """The largest effect of R2FT in the paper (Table 1): LLADA's length-controlled win rate from 14.5 to 37.5."""
    claim = Claim(6, "R2FT rescues LLADA's decoding, which falls silent after SFT alone.", "not tested", "")
    cells, axes = _cells(rows), quality_axes(rows)
    before, after = (cells.get((checkpoint, "low_confidence")) for checkpoint in ("sft", "r2ft"))
    if before is None or after is None:
        return replace(claim, evidence="It needs low_confidence for both sft and r2ft.")
    value = relation(after, before, axes)
    evidence = (
        f"low_confidence: {figures(before, axes)}, length {before['length']:.1f} with sft; {figures(after, axes)}, "
        f"length {after['length']:.1f} with r2ft: R2FT is {WORDS[value]} SFT alone."
        f"{length_note({'sft': before, 'r2ft': after}, rows)}"
    )
    brief = f"low_confidence, {in_brief({'sft': before, 'r2ft': after}, axes)}"
    return replace(claim, verdict=AS_VERDICT[value], evidence=evidence, brief=brief)


def combine(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict of several comparisons: theirs when they agree, mixed otherwise."""
    return verdicts[0] if len(set(verdicts)) == 1 else "mixed"


def _cells(rows: Sequence[Row]) -> Cells:
    return {(row["checkpoint"], row["decoder"]): row for row in rows}


def _checkpoints(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["checkpoint"] for row in rows if not is_reference(row)))
