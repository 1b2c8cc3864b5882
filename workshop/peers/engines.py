"""The engines that are compared, each in a process of its own that answers JSON lines.

    python -m workshop.peers.engines "paliglass int8" FOLDER THREADS [GGUF]

All run the same work on the same weights: pictures of the model's size with a prompt of eight
tokens, then so many greedy tokens, whatever they are (the weights may be random). A process first
says how long loading took, then answers each `{"pictures": 1, "tokens": 20}` with the seconds from
the start to every token, and with its peak memory.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPT_TOKENS = 8
Run = Callable[[int, int], list[float]]  # pictures, tokens → seconds from the start to each token

ENGINES = ("paliglass int8", "paliglass", "transformers", "llama.cpp Q8_0")


def inputs(config: Any, pictures: int, dtype: Any) -> dict[str, Any]:
    """A batch as a processor makes it, of noise."""
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


def _paliglass(folder: Path, quantize: str | None) -> Run:
    from paliglass.checkpoints.folder import load_model
    from paliglass.fast import accelerate
    from workshop.greedy import greedy

    model = load_model(folder, "cpu", accelerate=accelerate, quantize=quantize)

    def run(pictures: int, tokens: int) -> list[float]:
        batch = inputs(model.config, pictures, model.dtype)
        start = time.perf_counter()
        return [time.perf_counter() - start for _ in greedy(model, batch, tokens)]

    return run


def _transformers(folder: Path) -> Run:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    model = transformers.PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype="auto")
    model.generation_config.eos_token_id = None

    @torch.inference_mode()
    def run(pictures: int, tokens: int) -> list[float]:
        batch = inputs(model.config, pictures, model.dtype)
        times: list[float] = []

        def clock(ids: Any, scores: Any, **_: Any) -> Any:
            times.append(time.perf_counter() - start)
            return torch.zeros(len(ids), dtype=torch.bool)

        start = time.perf_counter()
        model.generate(
            **batch,
            max_new_tokens=tokens,
            do_sample=False,
            stopping_criteria=transformers.StoppingCriteriaList([clock]),
        )
        return times

    return run


def _llama(folder: Path, threads: int, gguf: Path) -> Run:
    """The decoder alone, as GGUF: the picture's tokens are so many words."""
    import llama_cpp

    from paliglass.checkpoints.folder import read_config

    config = read_config(folder)
    count = config.num_image_tokens + PROMPT_TOKENS
    model = llama_cpp.Llama(
        str(gguf),
        n_ctx=count + 512,
        n_batch=count,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )

    def run(pictures: int, tokens: int) -> list[float]:
        times: list[float] = []
        model.reset()
        start = time.perf_counter()
        model.eval(range(100, 100 + count))
        for _ in range(tokens):
            token = model.sample(temp=0.0)
            times.append(time.perf_counter() - start)
            model.eval([token])
        return times

    return run


def open_engine(name: str, folder: Path, threads: int, gguf: Path | None = None) -> Run:
    """Loads a model into one of `ENGINES`. Raises ImportError where that is not installed.

    gguf: the decoder's file for llama.cpp, which `write_gguf` made.
    """
    if name == "llama.cpp Q8_0":
        if gguf is None:
            raise ValueError("llama.cpp needs the decoder as GGUF")
        return _llama(folder, threads, gguf)
    import torch

    torch.set_num_threads(threads)
    if name == "transformers":
        return _transformers(folder)
    return _paliglass(folder, "int8" if name.endswith("int8") else None)


def peak_memory() -> int:
    """The most bytes this process ever had in memory, mapped files among them."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says here begins with the parent's
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Loads, and answers requests until there are no more."""
    name, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    gguf = Path(sys.argv[4]) if len(sys.argv) > 4 else None
    answers, sys.stdout = sys.stdout, sys.stderr
    # What is imported is not loading's.
    if name == "transformers":
        import transformers

        _ = transformers.PaliGemmaForConditionalGeneration
    elif name != "llama.cpp Q8_0":
        import paliglass.checkpoints.folder
        import paliglass.generation  # noqa: F401

    def say(**found: Any) -> None:
        print(json.dumps(found), file=answers, flush=True)

    start = time.perf_counter()
    try:
        run = open_engine(name, folder, threads, gguf)
    except ImportError as error:
        say(missing=str(error))
        return
    say(load=time.perf_counter() - start)
    for line in sys.stdin:
        asked = json.loads(line)
        say(times=run(asked["pictures"], asked["tokens"]), memory=peak_memory())


if __name__ == "__main__":
    main()
