"""Single requests for a short reply, their outcomes, and the cost of all."""

import math
import time
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any

import openai
from openai.types.chat import ChatCompletion

from dlm.evaluation.judges.replies import Reply, without_reasoning

TOP = 20  # log-probabilities asked for, the most that the API gives
ROOM = 4096  # tokens of a reply that may reason first
PATIENCE = 10  # times the seconds that one token is waited for, for a reply of that size
REASONING = ("reasoning", "reasoning_content")  # what servers call it that do not leave it in the text
REFUSES = (400, 403, 422)  # how servers refuse a parameter
LONGEST_ASKED = 300.0  # seconds; a server that wants more patience than this is given up on


@dataclass
class Usage:
    """What judging cost.

    Attributes:
        requests: sent, retries among them.
        cache_hits: prompts answered from disk.
        failures: prompts that ended without a verdict.
        prompt_tokens, completion_tokens: as the server counts them.
    """

    requests: int = 0
    cache_hits: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Refusal:
    """Why a request brought no reply.

    Attributes:
        reason: in a few words, without the key.
        again: the same request may do better later.
        wait: seconds that the server asks to wait first.
        status: of the HTTP response, None where there was none.
    """

    reason: str
    again: bool = False
    wait: float | None = None
    status: int | None = None


@dataclass(frozen=True)
class Dialect:
    """Which parameters an endpoint takes: OpenAI's own models and other servers refuse one or the other.

    Attributes:
        limit: its name for the largest number of tokens.
        temperature, logprobs: whether these are sent.
    """

    limit: str = "max_tokens"
    temperature: bool = True
    logprobs: bool = True

    def changed(self, said: str) -> dict[str, Any]:
        """What to send otherwise after a refusal in these words; nothing where they name no parameter sent."""
        if self.limit == "max_tokens" and self.limit in said:
            return {"limit": "max_completion_tokens"}
        return next(({name: False} for name in ("temperature", "logprobs") if name in said and getattr(self, name)), {})


NO_COMPLETION = Refusal("a reply that is no chat completion", again=True)


@dataclass(frozen=True)
class Success:
    """A reply and the tokens it cost, 0 where the server does not count them."""

    reply: Reply
    prompt_tokens: int
    completion_tokens: int


class Client:
    """Sends single requests; retries are the caller's business, so that every request sent is counted."""

    def __init__(self, base_url: str, model: str, key: str, timeout: float) -> None:
        self._model, self._key, self._timeout = model, key, timeout
        self._dialect = Dialect()
        self._client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=0)

    def send(self, prompt: str, temperature: float, room: bool) -> Success | Refusal:
        """Ask for one token, or with `room` for a reply that may reason first, and for the log-probabilities.

        What the endpoint refuses by its name is left out from then on, or called by the other name.
        """
        sent, tokens = self._dialect, ROOM if room else 1
        timeout = self._timeout * PATIENCE if room else self._timeout
        try:
            completion = self._client.chat.completions.create(
                model=self._model,
                messages=[{"role": "user", "content": prompt}],
                max_tokens=tokens if sent.limit == "max_tokens" else openai.omit,
                max_completion_tokens=tokens if sent.limit == "max_completion_tokens" else openai.omit,
                temperature=temperature if sent.temperature else openai.omit,
                logprobs=True if sent.logprobs else openai.omit,
                top_logprobs=TOP if sent.logprobs else openai.omit,
                timeout=timeout,
            )
        except openai.APIStatusError as error:
            return self._refused(error, sent, room)
        except openai.APITimeoutError:
            return Refusal(f"no reply within {timeout:g} s", again=True)
        except openai.APIConnectionError as error:
            return Refusal(f"no connection: {type(error.__cause__ or error).__name__}", again=True)
        except (openai.OpenAIError, ValueError):
            return NO_COMPLETION
        try:
            return _success(completion)
        except (ValueError, TypeError, AttributeError, LookupError):
            # The client does not check the body: missing or odd parts show here.
            return NO_COMPLETION

    def _refused(self, error: openai.APIStatusError, sent: Dialect, room: bool) -> Success | Refusal:
        status = error.status_code
        # A server may quote the key it was sent.
        said = " ".join(_words(error).replace(self._key, "***").split())
        reason = f"status {status}: {said[:200]}"
        if not room and "output limit was reached" in said:
            return Success(Reply(""), 0, 0)  # one token was not enough to begin with
        if status in REFUSES and (change := sent.changed(said)):
            self._dialect = replace(self._dialect, **change)
            return Refusal(reason, again=True, wait=0.0, status=status)
        wait = retry_after(error.response.headers.get("retry-after"))
        again = status in (408, 409, 429) or status >= 500
        patient = wait is None or wait <= LONGEST_ASKED
        return Refusal(reason, again=again and patient, wait=wait, status=status)


def _words(error: openai.APIStatusError) -> str:
    """What the server says: OpenAI's message, or the body of a server with a layout of its own."""
    message = error.body.get("message") if isinstance(error.body, dict) else None
    return message if isinstance(message, str) else error.response.text


def _success(completion: ChatCompletion) -> Success:
    choice = completion.choices[0]
    content = choice.message.content or ""
    aside = choice.message.model_extra or {}
    # The first token of reasoning is no verdict; some servers give the reasoning apart, and then no text if it is cut.
    reasoned = not content or without_reasoning(content) != content or any(map(aside.get, REASONING))
    tokens = (choice.logprobs.content if choice.logprobs and not reasoned else None) or []
    top = tuple((str(entry.token), float(entry.logprob)) for entry in (tokens[0].top_logprobs or [])) if tokens else ()
    usage = completion.usage
    return Success(
        Reply(content, top),
        usage.prompt_tokens or 0 if usage else 0,
        usage.completion_tokens or 0 if usage else 0,
    )


def retry_after(value: str | None) -> float | None:
    """Seconds, from a number or a date; None for nothing usable."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None
