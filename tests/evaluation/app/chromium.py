"""A small client of Chromium's DevTools protocol: opens a page, runs JavaScript in it, keeps its console's errors."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"]
FLAGS += ["--remote-debugging-port=0", "--disable-background-networking", "--force-prefers-reduced-motion"]


def find() -> str | None:
    """The path of the browser, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """Headless Chromium with one page. Use as a context manager."""

    def __init__(self, width: int = 1280, height: int = 1600):
        self.size, self.errors, self.requests = (width, height), [], []

    def __enter__(self):
        import aiohttp  # of `datasets`

        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        window = f"--window-size={self.size[0]},{self.size[1]}"
        command = [find(), *FLAGS, window, f"--user-data-dir={self.folder.name}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        address = next(filter(None, (re.search(r"ws://\S+", line) for line in self.process.stderr)))[0]
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.number, self.waiting = 0, {}

        async def connect():
            self.http = aiohttp.ClientSession()
            self.socket = await self.http.ws_connect(address, max_msg_size=0)
            self.reader = asyncio.create_task(self._read())

        self._wait(connect(), 60)
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.resize(*self.size)
        return self

    def __exit__(self, *error):
        self._wait(self._close(), 30)
        self.process.terminate()
        self.process.wait(30)
        self.folder.cleanup()

    def _wait(self, coroutine, seconds: float):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(seconds)

    async def _close(self) -> None:
        self.reader.cancel()
        await self.http.close()

    async def _read(self) -> None:
        async for message in self.socket:
            told = json.loads(message.data)
            if "id" in told:
                self.waiting.pop(told["id"]).set_result(told)
            elif told["method"] == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(told["params"]["exceptionDetails"])[:2000])
            elif told["method"] == "Runtime.consoleAPICalled" and told["params"]["type"] in ("error", "assert"):
                self.errors.append(" ".join(str(each.get("value", each)) for each in told["params"]["args"])[:2000])
            elif told["method"] == "Log.entryAdded" and told["params"]["entry"]["level"] == "error":
                entry = told["params"]["entry"]
                self.errors.append(f"{entry['text']} {entry.get('url', '')}")
            elif told["method"] == "Network.requestWillBeSent":
                self.requests.append(told["params"]["request"]["url"])

    def send(self, method: str, **parameters) -> dict:
        """The result of a DevTools command."""

        async def call():
            self.number += 1
            self.waiting[self.number] = answer = self.loop.create_future()
            about = {"id": self.number, "method": method, "params": parameters}
            if method.split(".")[0] != "Target":
                about["sessionId"] = self.session
            await self.socket.send_str(json.dumps(about))
            return await answer

        told = self._wait(call(), 120)
        if "error" in told:
            raise RuntimeError(f"{method}: {told['error']}")
        return told["result"]

    def resize(self, width: int, height: int) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def open(self, address: str) -> None:
        self.send("Page.navigate", url=address)

    def run(self, script: str):
        """The value of a JavaScript expression."""
        told = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in told:
            raise RuntimeError(f"{script}: {json.dumps(told['exceptionDetails'])[:600]}")
        return told["result"].get("value")

    def wait(self, script: str, seconds: float = 60, every: float = 0.2):
        """The value of an expression once it is true in JavaScript. Raises TimeoutError."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := self.run(script):
                return found
            time.sleep(every)
        raise TimeoutError(f"After {seconds} s this is still not so: {script}")

    def press(self, key: str, code: int = 0, times: int = 1) -> None:
        """Press a key such as Tab (code 9), ArrowRight (39) or Enter (13)."""
        text = {"Enter": "\r", " ": " "}.get(key, "")
        for _ in range(times):
            about = {"key": key, "code": {" ": "Space"}.get(key, key), "windowsVirtualKeyCode": code}
            self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **about)
            self.send("Input.dispatchKeyEvent", type="keyUp", **about)

    def click(self, x: float, y: float) -> None:
        """Click at a point of the window."""
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, file: Path, whole: bool = True) -> None:
        found = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(found["data"]))
