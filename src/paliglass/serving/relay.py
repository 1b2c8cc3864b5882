"""What stands before replicas of the server: its limits, and an end to what hangs.

It knows nothing of Ray but what it is given; see `paliglass.serving.ray`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from paliglass.serving.errors import ApiError
from paliglass.serving.http import BODY_METHODS, Caller, ClientGoneError, too_full, unless_gone
from paliglass.serving.settings import Settings

__all__ = ["Relay"]

TRIES = 4  # replicas that a request is brought to before it gets 503
RETRY_SECONDS = 5
GRACE_SECONDS = 15.0  # beyond a replica's own --timeout
# Of a request's scope: all that is plain data, and so can be sent to a replica.
_SCOPE = (
    *("type", "http_version", "method", "scheme", "path", "raw_path", "root_path"),
    *("query_string", "headers", "client", "server"),
)


class Relay:
    """Brings requests to replicas, and again to others where one dies.

    ask: a replica's `ask`, as Ray hands it out for streams. full, gone: what its answer raises
    where no replica has room, and where the one that was asked has died.
    """

    def __init__(
        self,
        ask: Any,
        settings: Settings,
        full: type[Exception],
        gone: tuple[type[Exception], ...],
    ) -> None:
        self.ask, self.settings, self.full, self.gone = ask, settings, full, gone
        self.caller = Caller(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        body = b""
        try:
            self.caller.check(scope, headers)
            if scope["method"] in BODY_METHODS:
                body = await self.caller.read_body(headers, receive, RETRY_SECONDS)
        except ApiError as error:
            await self.caller.refuse(error, scope, receive, send)
            return
        except ClientGoneError:
            return
        plain = {name: scope[name] for name in _SCOPE if name in scope}
        with suppress(ClientGoneError):  # Serve cancels this where a client hangs up, too
            request = Request(scope, receive)
            await unless_gone(request, self._forward(plain, body, receive, send))

    async def _forward(
        self, scope: dict[str, Any], body: bytes, receive: Receive, send: Send
    ) -> None:
        """The answer of the first replica that lives to give one."""
        for _ in range(TRIES):
            start: Message | None = None
            has_begun = False
            answers = self.ask.remote(scope, body)
            try:
                async for messages in self._in_time(answers):
                    for message in messages:
                        if message["type"] == "http.response.start":
                            start = message  # kept until there is something behind it
                            continue
                        if start is not None:
                            await send(start)
                            start, has_begun = None, True
                        await send(message)
                return
            except self.full:
                await too_full(RETRY_SECONDS).response()(scope, receive, send)
                return
            except TimeoutError:
                answers.cancel()
                if has_begun:
                    await send(_broken_off())
                    return
                late = ApiError(504, "no replica answered in time", code="timeout")
                await late.response()(scope, receive, send)
                return
            except self.gone:
                if has_begun:
                    await send(_broken_off())
                    return
            except asyncio.CancelledError:
                answers.cancel()
                raise
        error = ApiError(
            503,
            "no replica lived to answer; try again",
            code="not_ready",
            headers={"Retry-After": str(RETRY_SECONDS)},
        )
        await error.response()(scope, receive, send)

    async def _in_time(self, answers: AsyncIterator[list[Message]]) -> AsyncIterator[list[Message]]:
        """The same. Raises TimeoutError where nothing was said for too long.

        The first time is also that which a request waits for a replica to take it.
        """
        coming = aiter(answers)
        with suppress(StopAsyncIteration):
            while True:
                async with asyncio.timeout(self.settings.timeout + GRACE_SECONDS):
                    messages = await anext(coming)
                yield messages


def _broken_off() -> Message:
    """The end of an event stream whose replica has died."""
    error = ApiError(503, "the replica died in the midst of the answer", code="not_ready")
    data = f"data: {json.dumps(error.body)}\n\n"
    return {"type": "http.response.body", "body": data.encode()}
