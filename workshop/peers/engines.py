"""The peers' engines, each in a process of its own that answers JSON lines (`inspect.bench`).

python -m workshop.peers.engines transformers FOLDER THREADS
python -m workshop.peers.engines "OpenVINO int8" FOLDER THREADS
python -m workshop.peers.engines "llama.cpp Q8_0" FOLDER THREADS GGUF
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from paliglass.inspect.bench import PROMPT_TOKENS, Answer, noise_batch, serve

TRANSFORMERS, OPENVINO = "transformers", "OpenVINO int8"
LLAMAS = {"llama.cpp Q8_0": "Q8_0", "llama.cpp Q4_0": "Q4_0"}  # and their forms of GGUF


def _transformers(folder: Path) -> Answer:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    model = transformers.PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype="auto")
    model.generation_config.eos_token_id = None

    @torch.inference_mode()
    def answer(pictures: int, tokens: int) -> list[float]:
        batch = noise_batch(model.config, pictures, model.dtype)
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

    return answer


def _llama(folder: Path, threads: int, gguf: Path) -> Answer:
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

    def answer(pictures: int, tokens: int) -> list[float]:
        times: list[float] = []
        model.reset()
        start = time.perf_counter()
        model.eval(range(100, 100 + count))
        for _ in range(tokens):
            token = model.sample(temp=0.0)
            times.append(time.perf_counter() - start)
            model.eval([token])
        return times

    return answer


def load_engine(name: str, folder: Path, threads: int, gguf: Path | None = None) -> Answer:
    """Loads a model into a peer's engine. Raises ImportError where that is not installed.

    gguf: the decoder's file for llama.cpp, which `write_gguf` made.
    """
    if name == OPENVINO:
        from workshop.peers.openvino_decoder import load_prompts

        return load_prompts(folder, threads)
    if name in LLAMAS:
        if gguf is None:
            raise ValueError("llama.cpp needs the decoder as GGUF")
        return _llama(folder, threads, gguf)
    import torch

    torch.set_num_threads(threads)
    return _transformers(folder)


def main() -> None:
    """Serves one of them."""
    name, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    gguf = Path(sys.argv[4]) if len(sys.argv) > 4 else None
    # Peers' threads wait for each other as they do for peers' users.
    os.environ.pop("GOMP_SPINCOUNT", None)
    if name == TRANSFORMERS:  # what is imported is not loading's
        import transformers

        _ = transformers.PaliGemmaForConditionalGeneration
    serve(lambda: load_engine(name, folder, threads, gguf))


if __name__ == "__main__":
    main()
