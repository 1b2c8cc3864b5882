"""How fast the compiled decoder runs, and how near it comes to what memory gives.

    python -m workshop.decode_speed --method int4 --rows 1 --rows 8 --rounds 9

A decoder of a published size with random weights, packed from one random matrix a shape. Steps
and plain reading of the same bytes by the same threads alternate; medians and their ratio are
printed, and how long quantizing took.
"""

from __future__ import annotations

import statistics
import time
from typing import Annotated, Literal

import numpy as np
import torch
import typer

from paliglass.config import PRESETS, GemmaConfig
from paliglass.fast import kernels
from paliglass.fast.compiled import Library
from paliglass.fast.decode import Decoder
from paliglass.fast.instructions import fetch_add
from paliglass.fast.matrix import PackedMatrix, bits_of, quantize
from paliglass.fast.threads import team
from paliglass.layers.kv_cache import KVCache
from paliglass.modeling_gemma import GemmaForCausalLM
from workshop.commands import run

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


@torch.no_grad()
def decode_speed(
    preset: Annotated[
        str, typer.Option(help=f"One of {', '.join(sorted(PRESETS))}.")
    ] = "paligemma-3b-224",
    method: Annotated[Literal["int8", "int4", "int4-all"], typer.Option()] = "int8",
    rows: Annotated[list[int] | None, typer.Option(help="Of a step; repeatable. [1 and 8]")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Of steps and of reading, in turn.")] = 9,
    context: Annotated[int, typer.Option(min=1, help="Tokens in the cache before.")] = 280,
) -> None:
    """Measure how fast the compiled decoder runs, and how near it comes to what memory gives."""
    if preset not in PRESETS:
        raise typer.BadParameter(f"{preset} is none of {', '.join(sorted(PRESETS))}")
    counts = rows or [1, 8]
    config = PRESETS[preset].text_config
    decoder, seconds, cpu, numbers = random_decoder(config, method)
    print(f"quantizing {numbers / 1e9:.2f} G weights: {seconds:.1f} s, {cpu:.1f} s of CPU")
    matrices = decoder.matrices
    places = torch.tensor(
        [[m.weights.data_ptr() for m in matrices], [m.weights.nbytes for m in matrices]]
    )
    own = Library(kernels.emit_object())
    sums = torch.zeros(1024, dtype=torch.int64)
    job = [len(matrices), places[0].data_ptr(), places[1].data_ptr(), sums.data_ptr()]
    caches = {
        count: KVCache(config, count, context + 128, dtype=torch.bfloat16) for count in counts
    }
    for cache in caches.values():
        cache.reserve(torch.ones(len(cache), context, dtype=torch.bool))
    times: dict[int, list[float]] = {key: [] for key in (0, *counts)}  # 0: reading
    for i in range(rounds + 1):
        for count in times:
            ids = torch.full((count, 1), 7)
            start = time.perf_counter()
            if count == 0:
                team().run(
                    own["read"], len(matrices), np.array(job, dtype=np.int64), decoder.nbytes
                )
            else:
                decoder.logits(decoder.extend(ids, caches[count]))
            if i:
                times[count].append(time.perf_counter() - start)
    reading = statistics.median(times[0])
    rate = decoder.nbytes / reading / 1e9
    print(f"{decoder.nbytes / 1e9:.2f} GB, read in {1e3 * reading:.1f} ms: {rate:.1f} GB/s")
    for count in counts:
        middle = statistics.median(times[count])
        share = statistics.median(a / b for a, b in zip(times[0], times[count], strict=True))
        print(
            f"{count} rows: {1e3 * middle:.1f} ms a step (least {1e3 * min(times[count]):.1f}), "
            f"{count / middle:.1f} tokens/s, {share:.2f} of reading's rate"
        )


if __name__ == "__main__":
    run(decode_speed)
