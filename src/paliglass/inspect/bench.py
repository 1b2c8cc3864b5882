"""How fast and how large: a model in processes of their own, beside the machine's own limits.

An engine answers pictures of the model's size with a prompt of eight tokens, then so many greedy
tokens, whatever they are (weights may be random)::

    python -m paliglass.inspect.bench FOLDER THREADS [int8]

Such a process first says how long loading took, then answers each line of
`{"pictures": 1, "tokens": 20}` with the seconds from the start to every token, and with its peak
memory. Several engines work in turn, so that what else the machine does meets all of them.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from paliglass.errors import PaliglassError

if TYPE_CHECKING:
    from torch import Tensor

    from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration

__all__ = [
    "BYTES",
    "PROMPT_TOKENS",
    "Answer",
    "Engine",
    "Measured",
    "bench",
    "between",
    "greedy",
    "limit_shares",
    "machine_limits",
    "noise_batch",
    "open_engine",
    "peak_memory",
    "rate_of",
    "serve",
    "stored_as",
    "weight_bytes",
]

PROMPT_TOKENS = 8
BATCH, BATCH_TOKENS = 8, 8  # pictures of a batch, and its tokens
GIGABYTE = 1e9
BYTES = {"int8": 1, "bfloat16": 2, "float16": 2, "float32": 4}
Answer = Callable[[int, int], list[float]]  # pictures, tokens → seconds from the start to each


def noise_batch(config: Any, pictures: int, dtype: Any) -> dict[str, Any]:
    """A batch as a processor makes it, of noise. config: ours, or transformers'."""
    import torch

    generator = torch.Generator().manual_seed(0)
    side = config.vision_config.image_size
    count = (side // config.vision_config.patch_size) ** 2
    words = torch.arange(PROMPT_TOKENS) + 100
    row = torch.cat((torch.full((count,), config.image_token_index), words))
    ids = row.expand(pictures, -1).clone()
    pixels = torch.rand(pictures, 3, side, side, generator=generator) * 2 - 1
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
        "pixel_values": pixels.to(dtype),
    }


def greedy(
    model: PaliGemmaForConditionalGeneration, batch: Mapping[str, Tensor], steps: int
) -> Iterator[Tensor]:
    """The likeliest next tokens of a processor's batch, B at each step, whatever they end.

    The bare loop on tensors: no rows come or go, as in `generation`.
    """
    import torch

    with torch.inference_mode():
        prompt = {name: batch[name] for name in ("input_ids", "pixel_values", "attention_mask")}
        rows, length = prompt["input_ids"].shape
        cache = model.new_cache(rows, length + steps)
        last = model.prefill(**prompt, kv_cache=cache, last_only=True)
        for step in range(steps):
            ids = model.language_model.logits(last).argmax(-1)
            yield ids
            if step + 1 < steps:
                last = model.extend(ids[:, None], cache)[:, -1]


def load_engine(folder: Path, threads: int, quantize: str | None = None) -> Answer:
    """Loads a model onto the CPU, as it is or quantized."""
    import torch

    from paliglass.checkpoints.folder import load_model
    from paliglass.fast import accelerate

    torch.set_num_threads(threads)
    model = load_model(folder, "cpu", accelerate=accelerate, quantize=quantize)

    def answer(pictures: int, tokens: int) -> list[float]:
        batch = noise_batch(model.config, pictures, model.dtype)
        start = time.perf_counter()
        return [time.perf_counter() - start for _ in greedy(model, batch, tokens)]

    return answer


def serve(load: Callable[[], Answer]) -> None:
    """Loads an engine in this process, and answers requests until there are no more."""
    answers, sys.stdout = sys.stdout, sys.stderr

    def tell(**found: Any) -> None:
        print(json.dumps(found), file=answers, flush=True)

    start = time.perf_counter()
    try:
        answer = load()
    except ImportError as error:
        tell(missing=str(error))
        return
    tell(load=time.perf_counter() - start)
    for line in sys.stdin:
        asked = json.loads(line)
        tell(times=answer(asked["pictures"], asked["tokens"]), memory=peak_memory())


