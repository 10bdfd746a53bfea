"""Where an interrupted training run goes on: a key of all that decides its result, and the checkpoints under it."""

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dlm.files import code_hash
from dlm.models.adapters import unwrapped


def resume_key(make_trainer: Callable[..., Any], model: nn.Module, rows: Iterable[Iterable[Any]], *rest: Any) -> str:
    """A hash that differs where anything that decides a run's result does: this package's code, too.

    Args:
        make_trainer: what it is called with counts if it is a functools.partial, a collator's attributes included.
        model: its weights, configuration and adapters.
        rows: the sets of rows that it is trained and evaluated on.
        rest: whatever else (dataclasses, plain values).
    """
    parts = [described(make_trainer), model_hash(model), *map(rows_hash, rows), *map(described, rest), code_hash()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def described(part: Any) -> Any:
    """Plain values that tell one object from another by what it holds: no address, no order of a dict."""
    if part is None or isinstance(part, bool | int | float | str):
        return part
    if isinstance(part, list | tuple):
        return [described(item) for item in part]
    if isinstance(part, Mapping):
        return {str(key): described(value) for key, value in part.items()}
    if isinstance(part, torch.Tensor):
        return [str(part.dtype), list(part.shape), hashlib.sha256(part.float().cpu().numpy().tobytes()).hexdigest()]
    if isinstance(part, functools.partial):
        return [described(part.func), described(part.args), described(part.keywords)]
    if isinstance(part, type) or (callable(part) and hasattr(part, "__qualname__")):
        return f"{part.__module__}.{part.__qualname__}"
    return [described(type(part)), described(vars(part))]  # a dataclass, a collator


def model_hash(model: nn.Module) -> str:
    """Of a model's weights, its configuration, and that of its adapters (rank, alpha, dropout, targets)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + tensor.float().cpu().numpy().tobytes())
    adapters = {name: config.to_dict() for name, config in getattr(model, "peft_config", {}).items()}
    config = getattr(unwrapped(model), "config", None)
    settings = [adapters, config.to_dict() if config is not None else None]
    digest.update(json.dumps(settings, sort_keys=True, default=sorted_text).encode())
    return digest.hexdigest()


def sorted_text(value: Any) -> Any:
    """What JSON does not know of a configuration: sets of names in order, the rest as text."""
    return sorted(value) if isinstance(value, set) else str(value)


def rows_hash(rows: Iterable[Mapping[str, Any]]) -> str:
    """Of every value of every row: ids, masks, texts."""
    digest = hashlib.sha256()
    for row in rows:
        for name in sorted(row):
            value = row[name]
            content = value.tobytes() if isinstance(value, np.ndarray) else json.dumps(value).encode()
            digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.hexdigest()


def last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint whose last-written file is whole; broken ones are removed."""
    for path in sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            return str(path)
        except (OSError, json.JSONDecodeError):
            shutil.rmtree(path)
    return None


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])
