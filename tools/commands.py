"""The commands of a dvc.yaml, as DVC would run them: without its launchers, which start several processes."""

import functools
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dlm.config.yaml import load_yaml

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
        axes = {name: listed(axis, params) for name, axis in stage["matrix"].items()}
        for chosen in itertools.product(*axes.values()):
            yield "-".join(chosen), {f"item.{axis}": value for axis, value in zip(axes, chosen, strict=True)}
    elif "foreach" in stage:
        for key in listed(stage["foreach"], params):
            yield key, {"key": key, "item": key}
    else:
        yield "", {}


def listed(items: Any, params: Mapping[str, Any]) -> Any:
    """What a stage goes through: as it stands, or `${a.b}` of params.yaml."""
    if isinstance(items, str):
        return functools.reduce(lambda block, key: block[key], items.strip("${}").split("."), params)
    return items
