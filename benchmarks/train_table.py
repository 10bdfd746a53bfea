"""The table of benchmarks/train.py."""

from typing import Any

from common import Spread, grid, numbers

HEADINGS = (
    "objective",
    "implementation",
    "L",
    "batch",
    "scored/step",
    "s/step",
    "tokens/s",
    "floor share",
    "model GFLOPs/step",
    "MFU",
)
NOTES = """\
- s/step and ratios: median (smallest–largest) over {repeats} interleaved repeats of {steps} steps after {warm_up} more.
- tokens/s: canvas tokens, at the median. scored/step: positions through the head, on average.
- floor share: tokens/s over the floor's, a bare forward and backward pass and optimizer step on the same canvases with
  as many scored positions (target: at least {floor_share}).
- model FLOPs: 6 for a trained weight and token, {frozen}attention 12·layers·width·L a token, the head at the scored
  positions; none for the optimizer or for what is computed twice.
- MFU: model FLOPs a second over the rate of {dtype} matrix products of side {side} in the same repeat,
  {rate} GFLOP/s."""


def to_markdown(result: dict[str, Any]) -> str:
    """The machine, the command, the table and what its columns mean."""
    machine, settings, targets, over = (result[key] for key in ("hardware", "settings", "targets", "r2ft_over_sft"))
    where = f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores used"
    if machine["gpu"]:
        where = f"{machine['gpu']} ({where})"
    lora = settings["lora"]
    parts = [f"{settings['parameters'] / 1e6:,.1f}M parameters"]
    if lora:
        trained = settings["trained_parameters"] / 1e6
        parts.append(
            f"{trained:,.1f}M of them trained: adapters of rank {lora['rank']} on {', '.join(lora['targets'])}"
        )
    if settings["gradient_checkpointing"]:
        parts.append("gradient checkpointing")
    if settings["compile"]:
        parts.append("torch.compile")
    head = [
        f"**{result['title']}**: {settings['subject']} ({'; '.join(parts)}; {settings['dtype']}; "
        f"{settings['optimizer']}) on {where}, torch {machine['torch']}.",
        f"`{result['command']}`",
    ]
    ratio = (
        f"R2FT step / SFT step: {numbers(over['seconds'], 2)} (target: at most {targets['r2ft_over_sft']}); "
        f"of their floors {numbers(over['floor_seconds'], 2)}, of their model FLOPs {over['model_flops']:.2f}."
    )
    matmul = result["matmul"]
    notes = NOTES.format(
        **settings,
        floor_share=targets["floor_share"],
        frozen="4 for a frozen one (the base and the head), " if lora else "",
        rate=numbers(_scaled(matmul["flops_per_second"], 1e-9), 0),
        side=matmul["side"],
    )
    return "\n\n".join([*head, grid([list(HEADINGS), *map(_cells, result["rows"])], 2), ratio, notes]) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["objective"],
        row["implementation"],
        str(row["length"]),
        str(row["batch_size"]),
        f"{row['scored_positions']:.1f}",
        numbers(row["seconds_per_step"], 3),
        f"{row['tokens_per_second']:.0f}",
        "1" if row["implementation"] == "floor" else numbers(row["floor_share"], 2),
        f"{row['model_flops'] / 1e9:,.1f}",
        numbers(row["mfu"], 2),
    ]


def _scaled(values: Spread, factor: float) -> Spread:
    return {name: value * factor for name, value in values.items()}
