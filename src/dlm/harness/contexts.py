"""The texts of lm-evaluation-harness as token ids, by the same paths as `generate` and `score` take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dlm.data.tokenizer import encode, encode_answers
from dlm.decoding.lm import DiffusionLM
from dlm.errors import UserError


@dataclass
class Contexts:
    """Contexts as token ids, cut to the model's length, and how many were cut.

    The harness wants a conversation as one text and gives that text back. The ids of its chat template are kept for
    then: read anew, the text would not tell the template's special tokens from those that a message spells.

    Attributes:
        limit: tokens of a canvas, None for no limit.
        cut: contexts that lost their beginning.
        cut_tokens: tokens that they lost.
    """

    lm: DiffusionLM
    limit: int | None
    cut: int = 0
    cut_tokens: int = 0
    conversations: dict[str, list[int]] = field(default_factory=dict)

    def render(self, turns: Sequence[Mapping[str, str]]) -> str:
        """A conversation as text, special tokens by name, up to where the answer starts or goes on.

        The last turn may be the assistant's: it is the beginning of the answer.

        Raises:
            UserError: as `DiffusionLM.chat_prompt`; two conversations that are one text.
        """
        begun = turns[-1]["content"] if turns and turns[-1]["role"] == "assistant" else ""
        ids = self._prompt(turns[:-1] if begun else turns)
        text = str(self.lm.tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        ids, text = ids + (encode(self.lm.tokenizer, [begun], after=True)[0] if begun else []), text + begun
        if self.conversations.setdefault(text, ids) != ids:
            raise UserError(
                f"two conversations read {text[:60]!r}...: one spells a special token; take one of them out"
            )
        return text

    def _prompt(self, turns: Sequence[Mapping[str, str]]) -> list[int]:
        """Of the chat template; where there is none, a user's only message goes into the prompt template."""
        if self.lm.tokenizer.chat_template is not None or self.lm.template is None:
            return self.lm.chat_prompt(turns)
        if [turn["role"] for turn in turns if turn["role"] != "system"] != ["user"]:
            raise UserError(
                "this checkpoint has no chat template, and its prompt template takes one message: give no few-shot "
                "examples, or have them in that message (--one-turn)"
            )
        return self.lm.prompt("\n\n".join(turn["content"] for turn in turns))

    def ids(self, context: str) -> list[int]:
        """The ids of a context: a conversation's own, or those of a text as it is."""
        if context in self.conversations:
            return self.conversations[context]
        begun = max((text for text in self.conversations if context.startswith(text)), key=len, default=None)
        if begun is None:
            return self.lm._ids(context, "a context")
        return self.conversations[begun] + encode(self.lm.tokenizer, [context[len(begun) :]], after=True)[0]

    def pairs(self, given: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """The ids of contexts and their continuations. White space at the end of a context belongs to the continuation,
        as with the harness's own models; a conversation keeps it.

        Raises:
            UserError: an empty continuation, or one that does not fit.
        """
        contexts, continuations = zip(*(self._moved(*pair) for pair in given), strict=True)
        answers = encode_answers(self.lm.tokenizer, list(contexts), list(continuations))
        ids = {context: self.ids(context) for context in dict.fromkeys(contexts)}
        for context, answer in zip(contexts, answers, strict=True):
            if not answer:
                raise UserError(f"a continuation of {context[-60:]!r} is empty; leave that task out")
        fitted = (self.fitted(ids[c], len(a), "a continuation") for c, a in zip(contexts, answers, strict=True))
        return list(zip(fitted, answers, strict=True))

    def _moved(self, context: str, continuation: str) -> tuple[str, str]:
        if context in self.conversations:
            return context, continuation
        bare = context.rstrip()
        return bare, context[len(bare) :] + continuation

    def fitted(self, ids: list[int], room: int, what: str) -> list[int]:
        """A context before `room` more tokens: where both are too long, it loses its beginning.

        Raises:
            UserError: what is behind it does not fit by itself.
        """
        if self.limit is None or len(ids) + room <= self.limit:
            return ids
        if room > self.limit:
            raise UserError(f"{what} of {room} tokens does not fit on a canvas of {self.limit}; leave that task out")
        over = len(ids) + room - self.limit
        self.cut, self.cut_tokens = self.cut + 1, self.cut_tokens + over
        return ids[over:]
