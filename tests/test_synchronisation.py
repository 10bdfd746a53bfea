"""How often the loop would wait for a device: operations whose result's size, or whose number, the host must know."""

from collections import Counter
from typing import Any

import pytest
import torch
from decoder_cases import INVARIANT
from test_api import PROMPTS
from tiny import tiny_lm
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dlm.decoding.lm import DiffusionLM

WAITING = {"nonzero", "_local_scalar_dense", "masked_select", "unique_dim", "_unique2", "bincount", "is_nonzero"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}  # a mask as index is a hidden nonzero
STEPS = 6


class Waits(TorchDispatchMode):
    """Counts what would wait, and reads of whole tensors (`tolist`)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        tolist = Tensor.tolist

        def counted(tensor: Tensor) -> Any:
            self.found["tolist"] += 1
            return tolist(tensor)

        monkeypatch.setattr(Tensor, "tolist", counted)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        indices = args[1] if name in INDEXING else []
        if name in WAITING or any(index is not None and index.dtype == torch.bool for index in indices):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def waits(lm: DiffusionLM, monkeypatch: pytest.MonkeyPatch, prompts: list[Any], steps: int, **options: Any) -> int:
    with monkeypatch.context() as patch, Waits(patch) as mode:
        lm.generate(prompts, gen_length=12, steps=steps, **options)
    return sum(mode.found.values())


@pytest.mark.parametrize(
    ("name", "options"), INVARIANT, ids=["-".join([name, *map(str, options.values())]) for name, options in INVARIANT]
)
def test_one_wait_a_step(monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any]) -> None:
    """Rows of one length: how much there is to compute. Draws from the whole vocabulary also ask where they are needed,
    KLASS which positions are sure, rules that revise what they may mask again, and what they do.

    A block's end asks what is masked again (stride), and a dozen questions stand outside of the loop.
    """
    lm = tiny_lm(2)
    rules = {name, options.get("rule")}
    late = {"categorical", "first_hitting", "klass", "tweedie"}
    allowed = 3 if rules & {"remdm", "wino", "p2"} else 2 if rules & late else 1
    blocks = 12 // options["block_length"] if "block_length" in options else 1
    setting = {"decoder": name, "cache": False, **options}
    prompts = [[5, 9, 70], [100, 4, 8]]
    for steps in (STEPS * blocks, 5 * STEPS * blocks):
        assert waits(lm, monkeypatch, prompts, steps, **setting) <= allowed * steps + blocks + 12


def test_unequal_rows_wait_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether there is padding, asked by transformers."""
    for steps in (STEPS, 5 * STEPS):
        assert waits(tiny_lm(2), monkeypatch, PROMPTS, steps, decoder="top_k", cache=False) <= 2 * steps + 12


def test_the_counter_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = torch.arange(4)
    with Waits(monkeypatch) as mode:
        numbers.nonzero()
        numbers[numbers > 1] = 0
        assert numbers[numbers > 1].sum().item() == 0
        assert numbers.tolist() == [0, 1, 0, 0]
        numbers[torch.tensor([1, 2])] += 1
    assert sum(mode.found.values()) == 5, mode.found
