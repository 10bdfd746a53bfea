"""MLflow's system metrics: what processor, memory, disk, network and GPUs do while a stage is at work."""

import importlib.util
import os
import threading
import time
from collections.abc import Callable
from typing import Any

SECONDS = 10.0  # MLflow's own interval
BRIEF = 1.0  # a stage that ends before its first sample has one at its end, if it took so long
PATIENCE = 20.0  # a server that does not answer holds a sample longer than MLflow's timeouts, but no stage for ever


def watch(log: Callable[[dict[str, float], int], None], tell: Callable[[Exception], None]) -> Callable[[], None]:
    """Call `log(values, step)` every MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL seconds, in a thread.

    Without psutil, or with MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false, no thread is started. The first failure goes to
    `tell` and ends it.

    Returns:
        What ends the thread: when it returns, nothing is logged any more.
    """
    wanted = os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "").lower() not in ("false", "0")
    if not wanted or importlib.util.find_spec("psutil") is None:
        return lambda: None
    ended = threading.Event()

    def work() -> None:
        try:
            seconds = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL") or SECONDS)
            monitors, step = _monitors(), 0
            _sample(monitors)  # shares of a processor's time count from here
            began = time.monotonic()
            while not ended.wait(seconds):
                log(_sample(monitors), step)
                step += 1
            if step == 0 and time.monotonic() - began >= BRIEF:
                log(_sample(monitors), step)
        except Exception as error:
            tell(error)

    thread = threading.Thread(target=work, daemon=True, name="system metrics")
    thread.start()

    def end() -> None:
        ended.set()
        thread.join(PATIENCE)

    return end


def _sample(monitors: list[Any]) -> dict[str, float]:
    values: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        values |= monitor.aggregate_metrics()
        monitor.clear_metrics()
    return values


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics import cpu_monitor, disk_monitor, gpu_monitor, network_monitor

    monitors = [cpu_monitor.CPUMonitor(), disk_monitor.DiskMonitor(), network_monitor.NetworkMonitor()]
    try:
        return [*monitors, gpu_monitor.GPUMonitor()]
    except Exception:  # no GPU, or no nvidia-ml-py
        return monitors
