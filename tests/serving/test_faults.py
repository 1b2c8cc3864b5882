"""What clients and machines do wrong: a named error for one, and the others go on."""

from __future__ import annotations

import ctypes
import json
import socket
from typing import Any

import pytest
from tests.serving.helpers import (
    GUARD_SECONDS,
    Held,
    Running,
    chat,
    noise_address,
    running,
    tiny,
    until,
)

from paliglass.model import PaliGemma
from paliglass.serving import Engine, Settings
from paliglass.serving import http as http_module
from paliglass.serving import server as server_module

CHAT = "/v1/chat/completions"


def connection(server: Running) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=GUARD_SECONDS)


def head(**headers: str) -> bytes:
    lines = [f"POST {CHAT} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def read_all(raw: socket.socket) -> bytes:
    parts = []
    while True:
        try:
            part = raw.recv(65536)
        except ConnectionResetError:
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts)


def still_answers(server: Running) -> bool:
    body = chat("caption en", noise_address(), max_tokens=3)
    return server.post(CHAT, body).status_code == 200


def test_a_body_of_a_gigabyte_is_refused_unread(server: Running) -> None:
    with connection(server) as raw:
        raw.sendall(head(Content_Length=str(1 << 30)) + b"{")
        raw.shutdown(socket.SHUT_WR)
        answer = read_all(raw)
    assert answer.startswith(b"HTTP/1.1 413")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_large"
    assert still_answers(server)


def test_a_client_that_still_sends_is_not_reset_before_it_has_read_the_answer(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_module, "LINGER_SECONDS", GUARD_SECONDS)
    with connection(server) as raw:
        raw.sendall(head(Content_Length="20").replace(b"application/json", b"text/plain"))
        assert raw.recv(65536).startswith(b"HTTP/1.1 415")
        for _ in range(20):  # a connection that is closed refuses the second
            raw.sendall(b"a")
        while raw.recv(65536):  # the rest of the answer, and its end
            pass
    assert still_answers(server)


def test_a_body_without_an_announced_length_is_counted(model: PaliGemma) -> None:
    with running(Engine(lambda: model), Settings(max_body=100_000)) as server:
        with connection(server) as raw:
            raw.sendall(head(Transfer_Encoding="chunked"))
            part = b"4000\r\n" + b"a" * 0x4000 + b"\r\n"
            for _ in range(8):
                raw.sendall(part)
            raw.shutdown(socket.SHUT_WR)
            assert read_all(raw).startswith(b"HTTP/1.1 413")
        assert still_answers(server)


def test_a_body_that_takes_too_long_is_a_named_error(model: PaliGemma) -> None:
    with running(Engine(lambda: model), Settings(body_seconds=0.05)) as server:
        with connection(server) as raw:
            raw.sendall(head(Content_Length="100") + b"{")
            raw.settimeout(GUARD_SECONDS)
            assert raw.recv(65536).startswith(b"HTTP/1.1 408")
        server.engine.line.taken = 0


def test_a_connection_that_sends_no_request_is_cut(
    model: PaliGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "HEADER_SECONDS", 0.05)
    with running(Engine(lambda: model)) as server:
        for start in (b"", b"POST /v1/chat", head(Content_Length="10")[:-2]):
            with connection(server) as raw:
                raw.sendall(start)
                assert read_all(raw) == b""  # the server closes
        with connection(server) as raw:  # a second request on a connection that had one
            raw.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert raw.recv(65536).startswith(b"HTTP/1.1 200")
            raw.sendall(b"GET /hea")
            read_all(raw)  # which ends


def test_a_client_that_does_not_read_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "STALLED_SECONDS", 0.05)
    with running(Engine(lambda: tiny()), send_buffer=4096) as server:
        fields = {"stream": True, "max_tokens": 250, "logprobs": True, "top_logprobs": 20}
        body = json.dumps(chat("caption en", noise_address(), **fields))
        with connection(server) as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            raw.sendall(head(Content_Length=str(len(body))) + body.encode())
            until(lambda: server.engine.line.taken)
            until(lambda: not server.engine.line.taken)
            answer = read_all(raw)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"[DONE]" not in answer
        assert still_answers(server)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_row(stream: bool) -> None:
    held = Held(tiny())
    engine = Engine(lambda: held.model, max_batch=1)
    with running(engine) as server:
        body = json.dumps(chat("caption en", noise_address(), stream=stream, max_tokens=250))
        with connection(server) as raw:
            raw.sendall(head(Content_Length=str(len(body))) + body.encode())
            held.until_held()
        until(lambda: not engine.line.taken)  # the server has heard of it
        held.free()
        assert still_answers(server)
        said = engine.metrics.registry.get_sample_value("paliglass_generated_tokens_total")
        assert said < 20


def test_a_client_that_hangs_up_with_its_body_half_sent(server: Running) -> None:
    for start in (b"", b'{"messages": '):
        with connection(server) as raw:
            raw.sendall(head(Content_Length="1000") + start)
    assert still_answers(server)
    until(lambda: not server.engine.line.taken)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("stream", [True, False])
def test_the_model_thread_killed_is_a_named_error_and_an_unhealthy_server(stream: bool) -> None:
    held = Held(tiny())
    engine = Engine(lambda: held.model)
    with running(engine) as server:
        body: Any = chat("caption en", noise_address(), stream=stream)
        with server.client.stream("POST", CHAT, json=body) if stream else NoAnswer() as answer:
            if not stream:
                answer.ask(server, body)
            held.until_held()
            thread = ctypes.c_ulong(engine.thread.ident or 0)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(SystemExit))
            held.free()
            text = answer.read()
        assert b"the model's thread died" in text
        health = server.client.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "dead"})
        refused = server.post(CHAT, body)
        assert refused.status_code == 503
        assert "has died" in refused.json()["error"]["message"]
        assert server.client.get("/v1/models").status_code == 200


class NoAnswer:
    """A request in a thread, to be read later."""

    def __enter__(self) -> NoAnswer:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def ask(self, server: Running, body: Any) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self._pool = ThreadPoolExecutor(1)
        self._future = self._pool.submit(server.post, CHAT, body)

    def read(self) -> bytes:
        answer = self._future.result(GUARD_SECONDS)
        self._pool.shutdown()
        assert answer.status_code == 503
        content: bytes = answer.content
        return content


def test_nonsense_on_the_wire_is_refused(server: Running) -> None:
    for start in (b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"A" * 100_000 + b"\r\n\r\n"):
        with connection(server) as raw:
            try:
                raw.sendall(start)
                raw.shutdown(socket.SHUT_WR)
            except OSError:
                continue  # it was cut already
            assert read_all(raw).startswith((b"HTTP/1.1 400", b""))
    assert still_answers(server)
