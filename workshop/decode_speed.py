"""How fast the compiled decoder runs, and how near it comes to what memory gives.

    python -m workshop.decode_speed --method int4 --rows 1 8 --rounds 9

A decoder of a published size with random weights, packed from one random matrix a shape. Steps
and plain reading of the same bytes by the same threads alternate; medians and their ratio are
printed, and how long quantizing took.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch

from paliglass.config import PRESETS, GemmaConfig
from paliglass.fast import kernels
from paliglass.fast.decode import Decoder
from paliglass.fast.instructions import fetch_add
from paliglass.fast.matrix import PackedMatrix, bits_of, quantize
from paliglass.fast.threads import team
from paliglass.layers.kv_cache import KVCache
from paliglass.modeling_gemma import GemmaForCausalLM

CHUNK = 1 << 20  # bytes that a thread reads at once


@kernels.entry
def read(thread: int, threads: int, sync: int, job: int) -> None:
    """Reads memory. job: how many pieces, where their addresses and sizes stand, a sum a thread."""
    total = 0
    for i in range(kernels.field(job, 0)):
        start = kernels.field(kernels.field(job, 8) + 8 * i, 0)
        size = kernels.field(kernels.field(job, 16) + 8 * i, 0)
        while True:
            chunk = kernels.next_task(sync, i) * CHUNK
            if chunk >= size:
                break
            for at in range(start + chunk, start + min(size, chunk + CHUNK) - 63, 64):
                total += kernels.field(at, 0)
    fetch_add((kernels.field(job, 24) + 8 * thread, total))
    kernels.wait_for_all(sync, threads)


def random_decoder(config: GemmaConfig, method: str) -> tuple[Decoder, float, float, int]:
    """A decoder, the seconds and CPU seconds that quantizing took, the weights it quantized."""
    with torch.device("meta"):
        plain = GemmaForCausalLM(config)
    floats: dict[torch.Size, torch.Tensor] = {}
    matrices: dict[str, PackedMatrix] = {}
    norms, seconds, cpu, numbers = {}, 0.0, 0.0, 0
    quantize(torch.ones(64, 64), 8)  # compiles
    for full_name, parameter in plain.model.named_parameters():
        name = full_name.removesuffix(".weight")
        if parameter.ndim == 1:
            norms[name] = torch.zeros(parameter.shape)
            continue
        if parameter.shape not in floats:
            floats[parameter.shape] = torch.randn(parameter.shape, dtype=torch.bfloat16).div_(
                parameter.shape[1] ** 0.5
            )
        bits = 4 if method == "int4-all" else bits_of(f"language_model.model.{name}", method)
        start, cpu_start = time.perf_counter(), time.process_time()
        matrices[name] = quantize(floats[parameter.shape], bits)
        seconds += time.perf_counter() - start
        cpu += time.process_time() - cpu_start
        numbers += parameter.numel()
        if name == "embed_tokens":
            floats.clear()
    return Decoder(config, matrices, norms, torch.bfloat16), seconds, cpu, numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="paligemma-3b-224")
    parser.add_argument("--method", choices=("int8", "int4", "int4-all"), default="int8")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--context", type=int, default=280)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    config = PRESETS[options.preset].text_config
    decoder, seconds, cpu, numbers = random_decoder(config, options.method)
    print(f"quantizing {numbers / 1e9:.2f} G weights: {seconds:.1f} s, {cpu:.1f} s of CPU")
    matrices = decoder.matrices
    places = torch.tensor(
        [[m.weights.data_ptr() for m in matrices], [m.weights.nbytes for m in matrices]]
    )
    sums = torch.zeros(1024, dtype=torch.int64)
    job = [len(matrices), places[0].data_ptr(), places[1].data_ptr(), sums.data_ptr()]
    caches = {
        rows: KVCache(config, rows, options.context + 128, dtype=torch.bfloat16)
        for rows in options.rows
    }
    for cache in caches.values():
        cache.reserve(torch.ones(len(cache), options.context, dtype=torch.bool))
    times: dict[int, list[float]] = {key: [] for key in (0, *options.rows)}  # 0: reading
    for i in range(options.rounds + 1):
        for rows in times:
            ids = torch.full((rows, 1), 7)
            start = time.perf_counter()
            if rows == 0:
                team().run(read, len(matrices), np.array(job, dtype=np.int64), decoder.nbytes)
            else:
                decoder.step(ids, caches[rows])
            if i:
                times[rows].append(time.perf_counter() - start)
    reading = statistics.median(times[0])
    rate = decoder.nbytes / reading / 1e9
    print(f"{decoder.nbytes / 1e9:.2f} GB, read in {1e3 * reading:.1f} ms: {rate:.1f} GB/s")
    for rows in options.rows:
        middle = statistics.median(times[rows])
        share = statistics.median(a / b for a, b in zip(times[0], times[rows], strict=True))
        print(
            f"{rows} rows: {1e3 * middle:.1f} ms a step (least {1e3 * min(times[rows]):.1f}), "
            f"{rows / middle:.1f} tokens/s, {share:.2f} of reading's rate"
        )


if __name__ == "__main__":
    main()
