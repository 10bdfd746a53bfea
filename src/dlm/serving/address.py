"""Where a server listens, and under which key. No torch here: both are known before the model is loaded."""

import socket
from collections.abc import Mapping

from dlm.errors import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def api_key(environment: Mapping[str, str], variable: str, host: str, *, without: bool) -> str | None:
    """The key that the environment holds; None where there is none.

    Raises:
        UserError: an empty or unsendable one, or none where others than this machine reach the server.
    """
    key = environment.get(variable)
    if key is not None and (not key.isascii() or not key.isprintable() or not key.strip() or key != key.strip()):
        raise UserError(
            f"{variable}: must be plain ASCII without space around it, and not empty; set another, or unset it"
        )
    if key is None and host not in LOOPBACK and not without:
        raise UserError(
            f"--host {host}: others than this machine would reach the server; set a key in {variable}, or say --no-key"
        )
    return key


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises UserError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot listen at {host} port {port} ({reason}); give another --host or --port") from None


def address(host: str, bound: socket.socket) -> str:
    """Where a browser of this machine finds the server."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{name}]' if ':' in name else name}:{bound.getsockname()[1]}"
