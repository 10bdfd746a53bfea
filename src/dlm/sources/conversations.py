"""Conversations of several turns (OpenAI's `messages`, ShareGPT's `conversations`) -> a row for each answer in them."""

from collections.abc import Iterable, Iterator
from typing import Any

from dlm.errors import UserError

COLUMNS = ("messages", "conversations", "conversation")
ROLE, CONTENT = ("role", "from"), ("content", "value")  # of a turn, in either layout
USER, ASSISTANT, SYSTEM, TOOL = "User", "Assistant", "System", "Tool"
ASKING = (USER, TOOL)
ROLES = {
    "user": USER,
    "human": USER,
    "prompter": USER,
    "assistant": ASSISTANT,
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "bot": ASSISTANT,
    "model": ASSISTANT,
    "system": SYSTEM,
    "developer": SYSTEM,
    "tool": TOOL,
    "function": TOOL,
    "observation": TOOL,
    "function_response": TOOL,
}
Turn = tuple[str, str]  # who, and what is said


def answers(conversations: Iterable[Any], where: str, require_output: bool) -> Iterator[tuple[str, str, str]]:
    """(instruction, output, opening) of each answer of the assistant's; empty ones of a conversation without any.

    The instruction is all that stands before: the words of a sole question as they are; else the turns in their order,
    a blank line between them, each but a system prompt behind who says it ("User: ..."). What the assistant says
    unasked is no answer. The opening is the conversation's first instruction.

    Args:
        where: the file, for messages.
        require_output: False also takes a question that ends a conversation, with an empty output.

    Raises:
        UserError: a conversation is no list of turns, or a turn has no text, or nobody known who says it.
    """
    for number, conversation in enumerate(conversations, start=1):
        turns = _turns(conversation, f"{where}: record {number}")
        if not require_output and turns and turns[-1][0] == USER:
            turns.append((ASSISTANT, ""))
        asked = [n for n, (who, _) in enumerate(turns) if n and who == ASSISTANT and turns[n - 1][0] in ASKING]
        prompts = [_prompt(turns[:n]) for n in asked]
        yield from ((prompt, turns[n][1], prompts[0]) for n, prompt in zip(asked, prompts, strict=True))
        if not asked:
            yield "", "", ""


def _prompt(turns: list[Turn]) -> str:
    spoken = [who for who, _ in turns if who != SYSTEM]
    named = len(spoken) > 1
    return "\n\n".join(f"{who}: {said}" if named and who != SYSTEM else said for who, said in turns if said)


def _turns(conversation: Any, where: str) -> list[Turn]:
    if conversation is None:
        return []
    if not isinstance(conversation, list):
        raise UserError(
            f"{where}: not a list of turns but a {type(conversation).__name__}; write [{{role, content}}, ...]"
        )
    return [_turn(turn, f"{where}: turn {number}") for number, turn in enumerate(conversation, start=1)]


def _turn(turn: Any, where: str) -> Turn:
    if not isinstance(turn, dict):
        raise UserError(
            f"{where}: not an object but a {type(turn).__name__}; write {{role, content}} or {{from, value}}"
        )
    who = next((turn[name] for name in ROLE if turn.get(name)), None)
    if not isinstance(who, str) or who.lower() not in ROLES:
        raise UserError(f"{where}: said by {who!r}; known: {', '.join(ROLES)}")
    said = next((turn[name] for name in CONTENT if turn.get(name) is not None), "")
    if isinstance(said, list):  # OpenAI's parts
        said = "".join(_part(part, where) for part in said)
    if not isinstance(said, str):
        raise UserError(f"{where}: holds a {type(said).__name__}; convert it to text")
    return ROLES[who.lower()], said.strip()


def _part(part: Any, where: str) -> str:
    if not (isinstance(part, dict) and isinstance(part.get("text"), str)):
        raise UserError(f"{where}: has a part that is no text; leave such conversations out")
    return part["text"]
