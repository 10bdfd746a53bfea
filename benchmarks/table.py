"""The table and the figure of a benchmark's JSON. As a script: redraw both (python benchmarks/table.py OUT.json)."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import grid, numbers, with_ending

from dlm.pipeline.start import run_script
from dlm.analysis.style import INK, SERIES, TEXT, canvas
from dlm.files import atomic_path, read_json, write_text

Row = dict[str, Any]
HEADINGS = (
    "decoder",
    "implementation",
    "L",
    "batch",
    "S",
    "s/sequence",
    "sequences/s",
    "tokens/s",
    "ms/step",
    "NFE",
    "step / forward",
    "step / compiled forward",
    "floor share",
    "speed-up over plain",
    "peak MiB",
)
NOTES = """\
- s/sequence, ms/step and ratios: median (smallest–largest) over {repeats} interleaved repeats; a step is a run over S.
- tokens/s: response positions (L - {prompt_length}), end-of-text counted as a token. NFE: forward passes a row took.
- step / forward: a step's time over a bare forward pass (no head) of the same batch; compiled: as in dlm (--compile).
- floor share: the part of a run that NFE bare forward passes would take; above 1 where an approximation shows the model
  less than the whole canvas.
- speed-up: time per sequence of the plain implementation (one prompt at a time) over this one's.
- peak MiB: activations, above weights and what stood before the call."""


def to_markdown(result: dict[str, Any]) -> str:
    """The machine, the command, the table and what its columns mean."""
    machine, settings = result["hardware"], result["settings"]
    where = f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores used"
    if machine["gpu"]:
        where = f"{machine['gpu']} ({where})"
    millions = settings["parameters"] / 1e6
    head = [
        f"**{result['title']}**: {settings['model']} ({millions:,.1f}M parameters, {settings['dtype']}) on {where}, "
        f"torch {machine['torch']}.",
        f"`{result['command']}`",
    ]
    table = grid([list(HEADINGS), *map(_cells, result["rows"])], 2)
    return "\n\n".join([*head, table, NOTES.format(**settings)]) + "\n"


def _cells(row: Row) -> list[str]:
    peak = row["peak_bytes"]
    memory = "–" if peak is None else f"{peak / 2**20:.1f}"
    head = [row["decoder"], row["implementation"], str(row["length"]), str(row["batch_size"])]
    if row["implementation"].startswith("forward"):
        return [*head, "–", "–", "–", "–", numbers(row["ms_per_step"], 1), "1", *["–"] * 4, memory]
    speedups = "; ".join(
        numbers(found, 1) + (f" ({name})" if len(row["speedup"]) > 1 else "") for name, found in row["speedup"].items()
    )
    return [
        *head,
        str(row["steps"]),
        numbers(row["seconds_per_sequence"], 3),
        f"{row['sequences_per_second']:.2f}",
        f"{row['tokens_per_second']:.0f}",
        numbers(row["ms_per_step"], 1),
        f"{row['nfe']:.1f}",
        numbers(row["step_over_forward"], 2),
        numbers(row.get("step_over_compiled"), 2),
        numbers(row["floor_share"], 2),
        "–" if row["implementation"].startswith("plain") or not speedups else speedups,
        memory,
    ]


def draw(rows: Sequence[Row], path: Path) -> None:
    """Bars with their ranges: a step over the bare forward pass, and the speed-up over each plain implementation."""
    shown = [row for row in rows if not row["implementation"].startswith("forward")]
    fast = [row for row in shown if row["implementation"] == "dlm" and row["speedup"]]
    names = list(dict.fromkeys(name for row in fast for name in row["speedup"]))
    bars = [(row, name) for row in fast for name in names]
    heights = [max(len(shown), 1), max(len(bars), 1)]
    with canvas(path, TEXT, 1.4 + 0.2 * sum(heights)) as figure:
        upper, lower = figure.subplots(2, 1, height_ratios=heights)
        colours = [SERIES[row["implementation"] != "dlm"].colour for row in shown]
        _bars(upper, list(map(_label, shown)), [row["step_over_forward"] for row in shown], colours)
        upper.set_title("Step over forward pass (floor: 1)")
        upper.set_xlabel("times a forward pass of the same batch")
        labels = [_label(row, name if len(names) > 1 else "") for row, name in bars]
        tints = [SERIES[2 + names.index(name)].colour for _, name in bars]
        _bars(lower, labels, [row["speedup"][name] for row, name in bars], tints)
        lower.set_title("Speed-up over plain")
        lower.set_xlabel("times as many sequences a second")


def write_figure(out: Path, rows: Sequence[Row]) -> None:
    """OUT.png, OUT.svg and OUT.pdf."""
    with atomic_path(with_ending(out, "png")) as temporary:
        draw(rows, temporary)
        for ending in ("svg", "pdf"):
            temporary.with_suffix(f".{ending}").replace(with_ending(out, ending))


def _label(row: Row, against: str = "") -> str:
    parts = [row["decoder"], f"L {row['length']}", f"batch {row['batch_size']}"]
    extra = against and f"over {against}"
    own = "" if row["implementation"] == "dlm" else row["implementation"]
    return ", ".join(filter(None, [*parts, own, extra]))


def _bars(axis: Any, labels: list[str], values: list[dict[str, float]], colours: list[str]) -> None:
    medians = [value["median"] for value in values]
    reach = [[v["median"] - v["low"] for v in values], [v["high"] - v["median"] for v in values]]
    places = range(len(labels))
    axis.barh(places, medians, xerr=reach if values else None, color=colours, height=0.65, ecolor=INK)
    axis.axvline(1, color=INK, linewidth=1, linestyle="--")
    axis.set_yticks(places, labels)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", type=Path, help="the file that benchmarks/decode.py wrote")
    path = parser.parse_args().json
    result = read_json(path)
    out = path.parent / path.name.removesuffix(".json")
    write_text(with_ending(out, "md"), to_markdown(result))
    write_figure(out, result["rows"])
    sys.stdout.write(to_markdown(result))


if __name__ == "__main__":
    run_script(main)