def peak_memory() -> int:
    """The most bytes this process ever had in memory, mapped files among them."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says here begins with the parent's
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


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
        """An answer about one picture: the time of each token from the start.

        Of an engine that reads prompts alone, the first token's.
        """
        self.first_token.append(times[0])
        if len(times) > 1:
            self.each_token.append(between(times))
            self.answer.append(times[-1])

    def to_dict(self) -> dict[str, float]:
        """Medians, for JSON and tables."""
        found = {
            "load_s": self.load,
            "first_token_s": statistics.median(self.first_token),
            "memory_gb": self.memory / GIGABYTE,
        }
        if self.each_token:
            found["tokens_per_s"] = 1 / statistics.median(self.each_token)
            found["answer_s"] = statistics.median(self.answer)
        if self.batch_each_token:
            found["batch_tokens_per_s"] = BATCH / statistics.median(self.batch_each_token)
        return {name: round(value, 4) for name, value in found.items()}


def between(times: Sequence[float]) -> float:
    """The median time from one token to the next."""
    return statistics.median(b - a for a, b in pairwise(times))


class Engine:
    """A process that serves an engine.

    Raises PaliglassError where it is not installed, or ends.
    """

    def __init__(self, name: str, arguments: Sequence[str], threads: int) -> None:
        self.name = name
        # A pipe that nobody reads would fill up.
        self.errors = TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        found = self._read()
        if "missing" in found:
            self.close()
            raise PaliglassError(found["missing"])
        self.measured = Measured(load=found.get("load", 0.0))

    def answer(self, pictures: int, tokens: int) -> list[float]:
        """Seconds from the start to each token."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # that it is no more, the missing answer tells
            self.process.stdin.write(json.dumps({"pictures": pictures, "tokens": tokens}) + "\n")
            self.process.stdin.flush()
        found = self._read()
        if pictures == 1 and not self.measured.batch_each_token:  # a peak never falls again
            self.measured.memory = found["memory"]
        times: list[float] = found["times"]
        return times

    def measure(self, tokens: int, batch: bool) -> None:
        """A round: an answer of so many tokens about a picture, and some of a batch's tokens."""
        self.measured.add(self.answer(1, tokens))
        if batch:
            self.measured.batch_each_token.append(between(self.answer(BATCH, BATCH_TOKENS)))

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.communicate()
            with self.errors as errors:
                errors.seek(0)
                last_words = errors.read().strip().splitlines()[-1:]
            code = self.process.returncode
            died = [signal.Signals(-code).name] if code < 0 else []
            reason = ", ".join(died + last_words) or f"exit code {code}"
            raise PaliglassError(f"{self.name} ended: {reason}")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def open_engine(name: str, folder: Path, threads: int, quantize: str | None = None) -> Engine:
    """The engine of this package at work; name: for tables and errors."""
    arguments = ["paliglass.inspect.bench", str(folder), str(threads)]
    return Engine(name, arguments + ([quantize] if quantize else []), threads)


def bench(
    folder: Path,
    rounds: int = 3,
    tokens: int = 20,
    threads: int = 2,
    progress: Callable[[str], object] = lambda what: None,
) -> dict[str, Measured]:
    """A model as it is stored, in int8, and where it can be had in int4, in turn.

    A first round is not counted.

    Raises PaliglassError where a process ends, as for want of memory.
    """
    from paliglass.fast import METHODS, available_methods

    engines: list[Engine] = []
    try:
        stored = stored_as(folder)
        methods = available_methods() if stored not in METHODS else ()
        ways: list[tuple[str, str | None]] = [(stored, None), *((name, name) for name in methods)]
        for name, quantize in ways:
            progress(f"loading, {name}")
            engines.append(open_engine(name, folder, threads, quantize))
            engines[-1].answer(1, 2)
        for number in range(rounds):
            for engine in engines:
                progress(f"round {number + 1} of {rounds}, {engine.name}")
                engine.measure(tokens, batch=True)
    finally:
        for engine in engines:
            engine.close()
    return {engine.name: engine.measured for engine in engines}


