"""A headless Chromium for tests, spoken to through the pipe of the DevTools protocol."""

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)
PATIENCE = 180  # seconds for an answer of the browser


class Tab:
    """One page of the browser.

    `faults` are errors of the console and of scripts, and requests that failed, in words.
    """

    def __init__(self, process, writing, reading):
        self.process = process
        self.writing = writing
        self.reading = reading
        self.numbers = itertools.count(1)
        self.left = b""
        self.session = None
        self.faults = []
        self.addresses = []
        self.loaded = False

    def attach(self):
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """What the browser answers."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.writing, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._next()
            if reply.get("id") == number:
                assert "error" not in reply, reply
                return reply["result"]

    def _next(self):
        """The next message; events are noted."""
        while b"\0" not in self.left:
            ready, _, _ = select.select([self.reading], [], [], PATIENCE)
            assert ready, "the browser does not answer"
            piece = os.read(self.reading, 1 << 20)
            assert piece, "the browser has gone"
            self.left += piece
        first, _, self.left = self.left.partition(b"\0")
        message = json.loads(first)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, event, about):
        if event == "Runtime.exceptionThrown":
            self.faults.append(json.dumps(about["exceptionDetails"]))
        elif event == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.faults.append(about["entry"]["text"])
        elif event == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning"):
            self.faults.append(json.dumps(about["args"]))
        elif event == "Network.requestWillBeSent":
            self.addresses.append(about["request"]["url"])
        elif event == "Page.loadEventFired":
            self.loaded = True

    def open(self, address, width, height=900, mobile=None, dark=False):
        """Opens a page at a width, and waits until it is loaded."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1}
        mobile = width < 500 if mobile is None else mobile
        self.call("Emulation.setDeviceMetricsOverride", mobile=mobile, **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.loaded = False
        self.call("Page.navigate", url=address)
        while not self.loaded:
            self._next()

    def run(self, script):
        """The value of an expression in the page; promises are waited for."""
        options = {"awaitPromise": True, "returnByValue": True, "expression": script}
        result = self.call("Runtime.evaluate", **options)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, script, seconds=PATIENCE):
        """The first true value of an expression, asked again until there is one."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            value = self.run(script)
            if value:
                return value
            time.sleep(0.05)
        raise AssertionError(f"waited in vain for {script}")

    def save_screen(self, path):
        """A picture of the whole page."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        picture = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(picture["data"]))


@contextlib.contextmanager
def chromium():
    """A page of a headless Chromium, or a skipped test."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs chromium: apt-get install chromium")
    to_read, writing = os.pipe()
    reading, to_write = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        # the browser reads at descriptor 3 and writes at 4
        program = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        process = subprocess.Popen(
            ["bash", "-c", program, "chromium", *FLAGS, f"--user-data-dir={folder}"],
            pass_fds=(to_read, to_write),
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        try:
            tab = Tab(process, writing, reading)
            tab.attach()
            yield tab
        finally:
            process.terminate()
            process.wait()
            os.close(writing)
            os.close(reading)
