"""The command line in several processes: one speaks, all end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.helpers import Result, picture

import paliglass
from paliglass.cli.tasks import _answer

pytestmark = pytest.mark.slow  # each test starts processes that import torch

SOURCES = os.pathsep.join(
    [str(Path(paliglass.__file__).parents[1]), str(Path(__file__).parents[2])]
)
GUARD_SECONDS = 300  # nothing here waits for time to pass; this ends what hangs
LOST = "error: another of the processes has ended, or has not answered in time; "

# A process that, instead of its first token, meets its end.
ENDS = """
import os, signal, sys
from paliglass.cli import main
from paliglass.parallel import processes
from paliglass.parallel.tensor_parallel import _CausalLMPart

kind, *words = sys.argv[1:]
if kind == "SIGSTOP":
    processes.join(3)
if os.environ["RANK"] == "1":
    def end(*arguments):
        os.kill(os.getpid(), getattr(signal, kind))
    _CausalLMPart.logits = end
main(words)
"""


def environ(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": SOURCES, "OMP_NUM_THREADS": "1", **more}


def torchrun(*words: object) -> Result:
    """`paliglass` in two processes; what torchrun itself says stands in `err` too."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node", "2", "-m", "paliglass", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=GUARD_SECONDS,
        env=environ(),
    )
    return Result(done.returncode, done.stdout, done.stderr)


def errors(result: Result) -> list[str]:
    return [line for line in result.err.splitlines() if line.lower().startswith("error: ")]


def test_the_first_process_prints_and_writes_what_one_alone_does(
    cli: Callable[..., Result],
) -> None:
    for number, colour in enumerate(("red", "lime", "blue")):
        picture(f"data/{number}.png", colour)
    Path("data/3.png").write_bytes(b"no picture")
    words = ("caption", "--max-new-tokens", 6, "data")
    alone = cli(*words, "--out", "alone")
    both = torchrun(*words, "--out", "both")
    assert both.code == alone.code == 1  # for the picture that is none
    assert both.out == alone.out
    assert errors(both) == alone.err.splitlines()[:1] + errors(alone)[1:]
    results = [Path(name, "results.jsonl").read_text() for name in ("alone", "both")]
    assert results[0] == results[1] != ""
    Path("data/3.png").unlink()
    again = torchrun(*words, "--out", "both", "--resume")
    assert again.code == 0
    assert again.out == ""
    assert "all 3 pictures are in both/results.jsonl already" in again.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model", "nowhere/model"), "nowhere"),
        (("--quantize", "int8"), "cannot share a quantized model"),
        (("--nonsense",), "no such option"),
    ],
)
def test_what_ends_all_is_said_once(words: tuple[str, ...], said: str) -> None:
    picture("a.png")
    result = torchrun("caption", "a.png", *words)
    assert result.code != 0
    assert result.out == ""
    [error] = errors(result)
    assert said in error


def test_a_command_that_each_would_run_whole_is_refused_once() -> None:
    result = torchrun("convert", "mini", "copy")
    assert (result.code != 0, result.out) == (True, "")
    [error] = errors(result)
    assert "torchrun is for training" in error
    assert not Path("copy").exists()


def test_standard_input_has_one_reader() -> None:
    result = torchrun("caption", "-")
    assert result.code != 0
    assert "- is read by one process" in " ".join(result.err.split())


@pytest.mark.parametrize("kind", ["SIGKILL", "SIGSTOP"])
def test_a_process_that_dies_or_hangs_ends_the_other_with_one_line(kind: str) -> None:
    picture("a.png")
    Path("ends.py").write_text(ENDS)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    both = [
        subprocess.Popen(
            [sys.executable, "ends.py", kind, "caption", "a.png"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environ(
                **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            ),
        )
        for rank in range(2)
    ]
    try:
        out, err = both[0].communicate(timeout=GUARD_SECONDS)
    finally:
        both[1].kill()
        both[1].communicate()
    assert both[0].returncode == 1
    assert out == ""
    [line] = [line for line in err.splitlines() if not line.startswith("[")]  # Gloo's own warnings
    assert line.startswith(LOST)
    assert both[1].returncode == -signal.SIGKILL


def test_at_a_terminal_several_processes_run_the_same_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first alone has a terminal, perhaps: it must not take another way than the others."""
    taken: list[str] = []
    picture("a.png")
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "x", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr("paliglass.cli.tasks.run_job", lambda *_: taken.append("whole"))
    monkeypatch.setattr("paliglass.cli.tasks._stream", lambda *_: taken.append("streamed"))

    class Output:
        printed, out = "text", None

    _answer("caption", ["a.png"], "caption en", None, Output())  # type: ignore[arg-type]
    assert taken == ["whole"]
