"""Trial passes over a few tokens: what a backbone really does, whatever its configuration says.

They are the calls that decoding makes: without an attention mask, beside padding, and with places left out.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from dlm.errors import UserError
from dlm.models.blocks import block_causal
from dlm.models.interface import backbone, inputs, is_masked_lm

Gaps = Literal["closed", "hidden", "none"]


@dataclass(frozen=True)
class Habits:
    """What may be done to a canvas without changing the states of the places that are kept.

    Attributes:
        padding: whether padding on the right, behind the attention mask, changes nothing.
        gaps: how places in the middle are left out: "closed", where position ids alone say how far apart two places
            are; "hidden" behind the attention mask, where their order does, too; "none", where either changes states.
    """

    padding: bool
    gaps: Gaps


def check_sees_ahead(model: PreTrainedModel, otherwise: str) -> None:
    """Check by two passes that the first position's state changes with a later token, alone and beside padding, and by
    a third one that no part of a decoder-only model reads from left to right (`_one_way`).

    Args:
        otherwise: what becomes of a model that fails, for its line.

    Raises:
        UserError: a model that goes on reading from left to right, always, in some batches or in some of its layers
            (hybrids of attention with recurrent layers or convolutions), or cannot be run at all.
    """
    name = type(model).__name__
    ids = _tokens(model, 5)
    ids = torch.cat([ids, ids])
    ids[1, 2] = ids[0, 3]
    attention_mask = torch.tensor([[True, True, True, False, False]] * 2, device=model.device)
    try:
        alone, padded = _states(model, ids[:, :3]), _states(model, ids, attention_mask)
        one_way = None if is_masked_lm(model) else _one_way(model, ids[:1])
    except Exception as error:  # whatever a class raises that wants other inputs
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{name}: cannot be run ({type(error).__name__}: {reason}); {otherwise}") from None
    blind = [torch.equal(*states[:, 0]) for states in (alone, padded)]
    if any(blind):
        where = "" if all(blind) else " where there is no padding" if blind[0] else " beside padding"
        raise UserError(f"{name}: its first position does not see the second{where}; {otherwise}")
    if one_way is not None:
        raise UserError(f"{name}: {one_way} reads from left to right alone; {otherwise}")


def check_sees_blocks(model: PreTrainedModel, otherwise: str) -> None:
    """Check that a model goes by what it is told that each position sees: of two blocks of 2 the first must not know
    the second, whose first position must know its last.

    Args:
        otherwise: what becomes of a model that fails, for its line.

    Raises:
        UserError: a masked LM, a model whose layers see near positions alone, or one that pays no heed to such a mask.
    """
    ids = _tokens(model, 5)
    changed = torch.cat([ids[:, :3], ids[:, 4:]], dim=1)
    sees = block_causal(torch.tensor([[0, 0, 1, 1]], device=model.device))
    heeds = not is_masked_lm(model) and not _has_windows(model.config)
    if heeds:
        before, after = (_states(model, tokens, sees) for tokens in (ids[:, :4], changed))
        same = _same(after[:, :2], before[:, :2])
        heeds = same and not torch.equal(after[:, 2], before[:, 2])
    if not heeds:
        raise UserError(f"{type(model).__name__}: cannot see blocks of positions alone; {otherwise}")


@torch.no_grad()
def _one_way(model: PreTrainedModel, ids: Int[Tensor, "1 length"]) -> str | None:
    """The first part of the backbone that passes a change of a position on to later ones and to none before it (a
    recurrent layer, a causal convolution, attention with a mask of its own): its name and class, or None.

    During one pass every part that is made of parts (a layer, its attention, its mixer) runs once more, the middle
    position's input changed.
    """
    middle = ids.shape[1] // 2
    given: dict[nn.Module, Tensor] = {}
    found: list[str] = []
    again = False

    def keep(part: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        hidden = _by_position(args or kwargs.get("hidden_states"), ids)
        if hidden is not None and not again:
            given[part] = hidden.clone()  # it may be overwritten in place

    def compare(name: str, part: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        nonlocal again
        before = _by_position(output, ids)
        if again or found or part not in given or before is None:
            return
        hidden = given.pop(part)
        hidden[:, middle] = hidden[:, middle].roll(1, -1)
        again = True
        changed = (
            part.forward(hidden, *args[1:], **kwargs) if args else part.forward(**kwargs | {"hidden_states": hidden})
        )
        again = False
        change = ((changed if isinstance(changed, Tensor) else changed[0]) - before).abs().amax(-1)[0]
        # A token that goes to an expert with others may be rounded otherwise.
        rounding = torch.finfo(before.dtype).eps ** 0.75 * before.abs().max()
        if not change[:middle].any() and change[middle + 1 :].max() > rounding:
            found.append(f"{name} ({type(part).__name__})")

    parts = [(name, part) for name, part in backbone(model).named_modules() if name and any(part.children())]
    hooks = [part.register_forward_pre_hook(keep, with_kwargs=True) for _, part in parts]
    hooks += [part.register_forward_hook(partial(compare, name), with_kwargs=True) for name, part in parts]
    try:
        _states(model, ids)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _by_position(value: Any, ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length width"] | None:
    """The states that a part of a model takes or gives, first of several values; None for anything else."""
    states = value[0] if isinstance(value, tuple) and value else value
    is_states = isinstance(states, Tensor) and states.dim() == 3 and states.shape[:2] == ids.shape
    return states if is_states and states.is_floating_point() else None


def habits(model: PreTrainedModel) -> Habits:
    """Up to five passes over seven tokens."""
    ids = _tokens(model, 7)
    place = torch.arange(7, device=model.device)[None]
    front, kept = place < 5, (place < 2) | (place > 3)
    padding = _same(_states(model, ids, front)[:, :5], _states(model, ids[:, :5]))
    if is_masked_lm(model):
        others = torch.where(kept, ids, ids.flip(1))
        hidden = _same(_states(model, ids, kept)[kept], _states(model, others, kept)[kept])
        return Habits(padding, "hidden" if hidden else "none")
    kept_places = place[kept][None]
    kept_ids = ids[:, kept_places[0]]
    closed, squeezed = _states(model, kept_ids, None, kept_places), _states(model, kept_ids, None, place[:, :5])
    # A model that does not read position ids counts its input's places, and is wrong about them either way.
    if torch.equal(closed, squeezed) or not _same(_states(model, ids, kept, place)[kept], closed[0]):
        return Habits(padding, "none")
    return Habits(padding, "hidden" if _has_windows(model.config) else "closed")


def _has_windows(config: Any) -> bool:
    """Whether some layer attends to near places alone, which it tells by their order."""
    other = set(getattr(config, "layer_types", None) or []) - {"full_attention"}
    return bool(other or getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None))


def _tokens(model: PreTrainedModel, count: int) -> Int[Tensor, "1 count"]:
    """The vocabulary's first ids; some classes know padding by its id."""
    padding = getattr(model.config, "pad_token_id", None)
    return torch.tensor([[i for i in range(count + 1) if i != padding][:count]], device=model.device)


@torch.no_grad()
def _states(
    model: PreTrainedModel,
    ids: Int[Tensor, "batch length"],
    attention_mask: Bool[Tensor, "batch length"] | Bool[Tensor, "batch length length"] | None = None,
    positions: Int[Tensor, "batch length"] | None = None,
) -> Float[Tensor, "batch length width"]:
    # The method itself: hooks on the module count the passes of decoding.
    states: Tensor = backbone(model).forward(**inputs(model, ids, attention_mask, positions)).last_hidden_state
    return states


def _same(hidden: Tensor, expected: Tensor) -> bool:
    """Up to rounding in the states' type."""
    tolerance = torch.finfo(expected.dtype).eps ** 0.5 * expected.abs().max()
    return bool(((hidden - expected).abs() <= tolerance).all())
