"""The comparison: engines in turn, medians, ratios to targets."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from paliglass.errors import PaliglassError
from paliglass.inspect.bench import (
    BYTES,
    Engine,
    Measured,
    limit_shares,
    open_engine,
    rate_of,
    stored_as,
)
from workshop.peers.engines import LLAMA, TRANSFORMERS
from workshop.peers.gguf_file import write_gguf

OURS, PLAIN = "paliglass int8", "paliglass"
ENGINES = (OURS, PLAIN, TRANSFORMERS, LLAMA)
Q8_0 = 34 / 32  # bytes of a weight: 32 of them have a scale of two


@dataclass(frozen=True)
class Ratio:
    """A figure that has a target. at_most: whether it is to be below it, or above."""

    value: float
    target: float
    at_most: bool
    unit: str = "×"

    @property
    def met(self) -> bool:
        return self.value <= self.target if self.at_most else self.value >= self.target

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        sign = "≤" if self.at_most else "≥"
        return {"value": round(self.value, 3), "target": f"{sign} {self.target}", "met": self.met}


def _llamas_file(folder: Path, scratch: Path) -> Path:
    """The decoder for llama.cpp, made here: what that takes is not the engine's time or memory."""
    if not (find_spec("llama_cpp") and find_spec("gguf")):
        raise PaliglassError("pip install llama-cpp-python gguf")
    path = scratch / "decoder-q8_0.gguf"
    try:
        write_gguf(folder, path)
    except Exception as error:  # a full disk, a package of another version: others go on
        raise PaliglassError(f"no GGUF: {error}") from error
    return path


def _open(name: str, folder: Path, threads: int, scratch: Path) -> Engine:
    if name in (OURS, PLAIN):
        return open_engine(name, folder, threads, "int8" if name == OURS else None)
    arguments = ["workshop.peers.engines", name, str(folder), str(threads)]
    if name == LLAMA:
        arguments.append(str(_llamas_file(folder, scratch)))
    return Engine(name, arguments, threads)


def compare(
    folder: Path,
    engines: Sequence[str] = ENGINES,
    rounds: int = 3,
    tokens: int = 20,
    threads: int = 2,
    progress: Callable[[str], object] = lambda what: None,
) -> tuple[dict[str, Measured], dict[str, str]]:
    """Runs every engine in turn, `rounds` times, after one round that is not counted.

    Returns what was measured, and of engines that could not run to the end, why.

    Raises PaliglassError where one of our own fails.
    """
    at_work: list[Engine] = []
    missing: dict[str, str] = {}

    @contextmanager
    def peer_may_fail(name: str) -> Iterator[None]:
        try:
            yield
        except PaliglassError as error:
            if name in (OURS, PLAIN):
                raise
            missing[name] = str(error).removeprefix(f"{name} ")

    with TemporaryDirectory() as scratch, ExitStack() as running:
        for name in engines:
            progress(f"loading into {name}")
            with peer_may_fail(name):
                engine = _open(name, folder, threads, Path(scratch))
                running.callback(engine.close)
                at_work.append(engine)
                engine.answer(1, 2)
        for number in range(rounds):
            for engine in at_work:
                if engine.name in missing:
                    continue
                progress(f"round {number + 1} of {rounds}: {engine.name}")
                with peer_may_fail(engine.name):
                    engine.measure(tokens, batch=engine.name == OURS)
    ran = {engine.name: engine.measured for engine in at_work if engine.name not in missing}
    return ran, missing


def shares(
    found: dict[str, Measured], folder: Path, limits: dict[str, float]
) -> dict[str, dict[str, float]]:
    """How much of this machine's limits each engine reaches; limits: what was measured of them.

    llama.cpp, which is not given the picture, has no share at the first token.
    """
    stored = stored_as(folder)
    bytes_of = {OURS: 1.0, LLAMA: Q8_0}
    rates = {OURS: "int8", LLAMA: ""}
    return {
        name: limit_shares(
            measured,
            folder,
            limits,
            bytes_of.get(name, BYTES[stored]),
            rates.get(name, rate_of(stored, limits)),
        )
        for name, measured in found.items()
    }


def ratios(found: dict[str, Measured]) -> dict[str, Ratio]:
    """The figures that have targets, as far as their engines ran."""
    figures = {name: engine.to_dict() for name, engine in found.items()}
    targets: dict[str, tuple[str, str, str, float, bool]] = {
        "first token, int8 / transformers": (OURS, TRANSFORMERS, "first_token_s", 0.45, True),
        "tokens/s, int8 / transformers": (OURS, TRANSFORMERS, "tokens_per_s", 3.5, False),
        "tokens/s, bf16 / transformers": (PLAIN, TRANSFORMERS, "tokens_per_s", 1.8, False),
        "tokens/s, int8 / llama.cpp Q8_0": (OURS, LLAMA, "tokens_per_s", 1.0, False),
        "one answer, int8 / transformers": (OURS, TRANSFORMERS, "answer_s", 0.33, True),
        "load, bf16 / transformers": (PLAIN, TRANSFORMERS, "load_s", 1.0, True),
    }
    result = {
        name: Ratio(figures[ours][what] / figures[theirs][what], target, at_most)
        for name, (ours, theirs, what, target, at_most) in targets.items()
        if ours in figures and theirs in figures
    }
    if OURS in figures:
        int8 = figures[OURS]
        several = int8["batch_tokens_per_s"] / int8["tokens_per_s"]
        result["tokens/s, batch of 8 / one at a time, int8"] = Ratio(several, 3.0, False)
        result["memory, int8"] = Ratio(int8["memory_gb"], 3.6, True, "GB")
    return result


def start_up(rounds: int = 5) -> dict[str, Ratio]:
    """How long a cold process takes beyond importing torch, in turn; seconds."""
    taken: dict[str, list[float]] = defaultdict(list)
    with TemporaryDirectory() as folder:
        picture = Path(folder) / "grey.png"
        Image.new("RGB", (640, 480), "grey").save(picture)
        commands = {
            "torch": ["-c", "import torch"],
            "package": ["-c", "import torch, paliglass"],
            "caption": ["-m", "paliglass", "caption", str(picture), "--model", "mini"],
        }
        for _ in range(rounds):
            for name, arguments in commands.items():
                start = time.perf_counter()
                subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
                taken[name].append(time.perf_counter() - start)
    torch, package, caption = (statistics.median(taken[name]) for name in commands)
    return {
        "import, beyond torch's": Ratio(package - torch, 0.15, True, "s"),
        "cold caption of mini, beyond torch's import": Ratio(caption - torch, 1.0, True, "s"),
    }
