"""`make ui`: the MLflow server on the pipeline's own database, lean and on the loopback interface only."""

import argparse
import os
import signal
import subprocess
import sys

from dlm.errors import run_script
from dlm.tracking import tracking_root, tracking_uri


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=5000, help="port on 127.0.0.1 (default: 5000)")
    arguments = parser.parse_args()
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    # Without the last part MLflow shows its view for chat applications.
    address = f"http://127.0.0.1:{arguments.port}/#/experiments?workflowType=machine_learning"
    print(f"MLflow: {address} (Ctrl-C stops it)", flush=True)
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"]
    command += ["--port", str(arguments.port), "--backend-store-uri", tracking_uri()]
    command += ["--default-artifact-root", str(tracking_root() / "mlartifacts")]
    # A session of its own: Ctrl-C reaches us alone, and the server ends on SIGTERM, which it takes without tracebacks.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    server = subprocess.Popen(command, env=environment, start_new_session=True)
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
