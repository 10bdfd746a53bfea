"""A conversation as a prompt: in the checkpoint's chat template, else in its prompt template, else as it is."""

from collections.abc import Mapping, Sequence

from dlm.data.records import Record
from dlm.data.tokenizer import encode
from dlm.decoding.arguments import listed, turn
from dlm.decoding.lm import DiffusionLM
from dlm.errors import UserError

CHAT, TEMPLATE, BARE = "the chat template", "the prompt template", "no template"


def form(lm: DiffusionLM) -> str:
    """What conversations are put into."""
    if lm.tokenizer.chat_template is not None:
        return CHAT
    return BARE if lm.template is None else TEMPLATE


def prompt_ids(lm: DiffusionLM, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Token ids of a conversation, up to where the answer starts.

    A prompt template knows one instruction: each of the user's turns is put into it, its answer and an empty line
    follow, and a system's message stands before the instruction. Without any template the turns follow each other, a
    line each, and the last is used as it is. Special tokens that a message spells stay text.

    Raises:
        UserError: as `DiffusionLM.chat_prompt`.
    """
    if form(lm) == CHAT:
        return lm.chat_prompt(messages)
    turns = [turn(message, f"message {number}") for number, message in enumerate(listed(messages, "messages"))]
    if not turns or turns[-1]["role"] != "user":
        raise UserError("a conversation must end with a message of the user, for the model to answer")
    if lm.template is None:
        return encode(lm.tokenizer, ["\n".join(each["content"] for each in turns)])[0]
    ids: list[int] = []
    before: list[str] = []
    for each in turns:
        if each["role"] == "assistant":
            ids += encode(lm.tokenizer, [each["content"] + "\n\n"], after=True)[0]
        elif each["role"] == "system":
            before.append(each["content"])
        else:
            instruction = "\n\n".join([*before, each["content"]])
            ids += lm.template.encode(lm.tokenizer, [Record(instruction, "", "")])[0]
            before = []
    return ids


def that_fits(
    lm: DiffusionLM, messages: Sequence[Mapping[str, str]], gen_length: int
) -> tuple[list[Mapping[str, str]], list[int], int]:
    """A conversation without its oldest turns, as far as the model has no room for them and an answer.

    Returns:
        What is left, its token ids, and how many messages went; the system's message and the last one stay.

    Raises:
        UserError: as `prompt_ids`; the last message alone is too long.
    """
    kept, gone = [*messages], 0
    limit = lm.denoiser.max_length
    while limit is not None and len(ids := prompt_ids(lm, kept)) + gen_length > limit:
        first = next((n for n, each in enumerate(kept) if each["role"] != "system"), len(kept))
        if first >= len(kept) - 1:
            raise UserError(
                f"the message has {len(ids)} tokens with its template; with {gen_length} for the answer that exceeds "
                f"the model's {limit} positions; shorten one of them"
            )
        # A user's turn goes with its answer: a conversation starts with the user.
        until = next((n for n in range(first + 1, len(kept)) if kept[n]["role"] == "user"), len(kept) - 1)
        gone += until - first
        del kept[first:until]
    return kept, prompt_ids(lm, kept), gone
