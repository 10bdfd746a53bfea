"""What is sent back: OpenAI's objects, and under `dlm` what only a diffusion model has."""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from dlm.decoding.lm import DiffusionLM
from dlm.serving.body import Asked, BadRequest
from dlm.serving.engine import Answer, Frame


def error(message: str, status: int, field: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": field, "code": code}}


def refusal(bad: BadRequest) -> dict[str, Any]:
    return error(str(bad), bad.status, bad.field, bad.code)


@dataclass(frozen=True)
class Form:
    """The objects of one request: completions, or with `chat` chat completions."""

    chat: bool
    model: str
    asked: Asked
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """All answers at once."""
        choices = []
        for answer in answers:
            message = {"role": "assistant", "content": answer.text, "refusal": None}
            text = {"message": message} if self.chat else {"text": answer.text}
            choices.append({"index": answer.choice, **text, **self._end(answer)})
        return {**self._head("chat.completion"), "choices": choices, "usage": self.usage(answers)}

    def opening(self, choice: int) -> dict[str, Any]:
        """What a chat answer begins with."""
        return self._chunk(choice, {"delta": {"role": "assistant", "content": ""}}, {"finish_reason": None})

    def piece(self, choice: int, text: str, draft: dict[str, Any] | None) -> dict[str, Any]:
        """More of an answer, its draft beside it."""
        end = {"finish_reason": None, "logprobs": None, **({} if draft is None else {"dlm": {"draft": draft}})}
        return self._chunk(choice, self._text(text), end)

    def last(self, answer: Answer, text: str) -> dict[str, Any]:
        return self._chunk(answer.choice, self._text(text), self._end(answer))

    def cost(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The chunk of stream_options.include_usage."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": self.usage(answers)}

    def usage(self, answers: Sequence[Answer]) -> dict[str, int]:
        written = sum(answer.tokens for answer in answers)
        prompt = self.asked.prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}

    def _head(self, kind: str) -> dict[str, Any]:
        setting, name = self.asked.setting, "chatcmpl" if self.chat else "cmpl"
        decoding = {"decoder": self.asked.decoder, "steps": setting.steps, "gen_length": setting.gen_length}
        head = {"id": f"{name}-{self.id}", "object": kind if self.chat else "text_completion"}
        return {**head, "created": self.created, "model": self.model, "dlm": decoding}

    def _chunk(self, choice: int, text: dict[str, Any], end: dict[str, Any]) -> dict[str, Any]:
        usage = {"usage": None} if self.asked.include_usage else {}
        return {**self._head("chat.completion.chunk"), "choices": [{"index": choice, **text, **end}], **usage}

    def _text(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text}} if self.chat else {"text": text}

    def _end(self, answer: Answer) -> dict[str, Any]:
        cost = {"nfe": answer.nfe, "leftover_masks": answer.leftover_masks}
        return {"finish_reason": answer.reason, "logprobs": None, "dlm": cost}


def draft(lm: DiffusionLM, frame: Frame) -> dict[str, Any]:
    """A draft up to its first end: of each position the token's text (null for a mask), confidence and step."""
    shown = [*takewhile(lambda token: token not in lm.ends, frame.tokens)]
    mask_id, count = lm.denoiser.mask_id, len(shown)
    return {
        "step": frame.step + 1,
        "nfe": frame.nfe,
        "length": len(frame.tokens),
        "tokens": [None if token == mask_id else _piece(lm, token) for token in shown],
        "confidence": [round(each, 3) for each in frame.confidence[:count]],
        "steps": [each + 1 for each in frame.commit_step[:count]],
    }


def _piece(lm: DiffusionLM, token: int) -> str:
    return str(lm.tokenizer.decode([token], clean_up_tokenization_spaces=False))


def event(content: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(content).encode() + b"\n\n"
