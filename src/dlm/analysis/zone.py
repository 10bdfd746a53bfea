"""Kinds of candidates and of written tokens by distance from the prompt (paper Figs. 2, 3 and 11)."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from dlm.analysis.lines import line, panel
from dlm.analysis.style import INK, KINDS, REAL, TEXT, canvas, decoder_marks, legend

# In the order of evaluation.distance.KINDS.
NAMES = {
    "end": "end of text",
    "high_prior": "frequent token",
    "repetition": "token of the context",
    "other": "anything else",
}
DISTANCE = "distance from the prompt, tokens"


def draw_zone(data: dict[str, Any], path: Path) -> None:
    """Above, one prompt's best candidates (a row each, the best below); below, their kinds over all prompts."""
    kinds = np.asarray(data["example"]["kinds"]).T
    shares = [data["candidates"][kind] for kind in NAMES]
    colours = [KINDS[kind].colour for kind in NAMES]
    with canvas(path, TEXT, 2.9) as figure:
        one, every = figure.subplots(2, 1, sharex=True, height_ratios=[1, 1.6])
        one.imshow(
            kinds, aspect="auto", origin="lower", interpolation="nearest", cmap=ListedColormap(colours), vmin=0, vmax=3
        )
        one.set_yticks(range(len(kinds)), [f"{place + 1}." for place in range(len(kinds))])
        one.set_ylabel("candidate")
        one.grid(visible=False)
        one.set_title(f"one prompt, {data['checkpoint']}: {textwrap.shorten(data['example']['instruction'], 55)}")
        every.stackplot(range(len(shares[0])), shares, colors=colours)
        every.set_ylim(0, 1)
        every.set_ylabel("share of candidates")
        every.set_title(f"the {len(kinds)} best candidates of each position, mean over {data['prompts']} prompts")
        every.set_xlabel(DISTANCE)
        legend(figure, [Patch(facecolor=KINDS[kind].colour, edgecolor=INK, label=name) for kind, name in NAMES.items()])


def distance_data(distances: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Probability by kind at the first step, and what each decoder wrote, a column for each checkpoint, for
    `draw_lines`.

    Args:
        distances: of the distance stage, by checkpoint.
    """
    first = distances[0]
    centres = [start + first["bin"] / 2 for start in range(0, first["gen_length"], first["bin"])]
    panels = [
        panel(
            f"{distance['checkpoint']}, before anything is written",
            DISTANCE,
            "probability",
            [
                line(NAMES[kind], centres, distance["probability"][kind], KINDS[kind], distance["checkpoint"])
                for kind in ("high_prior", "repetition", "end")
            ],
        )
        for distance in distances
    ]
    for kind in ("high_prior", "repetition"):
        for distance in distances:
            written = distance["written"]
            lines = [
                line(decoder, centres, written[decoder][kind], mark, distance["checkpoint"])
                for decoder, mark in decoder_marks(list(written)).items()
            ]
            lines.append(line("real answers", centres, first["expected"][kind], REAL))
            panels.append(panel(f"{distance['checkpoint']} wrote: {NAMES[kind]}", DISTANCE, "share of tokens", lines))
    return {"columns": len(distances), "panels": panels}
