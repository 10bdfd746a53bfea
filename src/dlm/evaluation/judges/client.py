"""One request for one token, what came of it, and what all of them cost."""

import math
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import openai
from openai.types.chat import ChatCompletion

from dlm.evaluation.judges.replies import Reply

TOP = 20  # log-probabilities asked for, the most that the API gives
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
    """Why a request brought nothing.

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
        self._logprobs = True
        self._client = openai.OpenAI(base_url=base_url, api_key=key, timeout=timeout, max_retries=0)

    def send(self, prompt: str, temperature: float) -> Success | Refusal:
        """Ask for one token with its log-probabilities; without them from the first time on that they are refused."""
        logprobs = self._logprobs
        try:
            completion = self._client.chat.completions.create(
                model=self._model,
                messages=[{"role": "user", "content": prompt}],
                max_tokens=1,
                temperature=temperature,
                logprobs=True if logprobs else openai.omit,
                top_logprobs=TOP if logprobs else openai.omit,
            )
        except openai.APIStatusError as error:
            return self._refused(error, logprobs)
        except openai.APITimeoutError:
            return Refusal(f"no reply within {self._timeout:g} s", again=True)
        except openai.APIConnectionError as error:
            return Refusal(f"no connection: {type(error.__cause__ or error).__name__}", again=True)
        except (openai.OpenAIError, ValueError):
            return NO_COMPLETION
        try:
            return _success(completion)
        except (ValueError, TypeError, AttributeError, LookupError):
            # The client does not check the body: missing or odd parts show here.
            return NO_COMPLETION

    def _refused(self, error: openai.APIStatusError, logprobs: bool) -> Refusal:
        status = error.status_code
        wait = retry_after(error.response.headers.get("retry-after"))
        # A server may quote the key it was sent.
        said = " ".join(error.message.replace(self._key, "***").split())[:200]
        again = status in (408, 409, 429) or status >= 500
        if status == 400 and logprobs and "logprobs" in said:
            self._logprobs, again = False, True
        patient = wait is None or wait <= LONGEST_ASKED
        return Refusal(f"status {status}: {said}", again=again and patient, wait=wait, status=status)


def _success(completion: ChatCompletion) -> Success:
    choice = completion.choices[0]
    tokens = (choice.logprobs.content if choice.logprobs else None) or []
    top = tuple((str(entry.token), float(entry.logprob)) for entry in (tokens[0].top_logprobs or [])) if tokens else ()
    usage = completion.usage
    return Success(
        Reply(choice.message.content or "", top),
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
