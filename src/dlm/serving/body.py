"""The body of a request, checked: OpenAI's fields, and beside them a decoder and its options."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from dlm.decoding.arguments import checked_decoder, shown, valid_text
from dlm.decoding.lm import DiffusionLM
from dlm.decoding.options import DecoderOptions, in_blocks
from dlm.decoding.reading import check_known, check_lengths
from dlm.errors import UserError
from dlm.serving.conversation import prompt_ids
from dlm.serving.engine import Setting

TOKENS = 128  # of an answer, where a request does not say
MOST_CHOICES = 128  # answers to one request
# OpenAI's fields that say nothing here.
UNREAD = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"}
# And those that ask for what a diffusion decoder has not: what they may say nevertheless.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_p": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "best_of": (1,),
    "echo": (False,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}


class BadRequest(UserError):
    """What is wrong with a request.

    Attributes:
        field: of the body; None where it is not one field.
        code, status: OpenAI's word for it, and HTTP's.
    """

    def __init__(self, message: str, field: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.field, self.code, self.status = field, code, status


@dataclass(frozen=True)
class Defaults:
    """What a request gets that does not say: `decoder` None is the library's own choice."""

    decoder: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None
    max_tokens: int = TOKENS


@dataclass(frozen=True)
class Asked:
    """A checked request.

    Attributes:
        rows: token ids of every answer's prompt; the answers of one prompt stand together.
        prompt_tokens: of all prompts, each counted once.
        decoder: the name asked for, or the default's.
    """

    rows: list[list[int]]
    prompt_tokens: int
    setting: Setting
    decoder: str
    seed: int
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool
    drafts: bool


class Fields:
    """A body's fields; each is taken once, and what is left over belongs to the decoder."""

    def __init__(self, body: Any) -> None:
        if not isinstance(body, dict):
            raise BadRequest(f"the body must be a JSON object, got {shown(body)}")
        self.rest = dict(body)

    def take(self, name: str, default: Any, kind: type, least: int | None = None, most: int | None = None) -> Any:
        """A value of one kind and between two bounds; null is as if it were not there."""
        value = self.rest.pop(name, None)
        if value is None:
            return default
        word = {int: "a whole number", bool: "true or false", float: "a number", dict: "an object"}[kind]
        wanted: Any = int | float if kind is float else kind
        if not isinstance(value, wanted) or (kind is not bool and isinstance(value, bool)):
            raise BadRequest(f"{name} must be {word}, got {shown(value)}", name)
        if (least is not None and value < least) or (most is not None and value > most):
            bounds = f"at least {least}" if most is None else f"between {least} and {most}"
            raise BadRequest(f"{name} must be {bounds}, got {value}", name)
        return value

    def check_neutral(self) -> None:
        for name in UNREAD & self.rest.keys():
            del self.rest[name]
        for name in NEUTRAL.keys() & self.rest.keys():
            value = self.rest.pop(name)
            if value is not None and value not in NEUTRAL[name]:
                raise BadRequest(f"{name} has no meaning for a diffusion decoder here; leave it out", name)

    def stops(self) -> tuple[str, ...]:
        given = self.rest.pop("stop", None)
        stops = [given] if isinstance(given, str) else [] if given is None else given
        if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops) or len(stops) > 16:
            raise BadRequest(f"stop must be a text or up to 16 texts, none of them empty, got {shown(given)}", "stop")
        return tuple(valid_text(stop, "stop") for stop in stops)


def completion(lm: DiffusionLM, model: str, defaults: Defaults, body: Any) -> Asked:
    """A body of /v1/completions. Raises BadRequest."""
    fields = Fields(body)
    given = fields.rest.pop("prompt", None)
    several = isinstance(given, list) and not (given and all(type(i) is int for i in given))
    prompts = given if several else [given]
    if not prompts or given is None or not all(isinstance(prompt, str | list) for prompt in prompts):
        raise BadRequest(
            f"prompt must be a text, a list of token ids, or a list of either, got {shown(given)}", "prompt"
        )
    read = [partial(lm._ids, each, f"prompt {n}") for n, each in enumerate(prompts)]
    return _asked(lm, model, defaults, fields, read, "prompt", ("max_tokens",))


def chat(lm: DiffusionLM, model: str, defaults: Defaults, body: Any) -> Asked:
    """A body of /v1/chat/completions. Raises BadRequest."""
    fields = Fields(body)
    given = fields.rest.pop("messages", None)
    if not isinstance(given, list):
        raise BadRequest(f"messages must be a list, got {shown(given)}", "messages")
    turns = [_plain(message) for message in given]
    limits = ("max_completion_tokens", "max_tokens")
    return _asked(lm, model, defaults, fields, [lambda: prompt_ids(lm, turns)], "messages", limits)


