"""Headless Chromium, driven through its DevTools protocol over two pipes: no driver, no port, no package."""

import base64
import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--remote-debugging-pipe",
)
# The protocol wants descriptors 3 and 4, which `subprocess` alone cannot promise.
LAUNCH = "import os, sys; os.dup2({0}, 3); os.dup2({1}, 4); os.execv(sys.argv[1], sys.argv[1:])"
TIMEOUT = 60


def find_chromium():
    """The path of the first browser that is installed, or None."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Chromium:
    """A browser with one page; ``events`` holds everything it reported."""

    def __init__(self):
        self.home = tempfile.mkdtemp(prefix="chromium-")
        to_browser, self.outbox = os.pipe()
        self.inbox, from_browser = os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_browser, from_browser)]
        command = [sys.executable, "-c", LAUNCH.format(*ends), find_chromium(), *OPTIONS]
        command.append(f"--user-data-dir={self.home}")
        with open(Path(self.home) / "stderr", "wb") as log:
            self.process = subprocess.Popen(command, pass_fds=ends, stdout=log, stderr=log)
        for end in (to_browser, from_browser, *ends):
            os.close(end)
        self.buffer, self.numbers, self.events, self.session = b"", itertools.count(1), [], None
        try:
            target = self.send("Target.createTarget", url="about:blank")["targetId"]
        except OSError:
            self.close()
            raise
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def close(self):
        with contextlib.suppress(OSError):
            self.send("Browser.close")
        for end in (self.inbox, self.outbox):
            os.close(end)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.process.kill()
        shutil.rmtree(self.home, ignore_errors=True)

    def send(self, method, **parameters):
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.outbox, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def _receive(self):
        deadline = time.monotonic() + TIMEOUT
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.inbox], [], [], deadline - time.monotonic())
            found = os.read(self.inbox, 2**20) if ready else b""
            if not found:
                raise OSError("Chromium does not answer: " + (Path(self.home) / "stderr").read_text()[-500:])
            self.buffer += found
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def open(self, path, width=1280, height=900, dark=False, javascript=True):
        """Load a file in a window of this size and wait for it."""
        self.events.clear()
        media = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in media.items()]
        self.send(
            "Emulation.setEmulatedMedia", features=features
        )  # a page that glides on is missed by clicks
        self.send("Emulation.setScriptExecutionDisabled", value=not javascript)
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        self.send("Page.navigate", url=Path(path).resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def run(self, expression):
        """The value of a JavaScript expression."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"])[:500])
        return answer["result"].get("value")

    def click(self, selector):
        """Click the middle of the first element, as a mouse does, once it has been drawn where it is scrolled to."""
        place = self.run(
            "(async () => {"
            f" const element = document.querySelector({json.dumps(selector)});"
            " element.scrollIntoView({block: 'center', behavior: 'instant'});"
            " await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));"
            " const box = element.getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send(
                "Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1
            )

    def press(self, key, code=0, text=""):
        """Press and release a key such as Tab, Enter (13), Escape (27)."""
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def screenshot(self, path, full=False):
        found = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=full)
        Path(path).write_bytes(base64.b64decode(found["data"]))

    def complaints(self):
        """What the page wrote to the console, and exceptions."""
        self.run("1")
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event for event in self.events if event.get("method") in kinds]

    def requests(self):
        """Addresses that the page asked for, its own pictures left out."""
        self.run("1")
        found = [
            e["params"]["request"]["url"]
            for e in self.events
            if e.get("method") == "Network.requestWillBeSent"
        ]
        return [address for address in found if not address.startswith("data:")]
