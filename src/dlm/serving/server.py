"""The server, until it is stopped."""

import socket

import uvicorn

from dlm.decoding.lm import DiffusionLM
from dlm.serving.address import LOOPBACK
from dlm.serving.app import make_app
from dlm.serving.body import Defaults
from dlm.serving.engine import Engine

NAMES = ("127.0.0.1", "localhost", "[::1]")  # of the loopback interface, as browsers write them
PATIENCE = 3  # seconds that open responses have when the server is stopped


def serve(
    lm: DiffusionLM,
    model: str,
    defaults: Defaults,
    *,
    bound: socket.socket,
    host: str,
    key: str | None,
    batch_size: int,
    capacity: int,
) -> None:
    """Serve until Ctrl-C or SIGTERM. Only the loopback interface has names that are known before."""
    hosts = NAMES if host in LOOPBACK else None
    app = make_app(Engine(lm, batch_size, capacity), model, defaults, key=key, hosts=hosts)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=PATIENCE,
    )
    uvicorn.Server(config).run(sockets=[bound])
