"""Which position takes its token at which step (paper Fig. 7)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from dlm.analysis.style import FILLED, TEXT, canvas, decoder_marks, handle, legend

# A mean over fewer answers than this share jumps about: the rest were set by EOS-fill.
LEAST_SHARE = 0.1


def unmasking_data(checkpoint: str, answers: Mapping[str, Sequence[dict[str, Any]]], prompt: int) -> dict[str, Any]:
    """The commit steps of each decoder: mean over answers by position, and one answer's own.

    Args:
        checkpoint: whose answers they are.
        answers: rows with `commit_step` by decoder; -1 stands for "set by EOS-fill".
        prompt: id of the prompt whose first answer is shown.
    """
    decoders = {}
    for name, rows in answers.items():
        steps = np.array([row["commit_step"] for row in rows])
        committed = steps >= 0
        counts = committed.sum(axis=0)
        sums = np.where(committed, steps, 0).sum(axis=0)
        decoders[name] = {
            "mean_step": [
                float(s / n) if n >= LEAST_SHARE * len(steps) and n else None for s, n in zip(sums, counts, strict=True)
            ],
            "eos_filled_share": (1 - committed.mean(axis=0)).tolist(),
            "example": next(row["commit_step"] for row in rows if row["id"] == prompt),
        }
    return {"checkpoint": checkpoint, "prompt": prompt, "decoders": decoders}


def draw_unmasking(data: dict[str, Any], path: Path) -> None:
    """Above, a line for each decoder; below, one strip for each: dark is early, grey was set by EOS-fill."""
    decoders = data["decoders"]
    strips = np.array([entry["example"] for entry in decoders.values()])
    marks = decoder_marks(list(decoders))
    with canvas(path, TEXT, 2.1 + 0.22 * len(decoders)) as figure:
        lines, image = figure.subplots(2, 1, sharex=True, height_ratios=[3, 0.5 + 0.36 * len(decoders)])
        for index, (name, entry) in enumerate(decoders.items()):
            means = [np.nan if value is None else value for value in entry["mean_step"]]
            every = max(len(means) // 10, 1)  # a marker at every tenth of the canvas, not all at the same places
            place = index * every // len(decoders)
            lines.plot(means, color=marks[name].colour, marker=marks[name].marker, markevery=(place, every))
        lines.set_ylabel("step of the token")
        lines.set_title(f"mean step, all answers of {data['checkpoint']}")
        filled = Patch(facecolor=FILLED, label="set by EOS-fill")
        legend(figure, [*(handle(name, mark) for name, mark in marks.items()), filled])
        colours = matplotlib.colormaps["viridis"].with_extremes(bad=FILLED)
        masked_strips = np.ma.masked_less(strips, 0)
        mesh = image.imshow(
            masked_strips, aspect="auto", cmap=colours, interpolation="nearest", vmin=0, vmax=max(int(strips.max()), 1)
        )
        image.set_yticks(range(len(decoders)), list(decoders))
        image.grid(visible=False)
        image.set_title(f"step of every token, one answer of {data['checkpoint']}")
        image.set_xlabel("position in the response, tokens")
        figure.colorbar(mesh, ax=image, label="step", pad=0.01, ticks=MaxNLocator(5, integer=True))
