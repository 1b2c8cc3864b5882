"""The guard, the errors' form, the health, the metrics, the pages."""

from __future__ import annotations

import re
import socket
import threading
from typing import Any

import pytest
from tests.serving.helpers import (
    GUARD_SECONDS,
    Held,
    Running,
    chat,
    in_threads,
    noise_address,
    running,
    tiny,
    until,
)

from paliglass.model import PaliGemma
from paliglass.serving import Engine, Settings, pages
from paliglass.serving import server as server_module

CHAT = "/v1/chat/completions"


def error_of(answer: Any) -> dict[str, Any]:
    assert set(answer.json()) == {"error"}
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    assert "Traceback" not in error["message"]
    return error


def test_what_is_not_json_is_said_to_be_so(server: Running) -> None:
    answer = server.client.post(CHAT, content="[1,", headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    error = error_of(answer)
    assert error["message"] == "the body is not JSON (Expecting value, at character 3)"
    assert error["param"] is None


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "match"),
    [
        ("POST", CHAT, {"foo": 1, "messages": [{}]}, 400, "no field foo"),
        ("POST", CHAT, {"model": "mini"}, 400, "messages is missing"),
        ("POST", CHAT, [], 400, "object"),
        ("POST", CHAT, {"messages": [{}], "stream": "yes"}, 400, "stream"),
        ("POST", CHAT, {"messages": [{}], "seed": -1}, 400, "^seed is -1; it must be 0 or more$"),
        ("POST", CHAT, {"messages": [{}], "top_p": 7}, 400, "^top_p is 7; it must be 1 or less$"),
        (
            "POST",
            CHAT,
            {"messages": []},
            400,
            r"^messages is \[\]; it must be a list of 1 or more$",
        ),
        (
            "POST",
            CHAT,
            {"messages": [{}], "stop": ["a"] * 5},
            400,
            r"^stop is \[.*\]; it must be text or a list of 4 or fewer$",
        ),
        (
            "POST",
            CHAT,
            {"messages": [{}], "stop": ""},
            400,
            r'^stop is ""; it must be a text of 1 or more characters or a list$',
        ),
        (
            "POST",
            CHAT,
            {"messages": [{}], "stop": [""]},
            400,
            r'^stop\.0 is ""; it must be a text ',
        ),
        ("POST", CHAT, {"messages": [{}], "audio": {}}, 400, "audio cannot be honoured"),
        ("POST", "/v1/responses", {"input": "a", "store": True}, 400, "store cannot"),
        ("POST", "/v1/responses", {"input": "a", "instructions": "b"}, 400, "instructions cannot"),
        ("POST", "/v1/caption", {}, 400, "image_url is missing"),
        ("POST", "/v1/detect", {"image_url": "data:", "object": ""}, 400, "object"),
        ("POST", "/v1/detect", {"image_url": "data:", "object": "a;" * 30_000}, 400, "50000"),
        ("POST", "/v1/query", {"image_url": "data:", "question": "a" * 60_000}, 400, "50000"),
        ("POST", CHAT, {"messages": [{"role": "user", "content": "a " * 30_000}]}, 400, "50,000"),
        ("POST", "/v1/embeddings", {"input": "a", "dimensions": 3}, 400, "dimensions cannot"),
        (
            "POST",
            "/v1/embeddings",
            {"input": [[1, 2]]},
            400,
            r"^input\.0 is \[1, 2\]; it must be text$",
        ),
        (
            "POST",
            "/v1/embeddings",
            {"input": []},
            400,
            r"^input is \[\]; it must be text or a list of 1 or more$",
        ),
        ("POST", "/v1/responses", {"input": 5}, 400, "^input is 5; it must be text or a list$"),
        ("POST", "/v1/nothing", {}, 404, "Not Found"),
        ("GET", CHAT, None, 405, "Not Allowed"),
    ],
)
def test_errors_have_openais_form_and_name_the_field(
    server: Running, method: str, path: str, body: Any, status: int, match: str
) -> None:
    answer = server.client.request(method, path, json=body)
    assert answer.status_code == status
    assert re.search(match, error_of(answer)["message"])


