"""The lab computed by torch: what its server answers, what it refuses, and the page on it."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from tests.lab.browser import needs_browser, start_browser
from tests.lab.helpers import MINI
from tests.lab.test_page import SETTLED, VIEWS, drawn, show

from paliglass import load
from paliglass.errors import PaliglassError
from paliglass.lab import server as module
from paliglass.lab.build import build
from paliglass.lab.server import make_server
from paliglass.lab.torch_engine import TorchLab


@contextmanager
def running(page: str, ask: Any) -> Iterator[int]:
    with make_server(page, ask) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def echo(method: str, values: Mapping[str, Any]) -> Any:
    if method == "fail":
        raise PaliglassError("that\nfails \x1b[31m")
    return {
        "method": method,
        "sum": int(np.sum(values.get("data", 0))),
        "x": np.array([1, 2], np.float32),
    }


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with running("<p>the page</p>", echo) as found:
        yield found


def send(
    port: int, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None:
        named.setdefault("Content-Type", "application/json")
    connection.request(method, path, body, named)
    response = connection.getresponse()
    return response.status, response.read().decode()


def test_a_question_is_answered(port: int) -> None:
    asked = {"method": "run", "values": {"data": {"u8": "AQID"}}}
    status, answer = send(port, "POST", "/ask", json.dumps(asked).encode())
    found = {"method": "run", "sum": 6, "x": {"f32": "AACAPwAAAEA="}}
    assert (status, json.loads(answer)) == (200, {"result": found})
    status, answer = send(port, "POST", "/ask", b'{"method": "fail", "values": {}}')
    assert (status, "\n" in json.loads(answer)["error"]) == (200, False)
    assert send(port, "GET", "/") == (200, "<p>the page</p>")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", ""])
def test_no_other_name_leads_here(port: int, host: str) -> None:
    assert send(port, "GET", "/", Host=host)[0] == 403
    assert send(port, "POST", "/ask", b"{}", Host=host)[0] == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Content_Type": "text/plain"},
        {"Content_Type": "application/x-www-form-urlencoded"},
    ],
)
def test_no_other_page_may_ask(port: int, headers: dict[str, str]) -> None:
    assert send(port, "POST", "/ask", b'{"method": "run", "values": {}}', **headers)[0] == 403


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[", b"[]", b"3", b"{}", b"[" * 100_000, b"\xff"),
        b'{"method": 3, "values": {}}',
        b'{"method": "run", "values": []}',
        b'{"method": "run", "values": {"data": {"u8": 3}}}',
    ],
)
def test_what_is_no_question_is_refused(port: int, body: bytes) -> None:
    status, answer = send(port, "POST", "/ask", body)
    assert (status, "a question is" in json.loads(answer)["error"]) == (400, True)


def test_bodies_are_bounded(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_BODY", 10)
    assert send(port, "POST", "/ask", b"x" * 11)[0] == 413
    assert send(port, "POST", "/ask", b"x", Content_Length="-1")[0] == 413
    assert send(port, "GET", "/else")[0] == send(port, "POST", "/else", b"{}")[0] == 404


def test_a_port_that_is_taken_is_named(port: int) -> None:
    with pytest.raises(PaliglassError, match=f"port {port} cannot be opened"):
        make_server("", echo, port)


@pytest.mark.slow
@needs_browser
def test_every_view_works_on_torch() -> None:
    model = load("mini", dtype="float32", fast=False)
    page = build(None, MINI.parent / "mini_dual")
    assert 'id="weights"' not in page
    with running(page, TorchLab(model).ask) as port, start_browser() as browser:
        browser.resize(1280)
        for view in VIEWS:
            show(browser, f"http://127.0.0.1:{port}/", view)
        browser.run(SETTLED)
        answer = browser.run("return lab.store.result.text")
        assert answer == model.generate(drawn(browser), "caption en")
        assert browser.errors() == []