def stored_as(folder: Path) -> str:
    """The dtype of a checkpoint's first tensor, "bfloat16"; "int8" or "int4" where it is that."""
    from paliglass.checkpoints.folder import quantization, read_tensors

    return quantization(folder) or str(next(read_tensors(folder))[2].dtype).removeprefix("torch.")


def machine_limits(threads: int) -> dict[str, float]:
    """What this machine can do: GB/s read, and G multiplications and additions a second."""
    import torch

    from paliglass.fast import accelerate

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
        layer = torch.nn.Sequential(torch.nn.Linear(width, width, bias=False, dtype=x.dtype))
        accelerate(layer, "int8")  # what comes in is rounded at each product
        found["int8_gop_per_s"] = work / best(lambda: layer(x))
    return {name: round(value, 1) for name, value in found.items()}


def weight_bytes(name: str, folder: Path) -> float:
    """Of a weight of the decoder, as a dtype or a method stores it: in int4 the mean."""
    from paliglass.inspect.info import read_info

    if name != "int4":
        return BYTES[name]
    info = read_info(folder)
    numbers = info.parameters["embedding"] + info.parameters["decoder"]
    return 1 - (info.memory["int8"] - info.memory["int4"]) / numbers


def limit_shares(
    measured: Measured, folder: Path, limits: dict[str, float], weight_bytes: float, rate: str
) -> dict[str, float]:
    """How much of this machine's limits an engine reaches.

    A token reads the decoder and its head once. Before the first one, each number of the vision
    tower meets every patch, and each of the decoder, but for the head, every token of the prompt.
    Of a model that a cache holds, a token's share says little.

    Args:
        limits: what `machine_limits` found.
        weight_bytes: of a weight as the engine reads it.
        rate: which limit it multiplies by: "fp32", "bf16" or "int8", or "" to leave that out.
    """
    from paliglass.inspect.info import read_info

    info = read_info(folder)
    numbers, patches = info.parameters, info.config.num_image_tokens
    decoder = numbers["embedding"] + numbers["decoder"]
    figures = measured.to_dict()
    token = decoder * weight_bytes / GIGABYTE / limits["read_gb_per_s"]
    shares = {}
    if "tokens_per_s" in figures:
        shares["token_share"] = round(token * figures["tokens_per_s"], 3)
    if f"{rate}_gop_per_s" in limits:
        operations = 2 * (
            numbers["embedding"]
            + numbers["decoder"] * (patches + PROMPT_TOKENS)
            + (numbers["vision_tower"] + numbers["projector"]) * patches
        )
        first = operations / GIGABYTE / limits[f"{rate}_gop_per_s"]
        shares["first_token_share"] = round(first / figures["first_token_s"], 3)
    return shares


def rate_of(dtype: str, limits: dict[str, float]) -> str:
    """Which limit weights of a dtype meet; those of 16 bits are widened where that is faster."""
    if dtype in ("int8", "int4", "float32"):
        return "fp32" if dtype == "float32" else "int8"
    return max(("bf16", "fp32"), key=lambda rate: limits[f"{rate}_gop_per_s"])


def main() -> None:
    """Serves this package's engine: folder, threads, and perhaps "int8"."""
    folder, threads, quantize = Path(sys.argv[1]), int(sys.argv[2]), (*sys.argv[3:], None)[0]
    # What is imported is not loading's.
    import paliglass.checkpoints.folder
    import paliglass.fast  # noqa: F401

    serve(lambda: load_engine(folder, threads, quantize))


if __name__ == "__main__":
    main()
