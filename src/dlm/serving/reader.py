"""An answer's text while it is written: what stands to the left of the first mask, up to its end or a stop string."""

from collections.abc import Sequence
from itertools import takewhile

from transformers import PreTrainedTokenizerFast

from dlm.data.tokenizer import decode

CUT = "\ufffd"  # what a character of several tokens reads as until all of them are there


class Reader:
    """Reads drafts of one answer. `text` grows at its end alone, so that it can be sent piece by piece.

    Attributes:
        text: what is certain so far; at the end, the answer.
        reason: why it ends: stop (an end of text, or a stop string) or length; None before.
        tokens: how many tokens of the answer have been read; of a stop string, those up to its end.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, mask_id: int, ends: Sequence[int], stops: Sequence[str] = ()
    ) -> None:
        self._tokenizer, self._mask_id, self._ends, self._stops = tokenizer, mask_id, {*ends}, stops
        self.text, self.tokens = "", 0
        self.reason: str | None = None

    def read(self, tokens: Sequence[int], settled: int) -> None:
        """Take in a draft, of which the positions before `settled` are never masked again."""
        known = [*takewhile(lambda token: token != self._mask_id, tokens[:settled])]
        ids = [*takewhile(lambda token: token not in self._ends, known)]
        complete = len(ids) < len(known) or len(ids) == len(tokens)
        if self.reason is not None or (len(ids) == self.tokens and not complete):
            return
        self.tokens, text = len(ids), decode(self._tokenizer, ids)
        if (place := self._stop(text)) is not None:
            self.text, self.reason = text[:place], "stop"
            self.tokens = next(
                n for n in range(len(ids) + 1) if self._stop(decode(self._tokenizer, ids[:n])) is not None
            )
        elif complete:
            self.text, self.reason = text, "stop" if len(ids) < len(known) else "length"
        elif (certain := self._certain(text)).startswith(self.text):
            self.text = certain

    def _stop(self, text: str) -> int | None:
        """Where the first stop string begins."""
        return min((place for stop in self._stops if (place := text.find(stop)) >= 0), default=None)

    def _certain(self, text: str) -> str:
        """Without what may yet become another character, or a stop string."""
        text = text.rstrip(CUT)
        parts = {stop[:n] for stop in self._stops for n in range(1, len(stop))}
        return text[: len(text) - max((len(part) for part in parts if text.endswith(part)), default=0)]
