"""`python`, `dvc`, `dlm` and `pytest` that start at once: a process has imported what takes seconds and forks for each.

What runs is a process of its own all the same: its arguments, environment, folder, streams and status are those of the
command, and what it starts is started by it. Whatever else Python is asked for (`-c`), it starts as always.
"""

import array
import atexit
import contextlib
import ctypes
import functools
import importlib
import json
import os
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any, NoReturn

PROGRAMS = ("python", "dvc", "dlm", "pytest")
# What stages, DVC and tests import from elsewhere. None of our own modules: they look at the clock and at arguments.
HEAVY = """
accelerate alembic.command datasets gguf jaxtyping jinja2 jsonschema matplotlib.backends.backend_agg matplotlib.figure
mlflow mlflow.data mlflow.entities mlflow.store.db.utils mlflow.store.tracking.sqlalchemy_store
mlflow.store.tracking.sqlalchemy_workspace_store mlflow.system_metrics.metrics.cpu_monitor
mlflow.system_metrics.metrics.disk_monitor mlflow.system_metrics.metrics.gpu_monitor
mlflow.system_metrics.metrics.network_monitor mlflow.tracking nltk.lm.models nltk.lm.smoothing openai peft
pyarrow.parquet rich.console rich.live rich.table ruamel.yaml scipy.stats sklearn.cluster sklearn.decomposition
sklearn.manifold sklearn.metrics sqlalchemy.dialects.sqlite tokenizers torch torch.distributed torch.distributed.tensor
torch._dynamo transformers.generation.utils transformers.modeling_layers transformers.models.auto.modeling_auto
transformers.models.auto.tokenization_auto transformers.models.gpt2.tokenization_gpt2
transformers.models.llama.modeling_llama transformers.models.qwen2.tokenization_qwen2
transformers.models.qwen2.modeling_qwen2 transformers.models.gpt_neox.modeling_gpt_neox
transformers.tokenization_utils_tokenizers transformers.trainer celery configobj dulwich.ignore dulwich.porcelain
dvc._debug dvc.analytics dvc.cachemgr dvc.cli dvc.cli.parser dvc.compare dvc.data_cloud dvc.dirs dvc.lock dvc.render
dvc.repo dvc.repo.artifacts dvc.repo.datasets dvc.repo.experiments.queue.tempdir dvc.repo.experiments.queue.workspace
dvc.repo.metrics dvc.repo.params dvc.repo.plots dvc.repo.reproduce dvc.repo.stage dvc.repo.status dvc.rwlock dvc.scm
dvc.stage.cache dvc.stage.run dvc.utils.strictyaml dvc_data.hashfile.db.local dvc_data.index dvc_render flufl.lock
fsspec.implementations.memory hydra networkx platformdirs.unix rich.json scmrepo.git sqltrie zc.lockfile
"""


class Warm:
    """A folder of programs to put before all others in PATH, and the process behind them, which ends with this one."""

    def __init__(self) -> None:
        self.bin = Path(tempfile.mkdtemp(prefix="warm-"))
        address = str(self.bin / "socket")
        for name in PROGRAMS:
            words = shlex.join([sys.executable, "-IS", __file__, address, name])
            (self.bin / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
            (self.bin / name).chmod(0o755)
        own = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "DLM_", "MLFLOW_", "PY"))}
        self.server = subprocess.Popen(
            [sys.executable, __file__, address],
            env={**own, "MLFLOW_DISABLE_TELEMETRY": "true", "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
        )
        assert self.server.stdout is not None and self.server.stdout.readline() == b"ready\n"
        atexit.register(self.stop)

    def stop(self) -> None:
        self.server.terminate()
        self.server.wait()
        shutil.rmtree(self.bin, ignore_errors=True)


@functools.cache
def warm() -> Warm:
    """The one of this process, started when it is first needed."""
    return Warm()


# --- The program ------------------------------------------------------------------------------------------------------


def call(address: str, name: str, arguments: list[str]) -> int:
    """Have the command run with this process's streams; its exit status."""
    if name == "python" and not (arguments and (arguments[0] == "-m" or arguments[0].endswith(".py"))):
        os.execv(sys.executable, [sys.executable, *arguments])
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        asked = json.dumps([name, arguments, str(Path.cwd()), dict(os.environ)]).encode()
        server.sendmsg([len(asked).to_bytes(8)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (0, 1, 2)))])
        server.sendall(asked)
        answers = server.makefile("rb")
        child = int(answers.readline())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: os.kill(child, number))
        status = int(answers.readline())
    if status < 0:  # as the child ended, so does this
        if status != -signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


# --- The process behind it --------------------------------------------------------------------------------------------


class Server:
    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(address)
        self.socket.listen(64)
        self.waiting: dict[int, socket.socket] = {}

    def tell_ends(self, *_: Any) -> None:
        """Of every child that has ended: its status, to who asked for it."""
        with contextlib.suppress(ChildProcessError):
            while found := os.waitpid(-1, os.WNOHANG):
                if found[0] == 0:
                    break
                with contextlib.suppress(OSError), self.waiting.pop(found[0]) as client:
                    client.sendall(b"%d\n" % os.waitstatus_to_exitcode(found[1]))

    def serve(self) -> list[Any]:
        """What a child has to run; the server itself never returns."""
        signal.signal(signal.SIGCHLD, self.tell_ends)
        while True:
            client, _ = self.socket.accept()
            size, rights, _, _ = client.recvmsg(8, socket.CMSG_SPACE(12))
            streams = array.array("i", rights[0][2])
            asked = json.loads(client.makefile("rb").read(int.from_bytes(size)))
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
            child = os.fork()
            if not child:
                for place, stream in enumerate(streams):
                    os.dup2(stream, place)
                for other in (self.socket, client, *self.waiting.values()):
                    other.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD] if not child else [])
            for stream in streams:
                os.close(stream)
            if not child:
                return asked
            self.waiting[child] = client
            client.sendall(b"%d\n" % child)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])


def run(name: str, arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    """The command, in this process, as if it had been started with nothing imported."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[1:1] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = [name, *arguments]
    if name == "dvc":
        os.environ["WARM_DVC"] = str(os.getpid())
        from dvc.cli import main

        sys.exit(main())
    if name == "pytest":
        import pytest

        sys.exit(pytest.console_main())
    below_dvc()
    if name == "dlm":
        from dlm.cli import cli

        cli()
    elif arguments[0] == "-m":
        sys.path[0] = ""
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(arguments[0]).resolve().parent)
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def below_dvc() -> None:
    """A stage looks for DVC among its parents, where here is none."""
    import psutil

    from dlm.pipeline import processes

    found = None
    if "DVC_STAGE" in os.environ:
        with contextlib.suppress(KeyError, psutil.Error):
            found = psutil.Process(int(os.environ["WARM_DVC"]))
    processes.dvc = lambda: found


def end_with_parent() -> None:
    """SIGTERM for this process once the tests' has gone, however it went; Linux alone can do so."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def run_to_the_end(*asked: Any) -> NoReturn:
    """`run`, and Python's way out but for taking every module apart, which takes longer than most commands."""
    try:
        run(*asked)
        status: Any = 0
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


def main() -> None:
    if len(sys.argv) > 2:
        sys.exit(call(sys.argv[1], sys.argv[2], sys.argv[3:]))
    sys.path[0] = str(Path(sys.executable).parent)
    server = Server(sys.argv[1])
    end_with_parent()
    for name in HEAVY.split():
        importlib.import_module(name)
    importlib.import_module("gc").freeze()
    print("ready", flush=True)
    run_to_the_end(*server.serve())


if __name__ == "__main__":
    main()
