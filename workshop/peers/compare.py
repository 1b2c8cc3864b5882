"""The comparison: engines in turn, medians, ratios to targets."""

from __future__ import annotations

import shutil
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
from unittest.mock import patch

import numpy as np
from PIL import Image

from paliglass import load
from paliglass.checkpoints.folder import load_model
from paliglass.checkpoints.saving import save_folder
from paliglass.errors import PaliglassError
from paliglass.fast import accelerate, available_methods
from paliglass.fast.threads import Team
from paliglass.generation import Request, run
from paliglass.inspect.bench import (
    BYTES,
    Engine,
    Measured,
    limit_shares,
    open_engine,
    rate_of,
    stored_as,
    weight_bytes,
)
from paliglass.inspect.info import read_info
from workshop.peers.engines import LLAMAS, OPENVINO, TRANSFORMERS
from workshop.peers.gguf_file import write_gguf

OURS, OURS_4, PLAIN = "paliglass int8", "paliglass int4", "paliglass"
METHODS = {OURS: "int8", OURS_4: "int4", PLAIN: None}
LLAMA, LLAMA_4 = LLAMAS
ENGINES = (*METHODS, TRANSFORMERS, *LLAMAS, OPENVINO)
# Bytes of a weight: 32 of them have a scale of two. Of Q4_0 the table is Q8_0, see `write_gguf`.
BLOCKS_OF_GGUF = {"Q8_0": 34 / 32, "Q4_0": 18 / 32}


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


def _llamas_file(folder: Path, scratch: Path, form: str) -> Path:
    """The decoder for llama.cpp, made here: what that takes is not the engine's time or memory."""
    if not (find_spec("llama_cpp") and find_spec("gguf")):
        raise PaliglassError("pip install llama-cpp-python gguf")
    path = scratch / f"decoder-{form}.gguf"
    try:
        write_gguf(folder, path, form)
    except Exception as error:  # a full disk, a package of another version: others go on
        raise PaliglassError(f"no GGUF: {error}") from error
    return path


def _open(name: str, folder: Path, threads: int, scratch: Path) -> Engine:
    if name in METHODS:
        return open_engine(name, folder, threads, METHODS[name])
    arguments = ["workshop.peers.engines", name, str(folder), str(threads)]
    if name in LLAMAS:
        arguments.append(str(_llamas_file(folder, scratch, LLAMAS[name])))
    return Engine(name, arguments, threads)


