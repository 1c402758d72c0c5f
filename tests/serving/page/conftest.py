"""A browser without a window, driven over its own debugging protocol. Without Chromium its tests are skipped."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--no-proxy-server", "--remote-debugging-pipe",
)  # fmt: skip

# Puts the two pipes where the browser looks for them, by way of numbers that are surely neither 3 nor 4.
_LAUNCH = """
import fcntl, os, sys
high = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3]]
for target, fd in zip((3, 4), high):
    os.dup2(fd, target)
os.execv(sys.argv[3], sys.argv[3:])
"""


class PageLeftError(Exception):
    """The page that was asked has been left meanwhile."""


class Browser:
    """One tab. Commands go to the browser's file descriptor 3, answers and events come from 4, ended by a zero byte."""

    def __init__(self, path: str, profile: Path, width: int, height: int) -> None:
        (commands_out, self._commands), (self._answers, answers_in) = os.pipe(), os.pipe()
        arguments = [*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", _LAUNCH, str(commands_out), str(answers_in), path, *arguments],
            pass_fds=(commands_out, answers_in), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(commands_out)
        os.close(answers_in)
        self._number = 0
        self._found: dict[int, Any] = {}
        self._came = threading.Condition()
        self.problems: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable", session=True)

    def _read(self) -> None:
        rest = b""
        while data := os.read(self._answers, 1 << 16):
            *messages, rest = (rest + data).split(b"\0")
            for message in map(json.loads, messages):
                with self._came:
                    self._take(message)
                    self._came.notify_all()

    def _take(self, message: Any) -> None:
        if "id" in message:
            self._found[message["id"]] = message
        elif message["method"] in ("Runtime.exceptionThrown", "Log.entryAdded"):
            # What a policy forbids, a script that fails, a file that is not there.
            self.problems.append(json.dumps(message["params"])[:500])

    def call(self, method: str, *, session: bool = False, **params: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        with self._came:
            assert self._came.wait_for(lambda: message["id"] in self._found, 120), f"{method}: no answer"
            answer = self._found.pop(message["id"])
        if "context" in answer.get("error", {}).get("message", "").lower():
            raise PageLeftError(answer["error"]["message"])
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, url: str) -> None:
        self.problems.clear()
        self.run("window.left = true")
        self.call("Page.navigate", session=True, url=url)
        self.wait("!window.left && document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        done = self.call(
            "Runtime.evaluate", session=True, expression=script, awaitPromise=True, returnByValue=True
        )  # fmt: skip
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait(self, script: str, timeout_s: float = 120) -> None:
        deadline = time.monotonic() + timeout_s
        while not self._is(script):
            assert time.monotonic() < deadline, f"never true: {script}; problems: {self.problems}"
            time.sleep(0.05)

    def _is(self, script: str) -> bool:
        try:
            return bool(self.run(script))
        except PageLeftError:
            return False

    def click(self, selector: str) -> None:
        """Click as a person does: with the mouse, on what is there; once more when it has moved away meanwhile."""
        self.run(
            f"window.clicked = false; document.querySelector({json.dumps(selector)})"
            ".addEventListener('click', () => { window.clicked = true; }, {once: true})"
        )
        deadline = time.monotonic() + 120
        while not self.run("window.clicked"):
            assert time.monotonic() < deadline, f"cannot be clicked: {selector}"
            self._press(selector)

    def _press(self, selector: str) -> None:
        place = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            "e.scrollIntoView({block: 'center'}); "
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", session=True, type=kind, x=place[0], y=place[1], button="left",
                      clickCount=1)  # fmt: skip

    def resize(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", session=True, width=width, height=height, deviceScaleFactor=1,
                  mobile=False)  # fmt: skip

    def scheme(self, name: str) -> None:
        """Have pages shown as people like them: `light` or `dark`."""
        feature = {"name": "prefers-color-scheme", "value": name}
        self.call("Emulation.setEmulatedMedia", session=True, features=[feature])

    def screenshot(self) -> bytes:
        answer = self.call("Page.captureScreenshot", session=True, format="png", captureBeyondViewport=True)
        return base64.b64decode(answer["data"])

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        os.close(self._commands)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine")
    made = Browser(path, tmp_path_factory.mktemp("profile"), 1280, 900)
    yield made
    made.close()
