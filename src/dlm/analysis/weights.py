"""Conv's weights s_i over the canvas as it fills (paper Fig. 5)."""

from pathlib import Path
from typing import Any, get_args

import matplotlib
import numpy as np
import torch
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from dlm.analysis.style import FAINT, FILLED, SERIES, TEXT, Mark, canvas, handle, legend
from dlm.decoding.options import DecoderOptions, Gain
from dlm.decoding.windows import conv


def weights_data(answer: dict[str, Any], prompt_length: int, options: DecoderOptions, steps: int) -> dict[str, Any]:
    """s_i of every response position before every step of one answer, and of every gain g before one of them: the last
    that finds half of the positions open.

    Args:
        answer: tokens and commit_step (-1: set by EOS-fill) of a Conv decoder.
        prompt_length: tokens to the left of the response, all of them committed.
        options: the decoder's (kernel_size, kernel, gain, conv_mult).
    """
    when = np.asarray(answer["commit_step"])
    end = len(answer["tokens"])
    # EOS-fill sets its positions at the step of the end-of-text.
    when = np.where(when < 0, when[end] if end < len(when) else steps, when)
    committed = when[None] < np.arange(steps)[:, None]
    kernel_size = options.kernel_size
    assert kernel_size is not None

    def weigh(rows: np.ndarray, gain: Gain) -> Any:
        state = np.concatenate([np.ones((len(rows), prompt_length), dtype=bool), rows], axis=1)
        window = conv(kernel_size, gain, options.conv_mult, options.kernel)
        return window(torch.from_numpy(state)).exp()[:, prompt_length:].round(decimals=4).tolist()

    shown = int(np.flatnonzero((~committed).mean(axis=1) >= 0.5)[-1])  # before step 0 all are open
    return {
        "kernel_size": kernel_size,
        "gain": options.gain,
        "committed": committed.astype(int).tolist(),
        "weights": weigh(committed, options.gain),
        "step": shown,
        "gains": {gain: weigh(committed[shown : shown + 1], gain)[0] for gain in get_args(Gain)},
    }


def draw_weights(data: dict[str, Any], path: Path) -> None:
    """Above, step by position (grey: committed); below, what each gain makes of one step, committed positions grey."""
    committed = np.asarray(data["committed"], dtype=bool)
    weights = np.ma.masked_array(np.asarray(data["weights"]), committed)
    marks = dict(zip(data["gains"], SERIES, strict=False))
    with canvas(path, TEXT, 3.8) as figure:
        image, lines = figure.subplots(2, 1, sharex=True, height_ratios=[1.4, 1])
        colours = matplotlib.colormaps["viridis"].with_extremes(bad=FILLED)
        mesh = image.imshow(weights, aspect="auto", cmap=colours, interpolation="nearest", vmin=0, vmax=1)
        image.axhline(data["step"], color=FAINT, linestyle=":")
        image.grid(visible=False)
        image.set_ylabel("step")
        image.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        image.set_title(f"weight s before each step, {data['gain']}, kernel {data['kernel_size']}")
        figure.colorbar(mesh, ax=image, label="s", pad=0.01)
        for place in np.flatnonzero(committed[data["step"]]):
            lines.axvspan(place - 0.5, place + 0.5, color=FILLED, linewidth=0)
        for index, (gain, of_gain) in enumerate(data["gains"].items()):
            # Where gains agree, the thinner line lies on the thicker one.
            lines.plot(of_gain, color=marks[gain].colour, linewidth=3.0 - 0.7 * index)
        lines.set_ylim(-0.05, 1.08)
        lines.set_ylabel("s")
        lines.set_title(f"every gain on that canvas, before step {data['step']} (dotted above)")
        lines.set_xlabel("position in the response, tokens")
        gains = [handle(gain, Mark(mark.colour, "")) for gain, mark in marks.items()]
        legend(figure, [*gains, Patch(facecolor=FILLED, label="committed")])
