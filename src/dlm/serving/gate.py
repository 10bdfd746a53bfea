"""Who is let in: the hosts the server goes by, and where a key is set, those who have it."""

import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dlm.serving.replies import error

HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}


class Gate:
    """An application behind its checks.

    A page of another site can have its own name point here (DNS rebinding); its requests carry that name as their host.
    The key guards /v1; the page and /health hold nothing that it protects.
    """

    def __init__(self, app: ASGIApp, key: str | None, hosts: Sequence[str] | None) -> None:
        self._app, self._key, self._hosts = app, key, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await (self._refused(scope) or self._app)(scope, receive, guarded)

    def _refused(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        if self._hosts is not None and _name(headers.get("host", "")) not in self._hosts:
            return JSONResponse(error("this server does not go by that host name", 403), 403)
        if self._key is None or not scope["path"].startswith("/v1"):
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._key.encode()):
            return None
        problem = error("no API key, or a wrong one; send Authorization: Bearer KEY", 401, code="invalid_api_key")
        return JSONResponse(problem, 401, {"WWW-Authenticate": "Bearer"})


def _name(host: str) -> str:
    """A Host header without its port."""
    name, _, port = host.rpartition(":")
    return (name if port.isdigit() else host).lower()
