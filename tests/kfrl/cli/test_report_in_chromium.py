"""The page of `kfrl report` in a real Chromium, by its DevTools protocol: clicks, keys, emulation, console, network."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from kfrl.cli.main import main

NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_browser() -> str | None:
    """The program, if there is one."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One tab."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: WebSocketClientConnection) -> None:
        self._loop, self._socket, self._sent = loop, socket, 0
        self.errors: list[str] = []
        """What the console was told is wrong."""
        self.requests: list[str] = []
        """Addresses that were asked for."""

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._sent += 1
        return self._loop.run_until_complete(self._call(method, parameters))

    async def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        await self._socket.write_message(json.dumps({"id": self._sent, "method": method, "params": parameters}))
        while True:
            told = json.loads(await self._socket.read_message() or "{}")
            self._hear(told)
            if told.get("id") == self._sent:
                assert "error" not in told, told
                return dict(told["result"])

    def _hear(self, told: dict[str, Any]) -> None:
        parameters = told.get("params", {})
        if told.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(parameters["exceptionDetails"])[:500])
        if told.get("method") == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning"):
            self.errors.append(json.dumps(parameters["args"])[:500])
        if told.get("method") == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.errors.append(parameters["entry"]["text"])
        if told.get("method") == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])

    def run(self, code: str) -> Any:
        """The value of JavaScript, promises awaited."""
        found = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, code: str, seconds: float = 60.0) -> None:
        """Until JavaScript is true."""
        end = time.monotonic() + seconds
        while not self.run(code):
            assert time.monotonic() < end, f"waited in vain for {code}"

    def open(self, page: Path) -> None:
        """Load a file."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.wait_for("document.readyState === 'complete'")

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of an element."""
        self.run(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        box = f"document.querySelector({selector!r}).getBoundingClientRect()"
        x, y = self.run(f"(() => {{ const b = {box}; return [b.x + b.width / 2, b.y + b.height / 2]; }})()")
        self.mouse("mouseMoved", x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y)

    def mouse(self, kind: str, x: float, y: float) -> None:
        """An event of the pointer."""
        button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    def key(self, name: str) -> None:
        """Press a key."""
        text = {"text": "\r"} if name == "Enter" else {}
        code = {"Enter": 13, "Tab": 9}[name]
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code, **text)

    def screenshot(self) -> bytes:
        """What is to be seen, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A Chromium with a profile of its own in `folder`."""
    program = find_browser()
    assert program is not None
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run"]
    flags += ["--disable-dev-shm-usage", "--disable-background-networking", f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen([program, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    loop = asyncio.new_event_loop()
    try:
        port = _port(folder / "DevToolsActivePort", process)
        with urlopen(f"http://127.0.0.1:{port}/json") as answer:
            (tab, *_) = [entry for entry in json.load(answer) if entry["type"] == "page"]

        async def connect() -> WebSocketClientConnection:
            return await websocket_connect(tab["webSocketDebuggerUrl"], max_message_size=2**28)

        socket = loop.run_until_complete(connect())
        yield Browser(loop, socket)
        socket.close()
    finally:
        process.kill()
        process.wait()
        loop.close()


def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        if file.exists() and (text := file.read_text()):
            return int(text.splitlines()[0])
        time.sleep(0.05)
    raise AssertionError("Chromium did not start.")


pytestmark = pytest.mark.skipif(find_browser() is None, reason=f"none of {', '.join(NAMES)} is installed")

NAME = "<script><img src=x onerror=alert(1)><b>"
METRICS = f"""\
global_step,charts/episodic_return,charts/episodes,eval/mean_return,flow/p_student/fc,"flow/p_teacher/{NAME}/fc"
50,1,1,2,0.4,0.6
100,2,1,4,0.8,0.2
"""
TOOLTIPS = """(() => {
    const deep = root => [...root.querySelectorAll("*")].flatMap(e => [e, ...(e.shadowRoot ? deep(e.shadowRoot) : [])]);
    const shown = deep(document).filter(e => e.localName.includes("tooltip") || /tooltip/i.test(e.className));
    return shown.map(e => (e.shadowRoot || e).textContent).join(" ");
})()"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def test_the_page_works_with_pointer_keyboard_phone_dark_mode_and_printer(
    tab: Browser, finished_run: Callable[..., Path], tmp_path: Path
) -> None:
    for seed in range(1, 5):
        run = finished_run(tmp_path / "runs" / "<b>bold" / str(seed), [seed, seed + 2.0], seed=seed)
        (run / "metrics.csv").write_text(METRICS)
    page = tmp_path / "report.html"
    assert main(["report", f"<i>arm={tmp_path / 'runs'}", "--output", str(page)]) == 0
    tab.call("Emulation.setDeviceMetricsOverride", width=1000, height=800, deviceScaleFactor=1, mobile=False)
    tab.open(page)
    tab.wait_for("document.querySelectorAll('.plot[data-drawn] > *').length >= 2")
    assert tab.run("document.title") == "kfrl report: 4 runs"
    assert not tab.run("document.querySelectorAll('main script, main img, main b, main i').length")

    assert not tab.run("document.querySelector('details').open")
    tab.click("details > summary")
    assert tab.run("document.querySelector('details').open")
    tab.wait_for("document.querySelectorAll('details[open] .plot[data-drawn]:not(:empty)').length == 2")
    assert not tab.run("document.querySelectorAll('details:not([open]) .plot[data-drawn]').length"), "drawn when opened"
    tab.run("document.querySelectorAll('main > details > summary')[1].focus()")
    tab.key("Enter")
    tab.wait_for("document.querySelectorAll('main > details[open]').length == 2")

    tab.run("document.querySelector('.plot').scrollIntoView({block: 'center'})")
    box = "document.querySelector('.plot').getBoundingClientRect()"
    x, y, width, height = tab.run(f"(b => [b.x, b.y, b.width, b.height])({box})")
    seen = tab.screenshot()
    for place in range(15 * 60):
        tab.mouse("mouseMoved", x + width * (10 + place // 15 * 4) / 100, y + height * (15 + place % 15 * 4) / 100)
        if "<i>arm, 4 seeds" in tab.run(TOOLTIPS):
            break
    assert place < 15 * 60 - 1, "the curves answer to the pointer"
    assert tab.screenshot() != seen

    tab.call("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True)
    assert tab.run("document.documentElement.scrollWidth") <= 390, "nothing spills on a phone"
    light = tab.run("getComputedStyle(document.body).backgroundColor")
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert tab.run("getComputedStyle(document.body).backgroundColor") != light
    tab.call("Emulation.setEmulatedMedia", media="print", features=[])
    assert tab.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert len(tab.call("Page.printToPDF")["data"]) > 10_000

    assert not tab.errors
    assert not [address for address in tab.requests if not address.startswith(("data:", page.resolve().as_uri()))]