@contextmanager
def busy_loops(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """So many processes beside it that compute for ever: a machine that others use too."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield loops
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def compare(
    folder: Path,
    engines: Sequence[str] = ENGINES,
    rounds: int = 3,
    tokens: int = 20,
    threads: int = 2,
    progress: Callable[[str], object] = lambda what: None,
    busy: int = 0,
) -> tuple[dict[str, Measured], dict[str, str]]:
    """Runs every engine in turn, `rounds` times, after one round that is not counted.

    busy: how many `busy_loops` run beside the rounds.

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
            if name in METHODS:
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
        running.enter_context(busy_loops(busy))
        for number in range(rounds):
            for engine in at_work:
                if engine.name in missing:
                    continue
                progress(f"round {number + 1} of {rounds}: {engine.name}")
                with peer_may_fail(engine.name):
                    engine.measure(tokens, batch=engine.name in (OURS, OURS_4))
    ran = {engine.name: engine.measured for engine in at_work if engine.name not in missing}
    return ran, missing


def shares(
    found: dict[str, Measured], folder: Path, limits: dict[str, float]
) -> dict[str, dict[str, float]]:
    """How much of this machine's limits each engine reaches; limits: what was measured of them.

    llama.cpp and OpenVINO, which are not given the picture, have none at the first token.
    """
    stored = stored_as(folder)
    bytes_of = {name: weight_bytes(method or stored, folder) for name, method in METHODS.items()}
    bytes_of |= {name: _gguf_bytes(form, folder) for name, form in LLAMAS.items()}
    rates = {OURS: "int8", OURS_4: "int8", OPENVINO: "", **dict.fromkeys(LLAMAS, "")}
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


def _gguf_bytes(form: str, folder: Path) -> float:
    """Of a weight of the decoder and its table, the mean."""
    numbers = read_info(folder).parameters
    table, others = numbers["embedding"], numbers["decoder"]
    total = table * BLOCKS_OF_GGUF["Q8_0"] + others * BLOCKS_OF_GGUF[form]
    return total / (table + others)


def ratios(found: dict[str, Measured], reached: dict[str, dict[str, float]]) -> dict[str, Ratio]:
    """The figures that have targets, as far as their engines ran. reached: of `shares`."""
    figures = {name: engine.to_dict() for name, engine in found.items()}
    targets: dict[str, tuple[str, str, str, float, bool]] = {
        "first token, int8 / transformers": (OURS, TRANSFORMERS, "first_token_s", 0.45, True),
        "first token, int4 / transformers": (OURS_4, TRANSFORMERS, "first_token_s", 0.55, True),
        "first token, bf16 / transformers": (PLAIN, TRANSFORMERS, "first_token_s", 1.0, True),
        "tokens/s, int8 / transformers": (OURS, TRANSFORMERS, "tokens_per_s", 4.0, False),
        "tokens/s, int4 / transformers": (OURS_4, TRANSFORMERS, "tokens_per_s", 7.0, False),
        "tokens/s, bf16 / transformers": (PLAIN, TRANSFORMERS, "tokens_per_s", 1.8, False),
        "tokens/s, int8 / llama.cpp Q8_0": (OURS, LLAMA, "tokens_per_s", 1.15, False),
        "tokens/s, int4 / llama.cpp Q4_0": (OURS_4, LLAMA_4, "tokens_per_s", 1.0, False),
        "one answer, int8 / transformers": (OURS, TRANSFORMERS, "answer_s", 0.33, True),
        "load, bf16 / transformers": (PLAIN, TRANSFORMERS, "load_s", 1.0, True),
    }
    result = {
        name: Ratio(figures[ours][what] / figures[theirs][what], target, at_most)
        for name, (ours, theirs, what, target, at_most) in targets.items()
        if ours in figures and theirs in figures
    }
    for name, share, memory in ((OURS, 0.9, 3.6), (OURS_4, 0.8, 2.3)):
        if name not in figures:
            continue
        own, method = figures[name], METHODS[name]
        several = own["batch_tokens_per_s"] / own["tokens_per_s"]
        token = reached[name]["token_share"]
        result[f"tokens/s, batch of 8 / one at a time, {method}"] = Ratio(several, 6.0, False)
        result[f"a token, {method}, of the limit"] = Ratio(token, share, False)
        result[f"load, {method}"] = Ratio(own["load_s"], 10.0, True, "s")
        result[f"memory, {method}"] = Ratio(own["memory_gb"], memory, True, "GB")
    return result


def saved_loads(folder: Path, threads: int) -> dict[str, Ratio]:
    """How long folders that are quantized already take to load, just written and so cached."""
    result = {}
    with TemporaryDirectory() as scratch:
        for method in available_methods():
            model = load_model(folder, "cpu", accelerate=accelerate, quantize=method)
            save_folder(model, saved := Path(scratch) / method)
            del model
            engine = open_engine(method, saved, threads)
            result[f"load, saved {method}"] = Ratio(engine.measured.load, 1.5, True, "s")
            engine.close()
            shutil.rmtree(saved)
    return result


def python_between_tokens(pictures: int = 20) -> dict[str, Ratio]:
    """What a greedy token of mini takes in the loop beyond its compiled functions, ms."""
    if "int4" not in available_methods():
        return {}
    model = load("mini", device="cpu", quantize="int4")
    inside, beyond = 0.0, []
    run_team = Team.run

    def timed(team: Team, *arguments: Any) -> None:
        nonlocal inside
        start = time.perf_counter()
        run_team(team, *arguments)
        inside += time.perf_counter() - start

    with patch.object(Team, "run", timed):
        for number in range(pictures):
            noise = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
            request = Request("caption en", [model.processor.prepare(Image.fromarray(noise))])
            before = None
            for _ in run(model.model, model.processor, [request]):
                now = time.perf_counter()
                if before is not None:
                    beyond.append(now - before - inside)
                before, inside = now, 0.0
    return {"Python between two tokens": Ratio(1e3 * statistics.median(beyond), 0.5, True, "ms")}


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
