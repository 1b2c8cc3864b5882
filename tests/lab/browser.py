"""A real browser, spoken to in the W3C's WebDriver protocol: chromium and its chromedriver."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

DRIVER = shutil.which("chromedriver")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(
    DRIVER is None or BROWSER is None, reason="chromium and chromedriver are not installed"
)
PATIENCE = 120.0  # seconds until a page that is still not ready counts as broken


class Browser:
    """One session of a headless browser."""

    def __init__(self, address: str, session: str) -> None:
        self.address = f"{address}/session/{session}"

    def ask(self, method: str, path: str, **body: Any) -> Any:
        return request(method, self.address + path, body)

    def open(self, url: str) -> None:
        self.ask("POST", "/url", url="about:blank")  # a new # alone would load nothing
        self.ask("POST", "/url", url=url)
        self.wait("document.documentElement.dataset.ready === 'true'")

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of a function's body, which may await."""
        text = (
            "const done = arguments[arguments.length - 1]; const given = [...arguments];"
            f"(async () => {{ {script} }})().then(value => done([value]), "
            "error => done({error: String(error)}))"
        )
        found = self.ask("POST", "/execute/async", script=text, args=list(arguments))
        assert isinstance(found, list), found
        return found[0]

    def wait(self, condition: str) -> None:
        end = time.monotonic() + PATIENCE
        while not self.run(f"return Boolean({condition})"):
            assert time.monotonic() < end, f"never came: {condition}"
            time.sleep(0.05)

    def resize(self, width: int, height: int = 900) -> None:
        """Of the page itself, as narrow as phones are, which a window cannot be."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.devtools("Emulation.setDeviceMetricsOverride", **metrics)

    def devtools(self, command: str, **values: Any) -> Any:
        return self.ask("POST", "/goog/cdp/execute", cmd=command, params=values)

    def theme(self, name: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.devtools("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path, whole: bool = False) -> None:
        found = self.devtools("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def errors(self) -> list[str]:
        """What the console has complained of since the last call."""
        entries = self.ask("POST", "/se/log", type="browser")
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]


def request(method: str, url: str, body: dict[str, Any]) -> Any:
    data = None if method in ("GET", "DELETE") else json.dumps(body).encode()
    asked = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(json.load(error)["value"]["message"]) from None


@contextmanager
def start_browser() -> Iterator[Browser]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    assert DRIVER is not None
    driver = subprocess.Popen(
        [DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                if request("GET", f"{address}/status", {})["ready"]:
                    break
            except OSError:
                assert time.monotonic() < end, "chromedriver does not answer"
                time.sleep(0.05)
        # No network: the page is to need none.
        switches = ["--headless=new", "--no-sandbox", "--disable-gpu", "--proxy-server=127.0.0.1:1"]
        options = {"binary": BROWSER, "args": [*switches, "--disable-dev-shm-usage"]}
        capabilities = {
            "alwaysMatch": {
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "ALL"},
                "timeouts": {"script": int(PATIENCE * 1000), "pageLoad": int(PATIENCE * 1000)},
            }
        }
        session = request("POST", f"{address}/session", {"capabilities": capabilities})
        browser = Browser(address, session["sessionId"])
        try:
            yield browser
        finally:
            browser.ask("DELETE", "")
    finally:
        driver.terminate()
        driver.wait()
