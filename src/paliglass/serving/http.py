"""What stands between the network and the routes: a guard, an event stream, a watch for hangups."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paliglass.serving.calls import Service
from paliglass.serving.errors import ApiError, as_api_error
from paliglass.serving.settings import Settings

__all__ = [
    "BODY_METHODS",
    "OPEN_PATHS",
    "Caller",
    "ClientGoneError",
    "EventStream",
    "Guard",
    "server_event",
    "too_full",
    "unless_gone",
]

T = TypeVar("T")
# What needs no key, since nothing is told but that; and the page's pieces.
OPEN_PATHS = ("/", "/health", "/docs", "/openapi.json")
OPEN_FOLDER = "/lab/"
BODY_METHODS = ("POST", "PUT", "PATCH")
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]", "")
LINGER_SECONDS = 2.0


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


class Caller:
    """Who asks, and how much: what is told of a request before anything is made of it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._keys = [_digest(key) for key in settings.keys]
        self._uploading = 0  # bytes of bodies that are being read

    def check(self, scope: Scope, headers: Headers) -> None:
        """Raises ApiError for a host or a key that is none of this server's."""
        host = headers.get("host", "").rpartition(":")
        name = (host[0] if host[2].isdigit() else headers.get("host", "")).lower()
        if self.settings.is_local and name not in LOCAL_HOSTS:
            raise ApiError(403, "this server answers to localhost alone", code="host")
        path: str = scope["path"]
        if self._keys and path not in OPEN_PATHS and not path.startswith(OPEN_FOLDER):
            given = headers.get("x-moondream-auth", "")
            scheme, _, token = headers.get("authorization", "").partition(" ")
            if scheme.lower() == "bearer":
                given = token.strip()
            digest = _digest(given)
            # All keys are compared, each in the same time, whatever was given.
            if not sum([hmac.compare_digest(digest, key) for key in self._keys]):
                raise ApiError(
                    401,
                    "the API key is missing or wrong",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )

    @property
    def is_full(self) -> bool:
        """Whether the bodies that are coming take as much memory as they may."""
        return self._uploading > 8 * self.settings.max_body

    async def read_body(
        self, headers: Headers, receive: Receive, retry_after: int, has_no_place: bool = False
    ) -> bytes:
        """A body of JSON, whole, within a size and a time.

        has_no_place: whether no request is taken, whatever room bodies have.
        Raises ClientGoneError, and ApiError for what is refused, most of it unread.
        """
        self._check_body(headers)
        if has_no_place or self.is_full:
            raise too_full(retry_after)
        return await self._read_whole(receive)

    def _check_body(self, headers: Headers) -> None:
        """Raises ApiError where what is announced is no JSON, or too long."""
        if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise ApiError(415, "send JSON, with Content-Type: application/json")
        announced = headers.get("content-length", "")
        if announced.isdigit() and int(announced) > self.settings.max_body:
            raise self._too_long()

    async def _read_whole(self, receive: Receive) -> bytes:
        """Raises ApiError for a body too long or too slow, and ClientGoneError."""
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                is_whole = False
                while not is_whole:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    part = message.get("body", b"")
                    parts.append(part)
                    size += len(part)
                    self._uploading += len(part)
                    if size > self.settings.max_body:
                        raise self._too_long()
                    is_whole = not message.get("more_body", False)
        except TimeoutError:
            raise ApiError(408, "the request took too long to arrive", code="timeout") from None
        finally:
            self._uploading -= size
        return b"".join(parts)

    async def refuse(self, error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers with an error, though the body may not have been read."""
        if scope["method"] not in BODY_METHODS:
            return await error.response()(scope, receive, send)
        error.headers["Connection"] = "close"
        await error.response()(scope, receive, self._lingering(receive, send))

    def _lingering(self, receive: Receive, send: Send) -> Send:
        """A `send` that ends the answer once the client has sent all, or for two seconds has not.

        uvicorn closes the connection with the answer's last part. Closed while the client is still
        sending, it is reset, and the answer lost to the client.
        """

        async def send_and_wait(message: Message) -> None:
            if message["type"] != "http.response.body" or message.get("more_body"):
                return await send(message)
            await send({**message, "more_body": True})
            await self._drain(receive)
            await send({"type": "http.response.body", "body": b""})

        return send_and_wait

    async def _drain(self, receive: Receive) -> None:
        left = self.settings.max_body
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if message["type"] == "http.disconnect" or not message.get("more_body"):
                        return

    def _too_long(self) -> ApiError:
        most = self.settings.max_body
        return ApiError(413, f"a request may have {most:,} bytes", code="too_large")


def too_full(retry_after: int) -> ApiError:
    """retry_after: seconds."""
    return ApiError(
        429,
        "the server is full; try again a little later",
        code="queue_full",
        headers={"Retry-After": str(retry_after)},
    )


class Guard:
    """Refuses what must not get in, before anything of its body is unpacked.

    Host, key, place in line, type and announced size are looked at before the body is read; the
    body is read whole, within a size and a time, before anything is made of it.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service
        self._caller = Caller(service.settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begin, status = time.monotonic(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            headers = Headers(scope=scope)
            self._caller.check(scope, headers)
            if scope["method"] in BODY_METHODS:
                receive = await self._whole_body(headers, receive)
        except ApiError as error:
            await self._caller.refuse(error, scope, receive, noted)
        except ClientGoneError:
            return
        else:
            await self.app(scope, receive, noted)
        finally:
            route = scope.get("route")
            path = getattr(route, "path", "other")
            self.service.metrics.request(path, status, time.monotonic() - begin)

    async def _whole_body(self, headers: Headers, receive: Receive) -> Receive:
        """A `receive` that has the body ready."""
        engine = self.service.engine
        body = await self._caller.read_body(headers, receive, engine.retry_after, engine.is_full)
        waiting: list[Message] = [{"type": "http.request", "body": body}]

        async def ready() -> Message:
            return waiting.pop() if waiting else await receive()

        return ready


def _digest(key: str) -> bytes:
    """Of equal length whatever the key is."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


async def _hangup(receive: Receive) -> None:
    """Ends when the client hangs up."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Does the work, unless the client hangs up before it is done. Raises ClientGoneError."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_hangup(request.receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        watch.cancel()
        task.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


def server_event(data: object, name: str | None = None) -> bytes:
    """One server-sent event, of a JSON value or of a bare word."""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


class EventStream(Response):
    """Server-sent events as they come, with pings while there are none.

    on_error: what an error becomes, once it is too late for a status code. close: is called at the
    end, however it came.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[bytes],
        on_error: Callable[[ApiError], bytes],
        close: Callable[[], None],
        ping_seconds: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        kept = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})}
        super().__init__(None, headers=kept)
        del self.headers["content-length"]
        self._events, self._on_error, self._close = events, on_error, close
        self._ping_seconds = ping_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.ensure_future(_hangup(receive))
        coming: asyncio.Future[bytes] | None = None
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            while True:
                coming = coming or asyncio.ensure_future(_next(self._events))
                both: set[asyncio.Future[Any]] = {coming, watch}
                await asyncio.wait(
                    both,
                    timeout=self._ping_seconds,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if watch.done():
                    return
                if not coming.done():
                    await _send_part(send, b": ping\n\n")
                    continue
                try:
                    part = coming.result()
                except StopAsyncIteration:
                    break
                except Exception as error:
                    part = self._on_error(as_api_error(error))
                    await _send_part(send, part)
                    break
                coming = None
                await _send_part(send, part)
            await send({"type": "http.response.body", "body": b""})
        finally:
            self._close()
            others = [task for task in (watch, coming) if task is not None]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)


async def _next(events: AsyncIterator[bytes]) -> bytes:
    return await anext(events)


async def _send_part(send: Send, part: bytes) -> None:
    await send({"type": "http.response.body", "body": part, "more_body": True})
