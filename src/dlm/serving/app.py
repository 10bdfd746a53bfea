"""The ASGI application: /v1/models, /v1/completions, /v1/chat/completions, /health, and the page at /."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from dlm.decoding.lm import DiffusionLM
from dlm.decoding.options import DECODERS
from dlm.serving import body, replies
from dlm.serving.body import Asked, BadRequest, Defaults
from dlm.serving.conversation import form
from dlm.serving.engine import Answer, Engine, Event, Failure, Full, Job
from dlm.serving.gate import Gate
from dlm.serving.page import page

LARGEST = 4 * 2**20  # bytes of a body


class Gone(Exception):
    """The client has left before its answer."""


class Events:
    """A job in the engine, and what comes of it, for a coroutine. Whoever made it must `leave` in the end."""

    def __init__(self, engine: Engine, asked: Asked) -> None:
        self._engine, self._queue, loop = engine, asyncio.Queue[Event](), asyncio.get_running_loop()

        def put(event: Event) -> None:
            with suppress(RuntimeError):  # the server has stopped
                loop.call_soon_threadsafe(self._queue.put_nowait, event)

        watched = asked.stream
        self.job = Job(asked.setting, asked.rows, put, asked.seed, asked.stops, watched, watched and asked.drafts)

        try:
            engine.submit(self.job)
        except Full:
            raise BadRequest("too many requests wait; try again later", None, "overloaded", 503) from None

    def leave(self) -> None:
        self._engine.cancel(self.job)

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Up to the last row's answer, or a failure."""
        left = len(self.job.prompts)
        while left:
            event = await self._queue.get()
            left = 0 if isinstance(event, Failure) else left - isinstance(event, Answer)
            yield event


class Stream(StreamingResponse):
    """Events of a job that ends with the response, however that ends."""

    def __init__(self, events: Events, content: AsyncIterator[bytes]) -> None:
        super().__init__(content, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._events.leave()


class Service:
    """The endpoints, over one engine."""

    def __init__(self, engine: Engine, model: str, defaults: Defaults) -> None:
        self.engine, self.lm, self.model, self.defaults = engine, engine.lm, model, defaults

    async def completions(self, request: Request) -> Response:
        return await self._answer(request, body.completion, chat=False)

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, body.chat, chat=True)

    async def models(self, _: Request) -> Response:
        """The one model; `dlm` says what the page offers."""
        lm, defaults = self.lm, self.defaults
        about = {
            "conversations": form(lm),
            "positions": lm.denoiser.max_length,
            "max_tokens": defaults.max_tokens,
            "decoders": list(DECODERS),
        }
        data = [{"id": self.model, "object": "model", "created": 0, "owned_by": "dlm", "dlm": about}]
        return JSONResponse({"object": "list", "data": data})

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok", **asdict(self.engine.load())})

    async def _answer(
        self, request: Request, read: Callable[[DiffusionLM, str, Defaults, Any], Asked], *, chat: bool
    ) -> Response:
        try:
            given = await _json(request)
            # Tokenizing a long prompt would hold the others up.
            asked = await asyncio.to_thread(read, self.lm, self.model, self.defaults, given)
            events = Events(self.engine, asked)
        except BadRequest as bad:
            return JSONResponse(replies.refusal(bad), bad.status)
        form = replies.Form(chat, self.model, asked)
        if asked.stream:
            return Stream(events, self._stream(events, form))
        try:
            return await _while_connected(request, _whole(events, form))
        except Gone:
            return Response(status_code=499)  # nobody reads it
        finally:
            events.leave()

    async def _stream(self, events: Events, form: replies.Form) -> AsyncIterator[bytes]:
        """Only ever more text: what is certain of an answer, from left to right; the draft beside it."""
        sent, answers = [""] * len(form.asked.rows), list[Answer]()
        if form.chat:
            for choice in range(len(sent)):
                yield replies.event(form.opening(choice))
        async for event in events:
            if isinstance(event, Failure):
                yield replies.event(replies.error(event.message, event.status))
                return
            more = event.text[len(sent[event.choice]) :]
            sent[event.choice] += more
            if isinstance(event, Answer):
                answers.append(event)
                yield replies.event(form.last(event, more))
            elif more or event.frame:
                draft = None if event.frame is None else replies.draft(self.lm, event.frame)
                yield replies.event(form.piece(event.choice, more, draft))
        if form.asked.include_usage:
            yield replies.event(form.cost(answers))
        yield b"data: [DONE]\n\n"


async def _whole(events: Events, form: replies.Form) -> Response:
    answers = []
    async for event in events:
        if isinstance(event, Failure):
            return JSONResponse(replies.error(event.message, event.status), event.status)
        if isinstance(event, Answer):
            answers.append(event)
    return JSONResponse(form.whole(sorted(answers, key=lambda answer: answer.choice)))


async def _while_connected(request: Request, work: Awaitable[Response]) -> Response:
    """The response of `work`, unless the client goes away first. Raises Gone."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Gone
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _json(request: Request) -> Any:
    """The body. A page of another origin cannot send JSON without asking first, and nobody here says yes."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise BadRequest("the body must be JSON, sent with Content-Type: application/json", status=415)
    raw = bytearray()
    try:
        async for part in request.stream():
            raw += part
            if len(raw) > LARGEST:
                raise BadRequest(f"the body must have at most {LARGEST} bytes", status=413)
    except ClientDisconnect:
        raise BadRequest("the body ends too early") from None
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise BadRequest("the body is not valid JSON") from None


async def _http_error(_: Request, error: Exception) -> Response:
    """Starlette's own (no such path, another method), as OpenAI's object."""
    assert isinstance(error, HTTPException)
    return JSONResponse(replies.error(error.detail, error.status_code), error.status_code, error.headers)


def make_app(
    engine: Engine, model: str, defaults: Defaults, *, key: str | None = None, hosts: Sequence[str] | None = None
) -> Gate:
    """The application. The engine runs while it does.

    Args:
        model: the name under which the model is served.
        key: what requests to /v1 must carry as `Authorization: Bearer KEY`; None lets all in.
        hosts: names by which the server may be called; None for any.
    """
    service = Service(engine, model, defaults)
    text, policy = page()

    async def shown(_: Request) -> Response:
        return Response(text, media_type="text/html", headers={"Content-Security-Policy": policy})

    @asynccontextmanager
    async def running(_: Starlette) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.stop)

    routes = [
        Route("/", shown, methods=["GET"]),
        Route("/health", service.health, methods=["GET"]),
        Route("/v1/models", service.models, methods=["GET"]),
        Route("/v1/completions", service.completions, methods=["POST"]),
        Route("/v1/chat/completions", service.chat, methods=["POST"]),
    ]
    return Gate(Starlette(routes=routes, lifespan=running, exception_handlers={HTTPException: _http_error}), key, hosts)
