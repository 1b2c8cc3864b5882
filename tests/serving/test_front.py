"""What stands before Ray's replicas: limits of its own, and an end to what hangs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Message

from paliglass.serving import http, relay
from paliglass.serving.settings import Settings

KEY = [(b"host", b"localhost"), (b"authorization", b"Bearer right")]
JSON = [*KEY, (b"content-type", b"application/json")]
START: Message = {"type": "http.response.start", "status": 200, "headers": []}
PART: Message = {"type": "http.response.body", "body": b"a part", "more_body": True}


class Answers:
    """What a replica says, and then, if it hangs, nothing any more, or its error."""

    def __init__(self, messages: list[Message], hangs: bool, error: Exception | None) -> None:
        self.messages, self.hangs, self.error = messages, hangs, error
        self.is_cancelled = False

    async def __aiter__(self) -> AsyncIterator[list[Message]]:
        for message in self.messages:
            yield [message]
        if self.error is not None:
            raise self.error
        if self.hangs:
            await asyncio.Event().wait()

    def cancel(self) -> None:
        self.is_cancelled = True


class Replicas:
    def __init__(
        self, *messages: Message, hangs: bool = False, error: Exception | None = None
    ) -> None:
        self.answers, self.asked = Answers([*messages], hangs, error), []
        self.ask = SimpleNamespace(remote=self._ask)

    def _ask(self, scope: dict[str, Any], body: bytes) -> Answers:
        self.asked.append(body)
        return self.answers


class FullError(Exception):
    """No replica has room."""


class GoneError(Exception):
    """The replica has died."""


class Client:
    """Sends a request's parts; never hangs up. ends: whether its last part is told to be one."""

    def __init__(
        self, parts: list[bytes], headers: list[tuple[bytes, bytes]] = JSON, ends: bool = True
    ) -> None:
        self.parts, self.headers, self.ends = parts, headers, ends
        self.told: list[Message] = []

    async def receive(self) -> Message:
        if not self.parts:
            await asyncio.Event().wait()
        part = self.parts.pop(0)
        more = bool(self.parts) or not self.ends
        return {"type": "http.request", "body": part, "more_body": more}

    async def send(self, message: Message) -> None:
        self.told.append(message)

    def ask(self, replicas: Replicas, **settings: Any) -> tuple[int, bytes]:
        """(status, body) that it is answered."""
        given = {"keys": ("right",), "body_seconds": 60.0, "timeout": 60.0} | settings
        front = relay.Relay(replicas.ask, Settings(**given), FullError, (GoneError,))
        scope = {"type": "http", "method": "POST", "path": "/v1/query", "headers": self.headers}
        asyncio.run(front(scope, self.receive, self.send))
        start, *parts = self.told
        return start["status"], b"".join(part.get("body", b"") for part in parts)


def code(body: bytes) -> str:
    found: str = json.loads(body)["error"]["code"]
    return found


def test_what_a_replica_says_is_told() -> None:
    replicas = Replicas(START, PART, {**PART, "more_body": False})
    assert Client([b"{", b"}"]).ask(replicas) == (200, b"a parta part")
    assert replicas.asked == [b"{}"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([(b"host", b"evil.example"), *JSON[1:]], 403),
        ([JSON[0], (b"authorization", b"Bearer wrong"), JSON[2]], 401),
        ([*KEY, (b"content-type", b"text/plain")], 415),
        ([*JSON, (b"content-length", b"101")], 413),
    ],
)
def test_what_may_not_get_in_is_refused_and_its_body_taken(
    headers: list[tuple[bytes, bytes]], status: int
) -> None:
    """Else the connection is reset, and the refusal lost to who is still sending."""
    replicas, client = Replicas(), Client([b"a", b"b"], headers)
    found, _ = client.ask(replicas, max_body=100)
    assert (found, replicas.asked, client.parts) == (status, [], [])


def test_a_body_without_a_size_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "LINGER_SECONDS", 0.01)
    replicas = Replicas()
    status, body = Client([b"x" * 60] * 3, ends=False).ask(replicas, max_body=100)
    assert (status, code(body), replicas.asked) == (413, "too_large", [])


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "LINGER_SECONDS", 0.01)
    replicas = Replicas()
    status, body = Client([b"{"], ends=False).ask(replicas, body_seconds=0.01)
    assert (status, code(body), replicas.asked) == (408, "timeout", [])


def test_bodies_that_fill_the_memory_are_told_to_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http.Caller, "is_full", True)
    replicas = Replicas()
    status, body = Client([b"{}"]).ask(replicas)
    assert (status, code(body), replicas.asked) == (429, "queue_full", [])


def test_a_replica_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "GRACE_SECONDS", 0.0)
    replicas = Replicas(START, hangs=True)
    status, body = Client([b"{}"]).ask(replicas, timeout=0.01)
    assert (status, code(body)) == (504, "timeout")
    assert replicas.answers.is_cancelled
    assert len(replicas.asked) == 1  # who was slow once would be so again


def test_a_stream_whose_replica_hangs_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "GRACE_SECONDS", 0.0)
    status, body = Client([b"{}"]).ask(Replicas(START, PART, hangs=True), timeout=0.01)
    assert status == 200
    assert body.startswith(b"a part")
    assert code(body.removeprefix(b"a partdata: ")) == "not_ready"


def test_replicas_without_room_are_told_of() -> None:
    status, body = Client([b"{}"]).ask(Replicas(error=FullError()))
    assert (status, code(body)) == (429, "queue_full")


def test_another_replica_is_asked_where_one_dies_before_it_has_said_anything() -> None:
    replicas = Replicas(START, error=GoneError())
    status, body = Client([b"{}"]).ask(replicas)
    assert (status, code(body), len(replicas.asked)) == (503, "not_ready", relay.TRIES)


def test_a_stream_whose_replica_dies_ends_with_an_error() -> None:
    replicas = Replicas(START, PART, error=GoneError())
    status, body = Client([b"{}"]).ask(replicas)
    assert (status, len(replicas.asked)) == (200, 1)
    assert code(body.removeprefix(b"a partdata: ")) == "not_ready"