def _plain(message: Any) -> Any:
    """A message whose content is a list of texts, as clients send it too, with one text; `developer` is the system."""
    if not isinstance(message, dict):
        return message
    plain = {key: value for key, value in message.items() if key in ("role", "content") or value is not None}
    parts = plain.get("content")
    if isinstance(parts, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in parts):
        plain["content"] = "".join(str(part.get("text", "")) for part in parts)
    if plain.get("role") == "developer":
        plain["role"] = "system"
    return plain


def _asked(
    lm: DiffusionLM,
    model: str,
    defaults: Defaults,
    fields: Fields,
    prompts: Sequence[Callable[[], list[int]]],
    source: str,
    limits: tuple[str, ...],
) -> Asked:
    name = fields.rest.pop("model", None)
    if name not in (None, model):
        raise BadRequest(f"the model {shown(name)} is not served here; {model!r} is", "model", "model_not_found", 404)
    fields.check_neutral()
    with _blamed(source):
        ids = [prompt() for prompt in prompts]
        check_lengths(ids, "prompt", lm.denoiser.max_length)
        check_known(ids, "prompt", lm.denoiser)
    length = next((n for each in limits if (n := fields.take(each, None, int, 1)) is not None), None)
    for each in limits:
        fields.rest.pop(each, None)
    if length is None:
        length = min(defaults.max_tokens, _room(lm, ids))
    with _blamed(limits[-1]):
        check_lengths(ids, "prompt", lm.denoiser.max_length, length)
    choices = fields.take("n", 1, int, 1, MOST_CHOICES)
    if choices * len(ids) > MOST_CHOICES:
        raise BadRequest(f"n times the prompts must be at most {MOST_CHOICES}, got {choices * len(ids)}", "n")
    stream = fields.take("stream", False, bool)
    usage = fields.take("stream_options", {}, dict).get("include_usage", False)
    seed, stops, drafts = fields.take("seed", 0, int), fields.stops(), fields.take("drafts", True, bool)
    steps = fields.take("steps", defaults.steps or length, int, 1)
    options, decoder = _decoder(defaults, fields)
    with _blamed("decoder"):
        options = in_blocks(options, lm.denoiser.block_size, decoder)
    with _blamed("steps"):
        options.check_lengths(length, steps, decoder)
    return Asked(
        rows=[row for row in ids for _ in range(choices)],
        prompt_tokens=sum(map(len, ids)),
        setting=Setting(options, steps, length),
        decoder=decoder,
        seed=seed,
        stops=stops,
        stream=stream,
        include_usage=bool(usage),
        drafts=drafts,
    )


def _room(lm: DiffusionLM, ids: list[list[int]]) -> int:
    """Tokens that an answer may have, in whole blocks where the model has some; one at least, for the check to refuse a
    prompt that leaves none."""
    limit, size = lm.denoiser.max_length, max(lm.denoiser.block_size, 1)
    return TOKENS**2 if limit is None else max((limit - max(map(len, ids))) // size * size, 1)


def _decoder(defaults: Defaults, fields: Fields) -> tuple[DecoderOptions, str]:
    """What is left of the body; the server's own options where it names no decoder."""
    name = fields.rest.pop("decoder", None)
    temperature = fields.take("temperature", None, float, 0)
    given = dict(fields.rest)
    if name is None:
        name, given = defaults.decoder, {**defaults.options, **given}
    elif not isinstance(name, str):
        raise BadRequest(f"decoder must be a decoder's name, got {shown(name)}", "decoder")
    with _blamed("decoder"):
        options, where = checked_decoder(name, given)
        if temperature is None:
            return options, where
        if "temperature" not in type(options).__dataclass_fields__:
            raise BadRequest(
                f"temperature must be left out: {where} has none here; low_confidence has, and what is built over it",
                "temperature",
            )
        return checked_decoder(name, {**given, "temperature": temperature})


class _blamed:
    """A UserError from the library as a BadRequest of the field it names, else of this one."""

    def __init__(self, field: str) -> None:
        self.field = field

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UserError) and not isinstance(error, BadRequest):
            named = re.match(r"\w+\.(\w+) ", str(error))  # conv.kernel_size must be odd ...
            raise BadRequest(str(error), named[1] if named else self.field) from None
