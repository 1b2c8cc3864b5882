"""`paliglass serve` as a process: what it prints, how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from tests.serving.helpers import GUARD_SECONDS, chat, noise_address

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def serving(*options: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "paliglass", "serve", "--port", str(port), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert re.match(r"mini on http://127\.0\.0\.1:\d+ ", line), line
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, timeout=GUARD_SECONDS, trust_env=False) as client:
            while True:
                try:
                    if client.get("/health").status_code == 200:
                        break
                except httpx.ConnectError:
                    pass
                assert process.poll() is None
            yield process, client
    finally:
        process.kill()
        process.communicate()


LONG = chat("caption en", noise_address(), stream=True, n=8, temperature=2, top_k=3000)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_the_answers_under_way(number: signal.Signals) -> None:
    with serving() as (process, client):
        with client.stream("POST", "/v1/chat/completions", json=LONG) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(number)
            rest = list(lines)
        assert rest[-2] == "data: [DONE]"
        assert process.wait(GUARD_SECONDS) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_second_signal_ends_it_at_once() -> None:
    with (
        serving("--max-batch", "1") as (process, client),
        client.stream("POST", "/v1/chat/completions", json=LONG) as answer,
    ):
        next(answer.iter_lines())
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        assert process.wait(GUARD_SECONDS) in (128 + signal.SIGINT, 128 + signal.SIGTERM)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--model", "no-such-folder/here"], "no-such-folder"),
        (["--embedding-model", "no-such-folder/here"], "no-such-folder"),
        (["--api-key-file", "EMPTY"], "holds no key"),
        (
            ["--port", "TAKEN"],
            r"port \d+, cannot be opened \([Aa]ddress already in use\); choose .*",
        ),
    ],
)
def test_what_cannot_be_served_is_one_line(options: list[str], match: str, tmp_path: Path) -> None:
    empty = tmp_path / "keys"
    empty.write_text("\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        named = {"EMPTY": str(empty), "TAKEN": str(taken.getsockname()[1])}
        words = [named.get(word, word) for word in options]
        port = [] if "TAKEN" in options else ["--port", str(free_port())]
        done = subprocess.run(
            [sys.executable, "-m", "paliglass", "serve", *words, *port],
            capture_output=True,
            text=True,
            timeout=GUARD_SECONDS,
        )
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"error: .*{match}.*\n", done.stderr)
    assert "unexpected" not in done.stderr, done.stderr
