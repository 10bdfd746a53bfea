"""A page in Chromium, driven through its debugging pipe: scripts of ours run beside the page's policy, not under it."""

import base64
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe"),
)
AT_3_AND_4 = """
import fcntl, os, sys
for place, given in enumerate([fcntl.fcntl(int(given), fcntl.F_DUPFD, 10) for given in sys.argv[1:3]], start=3):
    os.dup2(given, place)
os.execv(sys.argv[3], sys.argv[3:])
"""
TRIES = 600  # of a tenth of a second


class Browser:
    """One Chromium, and one page at a time in it. Commands go in at descriptor 3 and answers come out at 4."""

    def __init__(self, chromium: str) -> None:
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        (inside, self._commands), (self._answers, outside) = os.pipe(), os.pipe()
        command = [sys.executable, "-c", AT_3_AND_4, str(inside), str(outside), chromium, *FLAGS]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={self._profile.name}", "about:blank"],
            pass_fds=(inside, outside),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(inside)
        os.close(outside)
        self._numbers, self._rest, self._session = itertools.count(1), b"", ""
        self.logged: list[str] = []

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._commands)
        os.close(self._answers)
        self._profile.cleanup()

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._answers, 2**16)
            assert more, "Chromium has ended"
            self._rest += more
        raw, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        if message.get("method") == "Log.entryAdded":
            self.logged.append(message["params"]["entry"]["text"])
        if message.get("method") == "Runtime.exceptionThrown":
            self.logged.append(str(message["params"]["exceptionDetails"]))
        return message

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        session = {"sessionId": self._session} if self._session else {}
        os.write(
            self._commands,
            json.dumps({"id": number, "method": method, "params": parameters, **session}).encode() + b"\0",
        )
        while (message := self._message()).get("id") != number:
            pass
        assert "error" not in message, message
        found: dict[str, Any] = message["result"]
        return found

    def open(self, address: str, width: int = 1200, height: int = 900) -> None:
        """A new page."""
        self._session, self.logged = "", []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Page.navigate", url=address)
        self.until("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of an expression; a promise's, when it is there."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until an expression is true."""
        for _ in range(TRIES):
            if self.run(f"Boolean({condition})"):
                return
            self.run("new Promise(done => setTimeout(done, 100))")
        raise AssertionError(f"never: {condition}: {self.run('document.body.innerText')}")

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
