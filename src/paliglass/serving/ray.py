"""The server as replicas: Ray Serve runs the same application as often as there is work for it.

    serve run paliglass.serving.ray:app model=mini
    serve deploy docs/deploy/ray.yaml

    client → Front (ASGI, no model) → Replica (the application, a model)

- a replica takes requests once its model is loaded; their number waiting and running says how many
  replicas there are to be
- a request is a question without side effects: where its replica dies before an answer has begun,
  another one is asked; where it dies later, the stream ends with an error, and never in silence
- a rolling update or a smaller number of replicas ends one when what it has is answered
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import msgspec
import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.datastructures import Headers
from starlette.routing import Router
from starlette.types import Message, Receive, Scope, Send

from paliglass.checkpoints.assembly import num_gpus
from paliglass.errors import PaliglassError
from paliglass.files import reason
from paliglass.serving.app import create_app
from paliglass.serving.errors import ApiError
from paliglass.serving.http import BODY_METHODS, Caller, ClientGoneError, too_full
from paliglass.serving.options import ServerOptions
from paliglass.serving.settings import Settings

__all__ = ["app", "application", "serve_replicas"]

TRIES = 4  # replicas that a request is brought to before it gets 503
RETRY_SECONDS = 5
GRACE_SECONDS = 15.0  # beyond a replica's own --timeout
# Of a request's scope: all that is plain data, and so can be sent to a replica.
_SCOPE = (
    *("type", "http_version", "method", "scheme", "path", "raw_path", "root_path"),
    *("query_string", "headers", "client", "server"),
)


@serve.deployment(
    graceful_shutdown_timeout_s=120,  # an answer may take so long
    health_check_period_s=5,
)
class Replica:
    """The whole application in a process of its own, asked in ASGI's messages."""

    async def __init__(self, options: ServerOptions) -> None:  # type: ignore[misc]
        self.engine, settings, dual = options.create()
        self.app = create_app(self.engine, settings, dual)
        self._lifespan = self.app.router.lifespan_context(self.app)
        await self._lifespan.__aenter__()
        await asyncio.to_thread(self.engine.has_loaded.wait)
        if self.engine.failure is not None:
            raise self.engine.failure

    async def __del__(self) -> None:
        if hasattr(self, "_lifespan"):
            await self._lifespan.__aexit__(None, None, None)

    def check_health(self) -> None:
        """Serve starts another one where this raises."""
        if self.engine.state == "dead":
            raise RuntimeError("the model's thread has died")

    async def ask(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[list[Message]]:
        """The application's messages, as they come."""
        waiting: list[Message] = [{"type": "http.request", "body": body}]
        told: asyncio.Queue[Message | None] = asyncio.Queue()
        never = asyncio.Event()

        async def receive() -> Message:
            if not waiting:
                await never.wait()  # who hangs up cancels this generator
            return waiting.pop()

        async def answer() -> None:
            try:
                await self.app(scope, receive, told.put)
            finally:
                told.put_nowait(None)

        task = asyncio.ensure_future(answer())
        try:
            while (message := await told.get()) is not None:
                yield [message]
            await task
        finally:
            task.cancel()


class Relay:
    """Brings requests to replicas, and again to others where one dies."""

    def __init__(self, replicas: Any, settings: Settings) -> None:
        self.replicas, self.settings = replicas.options(stream=True), settings
        self.caller = Caller(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        body = b""
        try:
            self.caller.check(scope, headers)
            if scope["method"] in BODY_METHODS:
                self.caller.check_body(headers)
                if self.caller.is_full:
                    raise too_full(RETRY_SECONDS)
                body = await self.caller.read_body(receive)
        except ApiError as error:
            await self.caller.refuse(error, scope, receive, send)
            return
        except ClientGoneError:
            return
        plain = {name: scope[name] for name in _SCOPE if name in scope}
        answer = asyncio.ensure_future(self._forward(plain, body, receive, send))
        hangup = asyncio.ensure_future(_hangup(receive))
        try:
            await asyncio.wait({answer, hangup}, return_when=asyncio.FIRST_COMPLETED)
        finally:  # Serve cancels this where a client hangs up, too
            answer.cancel()
            hangup.cancel()
            await asyncio.gather(answer, hangup, return_exceptions=True)
        if not answer.cancelled() and (failure := answer.exception()) is not None:
            raise failure

    async def _forward(
        self, scope: dict[str, Any], body: bytes, receive: Receive, send: Send
    ) -> None:
        """The answer of the first replica that lives to give one."""
        for _ in range(TRIES):
            start: Message | None = None
            has_begun = False
            answers = self.replicas.ask.remote(scope, body)
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
            except BackPressureError:
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
            except (RayActorError, DeploymentUnavailableError):
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
        """The same. Raises TimeoutError where a replica has long had to say something."""
        coming = aiter(answers)
        with suppress(StopAsyncIteration):
            while True:
                async with asyncio.timeout(self.settings.timeout + GRACE_SECONDS):
                    messages = await anext(coming)
                yield messages


@serve.deployment(max_ongoing_requests=10_000)
@serve.ingress()
class Front:
    """A `Relay` behind Ray's proxy."""

    def __init__(self, replicas: Any, settings: Settings) -> None:
        self.relay = Relay(replicas, settings)

    def __serve_build_asgi_app__(self) -> Router:
        return Router(default=self.relay)


async def _hangup(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _broken_off() -> Message:
    """The end of an event stream whose replica has died."""
    error = ApiError(503, "the replica died in the midst of the answer", code="not_ready")
    data = f"data: {json.dumps(error.body)}\n\n"
    return {"type": "http.response.body", "body": data.encode()}


def app(arguments: Mapping[str, Any]) -> serve.Application:
    """Ray Serve's application. arguments: the fields of `ServerOptions`, as values or as text.

    Raises PaliglassError for one that there is none of, a wrong value, or a file without keys.
    """
    known = {field.name for field in dataclasses.fields(ServerOptions)}
    unknown = sorted(arguments.keys() - known)
    if unknown:
        raise PaliglassError(f"there is no option {unknown[0]!r}; there are {', '.join(known)}")
    try:
        options = msgspec.convert(dict(arguments), ServerOptions, strict=False)
    except msgspec.ValidationError as error:
        raise PaliglassError(f"options of the server: {error}") from None
    return application(options)


def application(options: ServerOptions, max_replicas: int = 4) -> serve.Application:
    """As many replicas as there are batches of requests, within bounds.

    Each takes as many requests as its engine has places for; as many again wait for a
    replica that is to come, and more are told 429.
    """
    places = options.max_batch + options.max_queue
    there_are_gpus = ray.is_initialized() and ray.cluster_resources().get("GPU", 0) > 0
    replica = Replica.options(  # type: ignore[attr-defined]
        max_ongoing_requests=places,
        max_queued_requests=places,
        # So that Ray gives each its own.
        ray_actor_options={"num_gpus": num_gpus(options.device, there_are_gpus)},
        autoscaling_config={
            "min_replicas": 1,
            "max_replicas": max_replicas,
            "target_ongoing_requests": options.max_batch,
        },
    )
    return Front.bind(replica.bind(options), options.settings)  # type: ignore[attr-defined]


def serve_replicas(
    address: str,
    options: ServerOptions,
    host: str,
    port: int,
    max_replicas: int,
    ready: Callable[[], object],
) -> None:
    """Serves until SIGTERM or SIGINT. address: of a Ray cluster, or "local".

    ready: is called once requests are answered. Raises PaliglassError where Ray or the model does
    not start.
    """
    slots = max(max_replicas + 2, os.cpu_count() or 1)  # Front, and one for its successor
    local = {"num_cpus": slots, "include_dashboard": False, "log_to_driver": False}
    over = threading.Event()
    has_begun = False
    try:
        try:
            ray.init(address, **(local if address == "local" else {}), logging_level="ERROR")
            serve.start(http_options={"host": host, "port": port})
            has_begun = True
            serve.run(application(options, max_replicas), name="paliglass")
        except Exception as error:
            raise PaliglassError(f"Ray Serve does not start ({reason(error)})") from error
        for number in (signal.SIGTERM, signal.SIGINT):  # only now: Ray has set its own
            signal.signal(number, lambda *_: over.set())
        ready()
        over.wait()
    finally:
        if has_begun and address != "local":  # a cluster may have other applications
            serve.delete("paliglass")
        elif has_begun:
            serve.shutdown()
        ray.shutdown()
