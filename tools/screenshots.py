"""The pictures of docs/tour.md, of this repository's own run, by Chromium: python tools/screenshots.py

Writes report.png and mlflow-cells.png into --out, from results/report.html and mlflow.db, which `make repro` leaves.
"""

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from dlm.pipeline.start import run_script
from dlm.errors import UserError

ROOT = Path(__file__).parents[1]
SECONDS = 60  # for MLflow to answer
ASSISTANT = 1448  # where MLflow's panel begins that no picture needs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/images", help="the folder (default: docs/images)")
    parser.add_argument("--port", type=int, default=5057, help="of the MLflow server that is started (default: 5057)")
    arguments = parser.parse_args()
    chromium = find_chromium()
    if chromium is None:
        raise UserError("no Chromium; make browser installs it")
    for made in (ROOT / "results/report.html", ROOT / "mlflow.db"):
        if not made.is_file():
            raise UserError(f"{made}: no such file; run `make repro` first")
    arguments.out.mkdir(parents=True, exist_ok=True)
    take(chromium, (ROOT / "results/report.html").as_uri(), arguments.out / "report.png", 1200, 1250)
    with server(arguments.port) as address:
        take(chromium, address, arguments.out / "mlflow-cells.png", 1950, 760, visible=ASSISTANT)


def find_chromium() -> str | None:
    """The browser's path, if there is one."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@contextmanager
def server(port: int) -> Iterator[str]:
    """dlm-ui, up and answering; its address."""
    command = [sys.executable, "-m", "dlm.pipeline.ui", "--port", str(port)]
    started = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert started.stdout is not None
        address = started.stdout.readline().split()[1]
        deadline = time.monotonic() + SECONDS
        while not answers(f"http://127.0.0.1:{port}/health"):
            if started.poll() is not None or time.monotonic() > deadline:
                raise UserError(f"MLflow does not answer at port {port}; give another --port")
            time.sleep(0.5)
        yield address
    finally:
        started.send_signal(signal.SIGTERM)
        started.wait()


def answers(address: str) -> bool:
    try:
        return bool(urllib.request.urlopen(address, timeout=2).status == 200)
    except (urllib.error.URLError, OSError):
        return False


def take(chromium: str, address: str, picture: Path, width: int, height: int, visible: int | None = None) -> None:
    """What a window of this size shows, as far as `visible` from the left, in 256 colours."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=20000"]
    with tempfile.TemporaryDirectory() as profile:
        size = f"--window-size={width},{height}"
        command = [chromium, *flags, f"--user-data-dir={profile}", size, f"--screenshot={picture}", address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    if done.returncode != 0 or not picture.is_file():
        raise UserError(f"Chromium made no picture of {address}: {' '.join(done.stderr.split())[-300:]}")
    with Image.open(picture) as shown:
        shown.crop((0, 0, visible or width, height)).quantize(256).save(picture, optimize=True)
    print(f"{picture}: {picture.stat().st_size // 1000} kB")


if __name__ == "__main__":
    run_script(main)