@pytest.mark.parametrize(
    "text", [b"", b"{", b"nonsense", b"[" * 100_000, b'{"a": ' + b"9" * 10_000 + b"}", b"\xff\xfe"]
)
def test_what_is_no_json_is_a_named_error(server: Running, text: bytes) -> None:
    answer = server.client.post(CHAT, content=text, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    error_of(answer)


def test_a_prompt_that_does_not_fit_is_a_named_error(server: Running) -> None:
    answer = server.post(CHAT, chat("ocr " + "a b " * 600, noise_address()))
    assert answer.status_code == 400
    assert "the model takes fewer than 512" in error_of(answer)["message"]
    answer = server.post(CHAT, chat("detect ;", noise_address()))
    assert "at least one label" in error_of(answer)["message"]
    lone = b'{"messages": [{"role": "user", "content": [{"type": "text", "text": "\\ud800"}, ' + (
        b'{"type": "image_url", "image_url": {"url": "%b"}}]}]}' % noise_address().encode()
    )
    answer = server.client.post(CHAT, content=lone, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    error_of(answer)


def test_json_alone_is_read(server: Running) -> None:
    answer = server.client.post(CHAT, content="{}", headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415  # a web page can send that without asking
    error_of(answer)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example"])
def test_only_localhost_is_answered_where_only_it_can_reach(server: Running, host: str) -> None:
    answer = server.client.get("/v1/models", headers={"Host": host})
    assert answer.status_code == 403
    error_of(answer)


@pytest.mark.parametrize("host", ["localhost", "localhost:9", "127.0.0.1:1", "[::1]:80"])
def test_localhost_has_several_names(server: Running, host: str) -> None:
    assert server.client.get("/v1/models", headers={"Host": host}).status_code == 200


def test_the_lab_tells_what_the_server_answers_with() -> None:
    page = pages.index("other <").page.decode()
    assert 'data-model="mini" data-served="other &lt;"' in page


def test_the_lab_comes_in_pieces(server: Running) -> None:
    page = server.client.get("/")  # in gzip
    assert page.headers["Content-Encoding"] == "gzip"
    assert page.text == server.client.get("/", headers={"Accept-Encoding": ""}).text
    sources = re.findall(r'data-source="(.*?)"', page.text)
    assert {re.sub(r"\?.*", "", source) for source in sources} >= {"lab/weights.bin"}
    for source in sources:
        piece = server.client.get(f"/{source}")
        assert (piece.status_code, piece.content[:2]) == (200, b"\x1f\x8b")
        stale = source.partition("?")[0] + "?00000000"  # that of an old page: nobody may keep it
        assert server.client.get(f"/{stale}").status_code == 404
    assert error_of(server.client.get("/lab/nothing"))


def test_keys(model: PaliGemma) -> None:
    with running(Engine(lambda: model), Settings(keys=("first-key", "clé"))) as server:
        get = server.client.get
        assert get("/health").status_code == get("/").status_code == get("/docs").status_code == 200
        for headers in (
            {},
            {"Authorization": "Bearer first-ke"},
            {"Authorization": "Bearer first-key2"},
            {"Authorization": "Basic first-key"},
            {"Authorization": "Bearer"},
            {"X-Moondream-Auth": "no"},
        ):
            for path in ("/v1/models", "/metrics", "/v1/nothing"):
                answer = get(path, headers=headers)
                assert answer.status_code == 401
                assert error_of(answer)["code"] == "invalid_api_key"
        assert get("/v1/models", headers={"Authorization": "Bearer first-key"}).status_code == 200
        assert get("/v1/models", headers={"X-Moondream-Auth": "first-key"}).status_code == 200


def test_health_follows_the_model(model: PaliGemma) -> None:
    may_load = threading.Event()

    def load() -> PaliGemma:
        assert may_load.wait(GUARD_SECONDS)
        return model

    engine = Engine(load)
    engine.has_loaded.set()  # the helper waits for it
    with running(engine) as server:
        answer = server.client.get("/health")
        assert (answer.status_code, answer.json()) == (503, {"status": "loading"})
        answer = server.post(CHAT, chat("caption en", noise_address()))
        assert answer.status_code == 503
        assert "being loaded" in error_of(answer)["message"]
        assert answer.headers["retry-after"]
        may_load.set()
        until(lambda: engine.state != "loading")
        assert server.client.get("/health").json() == {"status": "ready"}
        engine.drain()
        assert server.client.get("/health").status_code == 503


def test_a_full_server_says_when_to_come_again() -> None:
    held = Held(tiny())
    engine = Engine(lambda: held.model, max_batch=1, max_queue=1)
    with running(engine) as server:
        body = chat("caption en", noise_address(), max_tokens=2)
        answers: list[Any] = []
        threads = [
            threading.Thread(target=lambda: answers.append(server.post(CHAT, body)))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        held.until_held()
        until(lambda: engine.line.taken == 2)
        answer = server.post(CHAT, body)
        assert answer.status_code == 429
        assert error_of(answer)["code"] == "queue_full"
        assert int(answer.headers["retry-after"]) >= 1
        assert server.client.get("/health").status_code == 200
        held.free()
        for thread in threads:
            thread.join(GUARD_SECONDS)
        assert [answer.status_code for answer in answers] == [200, 200]
        assert server.post(CHAT, body).status_code == 200
        until(lambda: engine.line.taken == 0)  # a place is free some time after its answer's end


def test_places_come_back_whatever_happened(server: Running) -> None:
    bodies = [
        chat("caption en", "data:image/png;base64,AAAA"),
        chat("caption en", noise_address(), max_tokens=0),
        chat("detect ;", noise_address()),
        chat("caption en", noise_address(), stream=True),
        chat("caption en", noise_address(), n=3, temperature=1),
    ]
    in_threads([lambda body=body: server.post(CHAT, body) for body in bodies * 3])
    until(lambda: server.engine.line.taken == server.engine.num_running == 0)


def test_pings_keep_a_stream_alive_while_a_prompt_is_computed() -> None:
    held = Held(tiny())
    with running(Engine(lambda: held.model), Settings(ping_seconds=0.001)) as server:
        body = chat("caption en", noise_address(), stream=True, max_tokens=3)
        with server.client.stream("POST", CHAT, json=body) as answer:
            lines = answer.iter_lines()
            assert answer.headers["content-type"].startswith("text/event-stream")
            seen = [next(lines) for _ in range(40)]
            assert seen.count(": ping") > 10  # and no token, for the model is held
            held.free()
            rest = list(lines)
        assert rest[-2:] == ["data: [DONE]", ""]


def test_a_late_answer_is_an_error_in_the_stream_too() -> None:
    now = [0.0]
    held = Held(tiny())
    engine = Engine(lambda: held.model, clock=lambda: now[0])
    with running(engine, Settings(timeout=5)) as server:
        body = chat("caption en", noise_address(), stream=True)
        with server.client.stream("POST", CHAT, json=body) as answer:
            held.until_held()
            now[0] = 6
            held.free()
            text = "".join(answer.iter_text())
        assert '"code":"timeout"' in text
        assert "[DONE]" not in text


def test_metrics_tell_of_the_line_the_batch_and_the_caches(server: Running) -> None:
    address = noise_address(77)
    for _ in range(2):
        assert server.post(CHAT, chat("caption en", address)).status_code == 200
    text = server.client.get("/metrics").text

    def value(name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        assert found is not None, name
        return float(found[1])

    assert value("paliglass_queue_length") == 0
    assert value("paliglass_running_rows") == 0
    assert value('paliglass_cache_bytes{cache="features"}') > 0
    assert value('paliglass_cache_bytes{cache="prefixes"}') > 0
    assert value("paliglass_prompts_cached_total") >= 1
    assert value("paliglass_generated_tokens_total") > 2
    assert value("paliglass_time_to_first_token_seconds_count") >= 2
    assert value("paliglass_batch_rows_count") > 2
    assert value(f'paliglass_requests_total{{path="{CHAT}",status="200"}}') >= 2


def test_the_pages_load_nothing_from_elsewhere(server: Running) -> None:
    docs = server.client.get("/docs").text
    assert "POST /v1/chat/completions" in docs
    assert "top_logprobs" in docs
    for page in (docs, server.client.get("/").text):
        assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert CHAT in server.client.get("/openapi.json").json()["paths"]


def test_parts_of_a_stream_do_not_wait_for_each_other(
    model: PaliGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    transports: list[Any] = []
    made = server_module._Protocol.connection_made

    def noted(self: Any, transport: Any) -> None:
        made(self, transport)
        transports.append(transport.get_extra_info("socket"))

    monkeypatch.setattr(server_module._Protocol, "connection_made", noted)
    with running(Engine(lambda: model)) as server:
        assert server.client.get("/health").status_code == 200
        assert transports
        for one in transports:
            assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
