"""How often tokens occur anywhere: what PC-Sampler calibrates confidence with."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dlm.errors import UserError
from dlm.files import read_json


def read_background(path: str | None) -> Float[Tensor, " vocab"] | None:
    """Log relative frequency of every id, each count plus one, and of an id beyond them at the end (nats, float32).

    Args:
        path: a JSON file with `token_counts`, a list by id; None for no background.

    Raises:
        UserError: no such file, or no counts in it.
    """
    if path is None:
        return None
    found = read_json(path)
    counts: Any = found.get("token_counts") if isinstance(found, dict) else None
    if not isinstance(counts, list) or not counts or not all(type(count) is int and count >= 0 for count in counts):
        raise UserError(f"{path}: no token_counts; background must be a JSON file with a list of counts by token id")
    seen = torch.tensor([*counts, 0], dtype=torch.float64) + 1
    return (seen / seen[:-1].sum()).log().float()
