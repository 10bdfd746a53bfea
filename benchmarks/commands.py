"""The commands of a dvc.yaml, as DVC would run them: without its launchers, which start several processes."""

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dlm.dialect import load_yaml

Command = tuple[str, list[str]]  # a stage's name, its script with arguments


def commands(file: Path, params: Mapping[str, Any]) -> Iterator[Command]:
    """Every cell of every stage of a dvc.yaml, in the file's order."""
    for name, stage in load_yaml(file.read_text())["stages"].items():
        body = stage.get("do", stage)
        words = body["cmd"].split()
        words = words[next(i for i, word in enumerate(words) if word.startswith("stages/")) :]
        for cell, values in cells(stage, params):
            filled = [re.sub(r"\$\{([\w.]+)\}", lambda found: values[found[1]], word) for word in words]  # noqa: B023
            yield f"{name}@{cell}" if cell else name, filled


def cells(stage: Mapping[str, Any], params: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
    """The cells of a stage, each with what its command's placeholders stand for."""
    if "matrix" in stage:
        axes = dict(stage["matrix"])
        if "decoder" in axes:
            axes["decoder"] = params["report"]["decoders"]  # dvc.yaml lists the default's
        for chosen in itertools.product(*axes.values()):
            yield "-".join(chosen), {f"item.{axis}": value for axis, value in zip(axes, chosen, strict=True)}
    elif "foreach" in stage:
        items = stage["foreach"]
        if isinstance(items, str):
            items = looked_up(params, items.strip("${}"))
        for key in items:
            yield key, {"key": key, "item": key}
    else:
        yield "", {}


def looked_up(params: Mapping[str, Any], name: str) -> Any:
    found: Any = params
    for key in name.split("."):
        found = found[key]
    return found
