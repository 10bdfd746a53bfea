"""How two settings stand to each other, by one rule, and in words.

Two values differ only when their 95% intervals do not overlap.
"""

from collections.abc import Sequence
from typing import Literal

from dlm.analysis.columns import COLUMNS, Column, Row
from dlm.analysis.table import interval, is_reference, number

Relation = Literal["better", "worse", "conflict", "same"]
Axes = tuple[Column, Column]
WORDS: dict[Relation, str] = {
    "better": "better than",
    "worse": "worse than",
    "conflict": "better on one axis and worse on the other than",
    "same": "not separated from",
}


def relation(a: Row, b: Row, axes: Axes) -> Relation:
    """How setting `a` stands to `b` on the two axes together."""
    return together({separated(a, b, axis) for axis in axes})


def together(signs: set[int]) -> Relation:
    """The relation that several comparisons give together: each 1 for better, -1 for worse, 0 for not separated."""
    if {1, -1} <= signs:
        return "conflict"
    return "better" if 1 in signs else "worse" if -1 in signs else "same"


def separated(a: Row, b: Row, axis: Column) -> int:
    """1 where `a` is better and the intervals do not overlap, -1 where it is worse so, else 0."""
    one, other = a[f"{axis.name}_ci"], b[f"{axis.name}_ci"]
    if not one or not other:
        return 0
    above = int(one[0] > other[1]) - int(one[1] < other[0])
    return above if axis.better == "higher" else -above


def nearer(a: Row, b: Row, axis: Column, mark: float) -> int:
    """1 where `a` is nearer to a mark than `b` and the intervals do not overlap, -1 where it is farther so, else 0."""
    one, other = a[f"{axis.name}_ci"], b[f"{axis.name}_ci"]
    if not one or not other or (one[0] <= other[1] and other[0] <= one[1]):
        return 0
    return 1 if abs(a[axis.name] - mark) < abs(b[axis.name] - mark) else -1


def gain(a: Row, b: Row, axis: Column) -> float:
    """By how much `a` is better than `b`."""
    difference = float(a[axis.name] - b[axis.name])
    return difference if axis.better == "higher" else -difference


def reverse(value: Relation) -> Relation:
    if value == "better":
        return "worse"
    return "better" if value == "worse" else value


def fall(label: str, size: str, rows: Sequence[Row], axes: Axes, falls: bool) -> str:
    large, small = rows[-1], rows[0]
    changes = [
        f"{axis.heading} {_value(large, axis)} to {_value(small, axis)}{_change(small, large, axis)}" for axis in axes
    ]
    separated_fall = f"{'a' if falls else 'no'} separated fall"
    return f"{label} {large[size]} to {small[size]}: {changes[0]}, {separated_fall}; {changes[1]}"


def fall_in_brief(large: Row, small: Row, size: str, axis: Column) -> str:
    """'64 to 16: 0.62 [0.53, 0.73] to 0.49 [0.37, 0.62]'."""
    return f"{large[size]} to {small[size]}: {_value(large, axis)} to {_value(small, axis)}"


def _change(a: Row, b: Row, axis: Column) -> str:
    """' (worse by 0.20)': `a` against `b`."""
    if a[axis.name] is None or b[axis.name] is None:
        return ""
    better = gain(a, b, axis)
    amount = number(abs(better), axis)
    if not float(amount):
        return " (unchanged)"
    return f" ({'better' if better > 0 else 'worse'} by {amount})"


def figures(row: Row, axes: Axes) -> str:
    return ", ".join(f"{axis.heading} {_value(row, axis)}" for axis in axes)


def speed(row: Row, axes: Axes) -> str:
    nfe = _value(row, COLUMNS["nfe"])
    return f"NFE {nfe}, {figures(row, axes)}, mean length {row['length']:.1f}"


def in_brief(settings: dict[str, Row], axes: Axes) -> str:
    """'well-formed: a 0.75 [0.71, 0.79], b 0.99 [0.97, 1.00]' of two settings by name: on both axes where these
    disagree, else on the first that separates them, else on the first."""
    one, other = settings.values()
    apart = [axis for axis in axes if separated(one, other, axis)] or [axes[0]]
    shown = apart if relation(one, other, axes) == "conflict" else apart[:1]
    return "; ".join(
        f"{axis.heading}: " + ", ".join(f"{name} {_value(row, axis)}" for name, row in settings.items())
        for axis in shown
    )


def _value(row: Row, axis: Column) -> str:
    return f"{number(row[axis.name], axis)} {interval(row, axis)}".strip()


def compared(relations: dict[tuple[str, str], Relation]) -> str:
    """'conv is better than a, b and not separated from c; top_k is ...'."""
    sentences = []
    for first in dict.fromkeys(a for a, _ in relations):
        relations_of_first = {b: value for (a, b), value in relations.items() if a == first}
        phrases = [
            f"{WORDS[value]} {', '.join(b for b, other in relations_of_first.items() if other == value)}"
            for value in dict.fromkeys(relations_of_first.values())
        ]
        sentences.append(f"{first} is {' and '.join(phrases)}")
    return "; ".join(sentences) + "."


def length_note(settings: dict[str, Row], rows: Sequence[Row]) -> str:
    """Which of the settings answer much shorter or longer than the reference, or often not at all."""
    usual = next((row["length"] for row in rows if is_reference(row)), None)
    odd = [
        f"{name} ({row['length']:.1f} tokens, {row['nonempty']:.0%} non-empty)"
        for name, row in settings.items()
        if row["nonempty"] < 0.98 or (usual and not 0.8 <= row["length"] / usual <= 1.25)
    ]
    if not odd:
        return ""
    against = f" against the reference's {usual:.1f}" if usual else ""
    return f" Read beside their lengths{against}: {', '.join(odd)}."
