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
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import msgspec
import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.routing import Router
from starlette.types import Message

from paliglass.checkpoints.assembly import num_gpus
from paliglass.errors import PaliglassError
from paliglass.files import reason
from paliglass.serving.app import create_app
from paliglass.serving.options import ServerOptions
from paliglass.serving.relay import Relay
from paliglass.serving.settings import Settings

__all__ = ["app", "application", "serve_replicas"]


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


@serve.deployment(max_ongoing_requests=10_000)
@serve.ingress()
class Front:
    """A `Relay` behind Ray's proxy."""

    def __init__(self, replicas: Any, settings: Settings) -> None:
        gone = (RayActorError, DeploymentUnavailableError)
        self.relay = Relay(replicas.options(stream=True).ask, settings, BackPressureError, gone)

    def __serve_build_asgi_app__(self) -> Router:
        return Router(default=self.relay)


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
