"""uvicorn, with limits for connections that do nothing, and an end that loses no answer.

- a connection that has sent no whole request, or reads nothing, for a while is cut
- SIGTERM or SIGINT: no new requests, those under way are answered, exit code 0; a second one ends
  at once
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from paliglass.errors import PaliglassError
from paliglass.serving.engine import Engine

__all__ = ["make_server", "serve"]

HEADER_SECONDS = 15.0  # for a request's line and headers
STALLED_SECONDS = 60.0  # without a byte read by the client


class _Protocol(H11Protocol):
    """uvicorn's, which would wait for a client for ever."""

    _opening: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # TCP_NODELAY: asyncio sets it on sockets that were made with IPPROTO_TCP alone, and without
        # it a stream's second part waits 40 ms for the first one's acknowledgement.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._has_request:
            self._forget()
        elif self._opening is None:
            self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        if self._stalled is not None:
            self._stalled.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
        super().resume_writing()

    @property
    def _has_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_headers(self) -> None:
        self._opening = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _forget(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None

    def _give_up(self) -> None:
        self._opening = None
        if not self._has_request:
            self.transport.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
        super().__init__(config)
        self._engine = engine

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)  # the model's thread may be in the midst of a long product
        self._engine.drain()
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """uvicorn's would raise the signal again, and exit with its number."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals are the main thread's
            return
        before = {s: signal.signal(s, self.handle_exit) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def on_tick(self, counter: int) -> bool:
        """Also ends where the model could not be loaded."""
        return self._engine.could_not_load or await super().on_tick(counter)


def make_server(
    app: FastAPI, engine: Engine, host: str, port: int, max_connections: int = 512
) -> uvicorn.Server:
    """A server that `run` starts; without signals where that is not the main thread."""
    config = uvicorn.Config(
        app,
        host,
        port,
        http=_Protocol,
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=max_connections,
        timeout_keep_alive=30,
    )
    return _Server(config, engine)


def serve(
    app: FastAPI,
    engine: Engine,
    host: str,
    port: int,
    listens: Callable[[int], object] = lambda port: None,
) -> None:
    """Serves until a signal.

    listens: is called with the port, which is another than was asked for where that was 0.

    Raises what loading the model raised, and PaliglassError for a place that cannot be listened at.
    """
    try:
        listening = socket.create_server((host, port), family=_family(host), reuse_port=False)
    except OSError as error:
        why = (error.strerror or str(error)).partition(" (while")[0]
        message = f"{host}, port {port}, cannot be opened ({why}); choose another"
        raise PaliglassError(message) from None
    with listening:
        listens(listening.getsockname()[1])
        make_server(app, engine, host, port).run(sockets=[listening])
    if engine.state == "loading":  # nothing stops that, and Python's own end under it would abort
        sys.stdout.flush()
        os._exit(0)
    if engine.thread.is_alive():
        engine.thread.join()
    if engine.could_not_load and engine.failure is not None:
        raise engine.failure


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
