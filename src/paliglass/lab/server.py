"""The lab on a model of any size: the same page, asked of torch, for one reader on this machine.

    GET /        the page
    POST /ask    {"method": …, "values": {…}} → {"result": …} or {"error": "one line"}

Numbers that are many travel as {"f32": base64} and {"u8": base64}. It listens on 127.0.0.1 alone,
and answers no other page: a name that was made to lead here (DNS rebinding) is refused by the Host
header, a form or script of another origin by its content type and Origin.
"""

from __future__ import annotations

import base64
import binascii
import json
import sys
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from threading import Lock
from typing import Any

import numpy as np

from paliglass.errors import PaliglassError, printable

__all__ = ["make_server"]

Ask = Callable[[str, Mapping[str, Any]], Any]
LARGEST_BODY = 64 << 20  # a picture of 4000 × 4000 pixels
PATIENCE = 30.0  # seconds for a request to arrive


def make_server(page: str, ask: Ask, port: int = 0) -> HTTPServer:
    """A server for `serve_forever`; its `server_port` tells a free port.

    ask: what answers a method of the protocol, one at a time; see `TorchLab.ask`.

    Raises PaliglassError where the port is taken.
    """

    class Handler(_Handler):
        pass

    Handler.page, Handler.ask, Handler.lock = page.encode(), staticmethod(ask), Lock()
    try:
        return _Server(("127.0.0.1", port), Handler)
    except (OSError, OverflowError) as error:
        raise PaliglassError(f"port {port} cannot be opened ({error}); choose another") from None


class _Server(ThreadingHTTPServer):
    """A browser's spare connection, which says nothing, keeps nobody waiting."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A page that was closed is gone, and an answer to it fails: nothing to be said of it."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    page: bytes
    ask: Ask
    lock: Lock
    timeout = PATIENCE

    def do_GET(self) -> None:
        if not self._is_own():
            self._send(403, b"this page is for 127.0.0.1 alone", "text/plain")
        elif self.path.partition("?")[0] == "/":
            self._send(200, self.page, "text/html; charset=utf-8")
        else:
            self._send(404, b"there is no such page", "text/plain")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        is_json = self.headers.get_content_type() == "application/json"
        if not self._is_own() or not is_json:
            self._tell(403, error="only the lab's own page may ask")
        elif self.path != "/ask":
            self._tell(404, error="there is no such address")
        elif not length.isdecimal() or len(length) > 9 or int(length) > LARGEST_BODY:
            self._tell(413, error=f"a question has at most {LARGEST_BODY >> 20} MB")
        else:
            self._answer(self.rfile.read(int(length)))

    def _answer(self, body: bytes) -> None:
        try:
            asked = json.loads(body, object_hook=_unpacked)
            method, values = asked["method"], asked["values"]
            if not isinstance(method, str) or not isinstance(values, dict):
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError):
            self._tell(400, error='a question is {"method": …, "values": {…}}')
            return
        try:
            with self.lock:
                answer = {"result": type(self).ask(method, values)}
        except PaliglassError as error:
            answer = {"error": printable(str(error))}
        self._tell(200, **answer)

    def _is_own(self) -> bool:
        """Whether the request is for this machine by its own name, and from no other page."""
        assert isinstance(self.server, HTTPServer)
        port = self.server.server_port
        hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        origin = self.headers.get("Origin")
        return self.headers.get("Host") in hosts and (
            origin is None or origin.removeprefix("http://") in hosts
        )

    def _tell(self, status: int, **answer: Any) -> None:
        text = json.dumps(answer, default=_packed, allow_nan=False, ensure_ascii=False)
        self._send(status, text.encode(), "application/json")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing: a line for each question would bury what matters."""


def _packed(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{type(value).__name__} cannot be sent")
    kind = {"float32": "f32", "uint8": "u8"}[value.dtype.name]
    return {kind: base64.b64encode(value.tobytes()).decode("ascii")}


def _unpacked(value: dict[str, Any]) -> Any:
    if value.keys() != {"u8"}:
        return value
    try:
        return np.frombuffer(base64.b64decode(value["u8"], validate=True), np.uint8)
    except (binascii.Error, TypeError):
        raise ValueError("not base64") from None
