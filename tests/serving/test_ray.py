"""Replicas on Ray Serve: a request whose replica dies is asked of another."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from typing import Any

import httpx
import pytest
from tests.serving.helpers import chat, mini
from workshop.serving_load import free_port, picture_of, scenes

psutil = pytest.importorskip("psutil")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None,
        reason="Ray is not installed: pip install 'paliglass[ray]'",
    ),
]
PATH = "/v1/chat/completions"
SCENES = scenes(3)
LIMIT = 300  # seconds, far more than anything here takes


def end(process: subprocess.Popen[Any]) -> None:
    """Ends a process with all that it has started, so that nobody waits for what they say."""
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()


@contextmanager
def ending(process: subprocess.Popen[Any], seconds: float) -> Iterator[None]:
    """Ends a process with the block; one that hangs after so many seconds."""
    watch = threading.Timer(seconds, end, [process])
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        watch.cancel()
        end(process)
        process.wait(LIMIT)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    port = free_port()
    command = [sys.executable, "-m", "paliglass", "serve", "--ray", "local", "--replicas", "1"]
    command += ["--port", str(port), "--device", "cpu", "--dtype", "float32"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with ending(process, 3 * LIMIT):
        assert b"http://" in process.stdout.readline(), "the server did not start"
        yield f"http://127.0.0.1:{port}", process
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0


def replicas(process: subprocess.Popen[Any]) -> list[int]:
    """Process ids of the replicas with a model."""
    found = psutil.Process(process.pid).children(recursive=True)
    return [child.pid for child in found if ":Replica" in " ".join(child.cmdline()[:1])]


def ask(url: str, address: str, **more: object) -> httpx.Response:
    body = {**chat("caption en", address), **more}
    return httpx.post(url + PATH, json=body, timeout=LIMIT, trust_env=False)


def test_a_replica_answers_as_the_application_does(server) -> None:
    url, _ = server
    answer = ask(url, SCENES[0])
    assert answer.status_code == 200
    expected = mini().caption(picture_of(SCENES[0]))
    assert answer.json()["choices"][0]["message"]["content"] == expected
    assert httpx.get(f"{url}/health", trust_env=False).json() == {"status": "ready"}
    assert httpx.get(f"{url}/nowhere", trust_env=False).status_code == 404
    assert httpx.post(url + PATH, json={}, trust_env=False).json()["error"]["param"]


def test_a_stream_comes_as_events(server) -> None:
    url, _ = server
    answer = ask(url, SCENES[0], stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("data: [DONE]\n\n")


def test_what_is_too_long_is_refused_before_it_has_come(server) -> None:
    url, _ = server
    with closing(HTTPConnection(url.removeprefix("http://"))) as connection:
        connection.putrequest("POST", PATH)
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(1 << 40))
        connection.endheaders()
        answer = connection.getresponse()
        assert answer.status == 413
        assert json.loads(answer.read())["error"]["code"] == "too_large"


def test_a_request_whose_replica_is_killed_is_asked_of_another(server) -> None:
    """Each is answered, by its successor, or is told with 503 to come again."""
    url, process = server
    expected = {n: ask(url, SCENES[n]).json()["choices"] for n in range(3)}
    begun = threading.Event()

    def client(number: int) -> list[httpx.Response]:
        answers = []
        for _ in range(4):
            answers.append(ask(url, SCENES[number % 3]))
            begun.set()
        return answers

    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(client, number) for number in range(6)]
        assert begun.wait(LIMIT)
        [victim] = replicas(process)
        os.kill(victim, signal.SIGKILL)
        found = [(n, answer) for n, future in enumerate(futures) for answer in future.result()]
    assert len(found) == 24
    for number, answer in found:
        if answer.status_code == 503:
            assert answer.json()["error"]["code"] == "not_ready"
            assert answer.headers["retry-after"]
        else:
            assert answer.status_code == 200
            assert answer.json()["choices"] == expected[number % 3]
    assert sum(answer.status_code == 200 for _, answer in found) > 12
    while replicas(process) == [victim]:
        time.sleep(0.1)


def test_no_request_is_lost_while_replicas_are_replaced() -> None:
    port = free_port()
    command = [sys.executable, "-m", "tests.serving.ray_deployments", str(port)]
    is_replaced = threading.Event()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None

    def deploy(max_batch: int) -> None:
        print(max_batch, file=process.stdin, flush=True)
        while (line := process.stdout.readline()) != "deployed\n":
            assert line, "the deployments ended"

    def client(number: int) -> list[httpx.Response]:
        answers = []
        while not is_replaced.is_set():
            answers.append(ask(f"http://127.0.0.1:{port}", SCENES[number]))
        return answers

    with ending(process, 3 * LIMIT):
        deploy(8)
        before = replicas(process)
        expected = [mini().caption(picture_of(scene)) for scene in SCENES]
        with ThreadPoolExecutor(3) as pool:
            futures = [pool.submit(client, number) for number in range(3)]
            try:
                deploy(4)
            finally:
                is_replaced.set()
            found = [future.result() for future in futures]
        assert not set(before) & set(replicas(process))
        for number, answers in enumerate(found):
            assert answers
            for answer in answers:
                assert answer.status_code == 200
                text = answer.json()["choices"][0]["message"]["content"]
                assert text == expected[number]
        process.stdin.close()
        assert process.wait(LIMIT) == 0
