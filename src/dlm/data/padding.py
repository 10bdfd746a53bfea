"""What stands behind an answer on a training canvas: EOS alone, or Rainbow Padding (arXiv 2510.03680).

Where EOS both ends an answer and fills the canvas, a model learns that far from the prompt EOS is nearly certain, and
ends early. Rainbow Padding ends the answer with one EOS and fills the rest with pad tokens in turn, of which none is
likely without knowing where the answer ends.
"""

from collections.abc import Sequence

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from dlm.errors import UserError


def add_padding(tokenizer: PreTrainedTokenizerFast, cycle: int) -> list[int]:
    """Give a tokenizer the special tokens <|pad_0|> to <|pad_{cycle - 1}|>, where it lacks them; their ids, in turn.

    Raises:
        UserError: one of them is an ordinary entry of the tokenizer, which texts may hold.
    """
    names = [f"<|pad_{place}|>" for place in range(cycle)]
    known = tokenizer.get_vocab()
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    if taken := [name for name in names if name in known and name not in special]:
        raise UserError(f"tokenizer.pad_cycle: {taken[0]} is an ordinary entry of the tokenizer; set it to 0")
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    return [tokenizer.get_vocab()[name] for name in names]


def tail(count: int, eos_id: int, cycle: Sequence[int] = ()) -> list[int]:
    """The `count` ids behind an answer: EOS, and then the ids of `cycle` in turn, EOS where it is empty."""
    turn = cycle or [eos_id]
    return [eos_id, *(turn[place % len(turn)] for place in range(count - 1))] if count > 0 else []
