"""The comparison: engines in turn, medians, ratios to targets, and the machine's own limits."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

from PIL import Image

from paliglass.checkpoints.folder import read_tensors
from paliglass.errors import PaliglassError
from paliglass.inspect.info import read_info
from workshop.peers.engines import ENGINES, PROMPT_TOKENS
from workshop.peers.gguf_file import write_gguf

OURS, PLAIN, THEIRS, LLAMA = ENGINES
# Bytes of a weight as an engine reads it, where not the file's; Q8_0 has a scale for 32 of them.
BYTES = {OURS: 1, LLAMA: 34 / 32}
BATCH = 8  # pictures of a batch
BATCH_TOKENS = 8
GIGABYTE = 1e9


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


@dataclass
class Measured:
    """What one engine did. Seconds, of each round; memory in bytes."""

    load: float = 0.0
    memory: int = 0
    first_token: list[float] = field(default_factory=list)
    each_token: list[float] = field(default_factory=list)
    answer: list[float] = field(default_factory=list)
    batch_each_token: list[float] = field(default_factory=list)

    def add(self, times: Sequence[float]) -> None:
        """An answer about one picture: the time of each token from the start."""
        self.first_token.append(times[0])
        self.each_token.append(between(times))
        self.answer.append(times[-1])

    def to_dict(self) -> dict[str, float]:
        """Medians, for JSON and tables."""
        found = {
            "load_s": self.load,
            "first_token_s": statistics.median(self.first_token),
            "tokens_per_s": 1 / statistics.median(self.each_token),
            "answer_s": statistics.median(self.answer),
            "memory_gb": self.memory / GIGABYTE,
        }
        if self.batch_each_token:
            found["batch_tokens_per_s"] = BATCH / statistics.median(self.batch_each_token)
        return {name: round(value, 4) for name, value in found.items()}


def between(times: Sequence[float]) -> float:
    """The median time from one token to the next."""
    return statistics.median(b - a for a, b in pairwise(times))


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


class _Process:
    """An engine at work; it may turn out not to be installed."""

    def __init__(self, name: str, folder: Path, threads: int, scratch: Path) -> None:
        self.name = name
        arguments = [name, str(folder), str(threads)]
        if name == LLAMA:
            arguments.append(str(_llamas_file(folder, scratch)))
        # A pipe that nobody reads would fill up.
        self.errors = TemporaryFile("w+")  # noqa: SIM115
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "workshop.peers.engines", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment,
        )
        answer = self._answer()
        if "missing" in answer:
            self.close()
            raise PaliglassError(answer["missing"])
        self.measured = Measured(load=answer.get("load", 0.0))

    def run(self, pictures: int, tokens: int) -> list[float]:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # that it is no more, the missing answer tells
            self.process.stdin.write(json.dumps({"pictures": pictures, "tokens": tokens}) + "\n")
            self.process.stdin.flush()
        answer = self._answer()
        if pictures == 1 and not self.measured.batch_each_token:  # a peak never falls again
            self.measured.memory = answer["memory"]
        times: list[float] = answer["times"]
        return times

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.communicate()
            with self.errors as errors:
                errors.seek(0)
                said = errors.read().strip().splitlines()
            code = self.process.returncode
            died = [signal.Signals(-code).name] if code < 0 else []
            reason = ", ".join(died + said[-1:]) or f"exit code {code}"
            raise PaliglassError(f"{self.name} ended: {reason}")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()


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
    at_work: list[_Process] = []
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
                engine = _Process(name, folder, threads, Path(scratch))
                running.callback(engine.close)
                at_work.append(engine)
                engine.run(1, 2)
        for number in range(rounds):
            for engine in at_work:
                if engine.name in missing:
                    continue
                progress(f"round {number + 1} of {rounds}: {engine.name}")
                with peer_may_fail(engine.name):
                    engine.measured.add(engine.run(1, tokens))
                    if engine.name == OURS:
                        times = engine.run(BATCH, BATCH_TOKENS)
                        engine.measured.batch_each_token.append(between(times))
    ran = {engine.name: engine.measured for engine in at_work if engine.name not in missing}
    return ran, missing


def shares(
    found: dict[str, Measured], folder: Path, limits: dict[str, float]
) -> dict[str, dict[str, float]]:
    """How much of this machine's limits each engine reaches; limits: what `machine` measured.

    A token reads the decoder and its head once. Before the first one, each number of the vision
    tower meets every patch, and each of the decoder, but for the head, every token of the prompt.
    llama.cpp, which is not given the picture, has no share there. Without bfloat16 instructions
    the limit of bfloat16 is float32's rate. Of a model that a cache holds, a token's share says
    little.
    """
    stored = next(read_tensors(folder))[2].element_size()
    info = read_info(folder)
    numbers, patches = info.parameters, info.config.num_image_tokens
    read = numbers["embedding"] + numbers["decoder"]
    operations = 2 * (
        numbers["embedding"]
        + numbers["decoder"] * (patches + PROMPT_TOKENS)
        + (numbers["vision_tower"] + numbers["projector"]) * patches
    )
    floats = limits["fp32_gop_per_s"]
    if stored == 2:
        floats = max(floats, limits["bf16_gop_per_s"])
    rates = {OURS: limits.get("int8_gop_per_s"), PLAIN: floats, THEIRS: floats}
    result: dict[str, dict[str, float]] = {}
    for name, measured in found.items():
        figures = measured.to_dict()
        token = read * BYTES.get(name, stored) / GIGABYTE / limits["read_gb_per_s"]
        result[name] = {"token_share": round(token * figures["tokens_per_s"], 3)}
        rate = rates.get(name)
        if rate:
            first = operations / GIGABYTE / rate
            result[name]["first_token_share"] = round(first / figures["first_token_s"], 3)
    return result


def ratios(found: dict[str, Measured]) -> dict[str, Ratio]:
    """The figures that have targets, as far as their engines ran."""
    figures = {name: engine.to_dict() for name, engine in found.items()}
    wanted: dict[str, tuple[str, str, str, float, bool]] = {
        "first token, int8 / transformers": (OURS, THEIRS, "first_token_s", 0.45, True),
        "tokens/s, int8 / transformers": (OURS, THEIRS, "tokens_per_s", 3.5, False),
        "tokens/s, bf16 / transformers": (PLAIN, THEIRS, "tokens_per_s", 1.8, False),
        "tokens/s, int8 / llama.cpp Q8_0": (OURS, LLAMA, "tokens_per_s", 1.0, False),
        "one answer, int8 / transformers": (OURS, THEIRS, "answer_s", 0.33, True),
        "load, bf16 / transformers": (PLAIN, THEIRS, "load_s", 1.0, True),
    }
    result = {
        name: Ratio(figures[ours][what] / figures[theirs][what], target, at_most)
        for name, (ours, theirs, what, target, at_most) in wanted.items()
        if ours in figures and theirs in figures
    }
    if OURS in figures:
        mine = figures[OURS]
        several = mine["batch_tokens_per_s"] / mine["tokens_per_s"]
        result["tokens/s, batch of 8 / one at a time, int8"] = Ratio(several, 3.0, False)
        result["memory, int8"] = Ratio(mine["memory_gb"], 3.6, True, "GB")
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


def machine(threads: int) -> dict[str, float]:
    """What this machine can do: GB/s read, and G multiplications and additions a second."""
    import torch

    from paliglass.fast.int8 import Int8Linear, Tokens, has_kernel

    torch.set_num_threads(threads)

    def best(work: Callable[[], object], rounds: int = 5) -> float:
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return min(times)

    numbers = torch.ones(1 << 28)  # 1 GB: no cache holds it
    found = {"read_gb_per_s": numbers.nbytes / best(numbers.sum) / GIGABYTE}
    del numbers
    rows, width = 256, 4096
    work = 2 * rows * width * width / GIGABYTE
    with torch.inference_mode():
        x = torch.randn(rows, width, dtype=torch.bfloat16)
        weight = torch.randn(width, width, dtype=torch.bfloat16)
        wide, wide_weight = x.float(), weight.float()
        found["bf16_gop_per_s"] = work / best(lambda: x @ weight.T)
        found["fp32_gop_per_s"] = work / best(lambda: wide @ wide_weight.T)
        if has_kernel():
            layer = Int8Linear.quantise(weight)
            layer.pack()
            tokens = Tokens.of(x)
            found["int8_gop_per_s"] = work / best(lambda: layer.product(tokens))
    return {name: round(value, 1) for name, value in found.items()}
