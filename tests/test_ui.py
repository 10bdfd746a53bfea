"""`dlm-ui`: where it listens, and whom MLflow's checks of hosts and origins let in."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from dlm.pipeline import ui
from dlm.pipeline.database import tracking_uri
from dlm.pipeline.tracking import stage_run


def option(command: list[str], name: str) -> list[str]:
    return command[command.index(name) + 1].split(",") if name in command else []


def test_the_loopback_interface_needs_no_list() -> None:
    for host in ("127.0.0.1", "localhost", "::1"):
        command = ui.command(host, 5000)
        assert option(command, "--host") == [host]
        assert "--allowed-hosts" not in command and "--cors-allowed-origins" not in command


def test_one_address_is_let_in_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ui.command("Box.lan", 5001)
    assert {"box.lan", "box.lan:*", "localhost:*"} <= set(option(command, "--allowed-hosts"))
    assert "http://box.lan:5001" in option(command, "--cors-allowed-origins")
    assert "[fd00::2]:5001" in option(ui.command("fd00::2", 5001), "--allowed-hosts")
    monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", "runs.example.org")
    monkeypatch.setenv("MLFLOW_SERVER_CORS_ALLOWED_ORIGINS", "https://runs.example.org")
    command = ui.command("0.0.0.0", 5001)
    assert "--allowed-hosts" not in command and "--cors-allowed-origins" not in command


def test_all_interfaces_have_all_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Box")
    monkeypatch.setattr(socket, "getfqdn", lambda: "box.example.org")
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_: [(0, 0, 0, "", ("192.0.2.7", 0)), (0, 0, 0, "", ("fe80::1%a",))]
    )
    names = ui.names("0.0.0.0")
    assert names[:3] == ["box", "box.example.org", "192.0.2.7"] and {"localhost", "127.0.0.1"} <= set(names)
    assert not any("%" in name for name in names)


def test_the_page_that_is_told_shows_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of our experiment; where it has cells, the view with their parameters and scores."""
    for name in (*(name for name in os.environ if name.startswith(("MLFLOW_", "DVC_"))), "DLM_TRACKING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    assert ui.page() == "#/experiments/1/runs?workflowType=machine_learning"
    with stage_run("prepare", watch=False):
        pass
    found = MlflowClient(tracking_uri()).get_experiment_by_name("dlm")
    assert (
        ui.page() == f"#/experiments/{found.experiment_id}/runs?viewStateShareKey=cells&workflowType=machine_learning"
    )
    assert json.loads(found.tags["mlflow.sharedViewState.cells"])["name"] == "Cells"
    Path("mlflow.db").write_text("no database\n" * 1000)
    assert ui.page() == "#/experiments?workflowType=machine_learning"


def test_a_page_under_this_machines_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its host may read, and search for runs (a POST); another one's may not. The database is in an odd folder."""
    folder = tmp_path / "50%25 of?it#"
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "DVC_"))}
    server = subprocess.Popen(
        [sys.executable, "-m", "dlm.pipeline.ui", "--host", "0.0.0.0", "--port", str(port)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def answer(method: str, path: str, host: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        headers = {"Host": f"{host}:{port}", "Origin": f"http://{host}:{port}", "Content-Type": "application/json"}
        connection.request(method, path, json.dumps({"experiment_ids": ["0"]}) if method == "POST" else None, headers)
        status = connection.getresponse().status
        connection.close()
        return status

    try:
        assert server.stdout is not None
        name = ui.names("0.0.0.0")[0]
        assert f"http://{name}:{port}/#/experiments/1/runs?" in server.stdout.readline()
        assert "no password" in server.stdout.readline()
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if answer("GET", "/health", name) == 200:
                    break
            time.sleep(0.2)
        search = "/ajax-api/2.0/mlflow/runs/search"
        for host, expected in ((name, 200), ("localhost", 200), ("evil.example.org", 403)):
            assert (answer("GET", "/", host), answer("POST", search, host)) == (expected, expected)
        assert (folder / "mlflow.db").is_file()
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=30)
