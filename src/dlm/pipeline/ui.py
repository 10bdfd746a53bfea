"""`make ui`: the MLflow server on the pipeline's own database, lean, and on the loopback interface unless told."""

import argparse
import ipaddress
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress

from dlm.pipeline.start import run_script
from dlm.pipeline import view
from dlm.pipeline.database import artifacts_uri, connected, tracking_uri

LOOPBACK = ("127.0.0.1", "localhost", "::1")  # MLflow lets their pages in by itself
EPILOG = """
Another machine sees the page with --host 0.0.0.0 (all interfaces) or one of this machine's addresses. The server has no
password: whoever reaches it can read and change the runs. It answers to this machine's names and addresses; a name
that a proxy or a DNS server gives it: MLFLOW_SERVER_ALLOWED_HOSTS=NAME:PORT and
MLFLOW_SERVER_CORS_ALLOWED_ORIGINS=http://NAME:PORT in the environment. Without opening a port:
ssh -L 5000:127.0.0.1:5000 MACHINE, then http://127.0.0.1:5000 there.
"""


def command(host: str, port: int) -> list[str]:
    """The server's command line. MLflow refuses a page whose host it was not told, and what that page asks for."""
    called = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", host, "--port", str(port)]
    called += ["--backend-store-uri", tracking_uri(), "--default-artifact-root", artifacts_uri()]
    if host not in LOOPBACK:
        called_by = names(host)
        # Any port: a container's or a tunnel's is another one. MLflow's patterns read brackets their own way.
        hosts = [f"{name}:{port if '[' in name else '*'}" for name in called_by]
        if not os.environ.get("MLFLOW_SERVER_ALLOWED_HOSTS"):
            called += ["--allowed-hosts", ",".join([*called_by, *hosts])]
        if not os.environ.get("MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"):
            called += ["--cors-allowed-origins", ",".join([f"http://{name}:{port}" for name in called_by])]
    return called


def names(host: str) -> list[str]:
    """How a browser may call the server: by `host`, or where that is all interfaces, by any name of this machine."""
    loopback = ["localhost", "127.0.0.1", "[::1]"]
    if host not in ("0.0.0.0", "::"):
        return [_in_address(host), *loopback]
    interfaces = [socket.gethostname(), socket.getfqdn()]
    with suppress(OSError):
        interfaces += [str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None)]
    with suppress(ImportError, OSError):
        import psutil

        interfaces += [
            each.address for group in psutil.net_if_addrs().values() for each in group if _is_ip(each.address)
        ]
    # An address of one link alone (fe80::1%eth0) is none that browsers take.
    return list(dict.fromkeys([_in_address(name) for name in interfaces if "%" not in name] + loopback))


def _is_ip(text: str) -> bool:
    with suppress(ValueError):
        ipaddress.ip_address(text)
        return True
    return False


def page() -> str:
    """The part of the address behind the host: the cells of our experiment, or where there are none yet, its runs."""
    # Without the last part MLflow shows its view for chat applications.
    ending = "workflowType=machine_learning"
    try:
        with connected() as (client, experiment):
            tags = client.get_experiment(experiment).tags
    except Exception:  # the server will say why
        return f"#/experiments?{ending}"
    shown = f"{view.ADDRESS}&" if view.TAG in tags else ""
    return f"#/experiments/{experiment}/runs?{shown}{ending}"


def _in_address(host: str) -> str:
    """As it stands in an address: browsers write names small and IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host.lower()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG)
    parser.add_argument("--host", default="127.0.0.1", help="the interface to listen at (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=5000, help="its port (default: 5000)")
    arguments = parser.parse_args()
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    name = _in_address(arguments.host) if arguments.host not in ("0.0.0.0", "::") else names(arguments.host)[0]
    address = f"http://{name}:{arguments.port}/{page()}"
    print(f"MLflow: {address} (Ctrl-C stops it)", flush=True)
    if arguments.host not in LOOPBACK:
        print("There is no password: whoever reaches this address can read and change the runs.", flush=True)
    # A session of its own: Ctrl-C reaches us alone, and the server ends on SIGTERM, which it takes without tracebacks.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    server = subprocess.Popen(command(arguments.host, arguments.port), env=environment, start_new_session=True)
    try:
        status = server.wait()
    except KeyboardInterrupt:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
        status = 0
    raise SystemExit(status)


def cli() -> None:
    run_script(main)


if __name__ == "__main__":
    cli()
