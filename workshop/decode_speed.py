"""How fast the compiled decoder runs, and how near it comes to what memory gives.

    python -m workshop.decode_speed --bits 8 --rows 1 8 --rounds 9

A decoder of a published size with random weights, made packed from one random matrix a shape. Steps
and plain reading of the same bytes by the same threads alternate; medians and their ratio are
printed, and how long quantizing took.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from paliglass.config import PRESETS, GemmaConfig
from paliglass.fast import kernels
from paliglass.fast.decode import Decoder, LayerMatrices
from paliglass.fast.instructions import load_shared
from paliglass.fast.matrix import PackedMatrix, quantize
from paliglass.fast.threads import team
from paliglass.layers.kv_cache import KVCache

CHUNK = 1 << 20  # bytes that a thread reads at once


@kernels.compiled
def read(thread: int, threads: int, sync: int, starts: Any, sizes: Any, sums: Any) -> None:
    """Reads memory, adding it up."""
    total = 0
    for i in range(len(starts)):
        while True:
            chunk = kernels.next_task(sync, i)
            if chunk * CHUNK >= sizes[i]:
                break
            at = starts[i] + chunk * CHUNK
            a = b = c = d = 0
            for k in range(0, min(CHUNK, sizes[i] - chunk * CHUNK) // 64 * 64, 64):
                a += load_shared((at + k,))
                b += load_shared((at + k + 16,))
                c += load_shared((at + k + 32,))
                d += load_shared((at + k + 48,))
            total += a + b + c + d
    sums[thread] += total
    kernels.wait_for_all(sync, threads)


def random_decoder(config: GemmaConfig, bits: int, head_bits: int) -> tuple[Decoder, float, int]:
    """A decoder, the seconds that quantizing took, and the weights it quantized."""
    width, head_dim = config.hidden_size, config.head_dim
    queries, keys = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    hidden = config.intermediate_size
    seconds, numbers = 0.0, 0
    floats: dict[tuple[int, int], torch.Tensor] = {}

    def make(rows: int, columns: int, bits: int) -> PackedMatrix:
        nonlocal seconds, numbers
        if (rows, columns) not in floats:
            floats[rows, columns] = torch.randn(rows, columns).mul_(columns**-0.5).bfloat16()
        start = time.perf_counter()
        matrix = quantize(floats[rows, columns], bits)
        seconds += time.perf_counter() - start
        numbers += rows * columns
        return matrix

    make(64, 64, bits), make(64, 64, head_bits)  # compiles
    seconds, numbers = 0.0, 0
    shapes = ((queries, width), (keys, width), (keys, width), (width, queries))
    mlp = ((hidden, width), (hidden, width), (width, hidden))
    layers = [
        LayerMatrices(*(make(*shape, bits) for shape in (*shapes, *mlp)))
        for _ in range(config.num_hidden_layers)
    ]
    floats.clear()
    table = make(config.vocab_size, width, head_bits)
    names = ["input_layernorm", "post_attention_layernorm"]
    names += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    norms = [dict.fromkeys(names, torch.zeros(width)) for _ in layers]
    decoder = Decoder(config, layers, table, norms, torch.zeros(width), torch.bfloat16)
    return decoder, seconds, numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="paligemma-3b-224")
    parser.add_argument("--bits", type=int, choices=(8, 4), default=8)
    parser.add_argument("--head-bits", type=int, choices=(8, 4), default=8)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--context", type=int, default=280)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    config = PRESETS[options.preset].text_config
    decoder, seconds, numbers = random_decoder(config, options.bits, options.head_bits)
    print(f"quantizing {numbers / 1e9:.2f} G weights: {seconds:.1f} s")
    matrices = [m for layer in decoder.matrices[0] for m in vars(layer).values()]
    matrices.append(decoder.matrices[1])
    starts, sizes = (
        [f(m) for m in matrices]
        for f in (lambda m: m.weights.data_ptr(), lambda m: m.weights.nbytes)
    )
    starts, sizes = torch.tensor(starts).numpy(), torch.tensor(sizes).numpy()
    sums = torch.zeros(64, dtype=torch.int64).numpy()
    total = sum(m.nbytes for m in matrices)
    caches = {}
    for rows in options.rows:
        caches[rows] = KVCache(config, rows, options.context + 8, dtype=torch.bfloat16)
    times: dict[object, list[float]] = {key: [] for key in ("read", *options.rows)}
    for i in range(options.rounds + 1):
        for key in times:
            start = time.perf_counter()
            if key == "read":
                team().run(read, len(starts), starts, sizes, sums)
            else:
                cache = caches[key]
                slots = torch.full((key, 1), options.context)
                decoder.run(torch.full((key, 1), 7), slots, cache)
            if i:
                times[key].append(time.perf_counter() - start)
    middle = {key: statistics.median(found) for key, found in times.items()}
    print(
        f"{total / 1e9:.2f} GB, read in {1e3 * middle['read']:.1f} ms: {total / middle['read'] / 1e9:.1f} GB/s"
    )
    for rows in options.rows:
        share = statistics.median(a / b for a, b in zip(times["read"], times[rows], strict=True))
        print(
            f"{rows} rows: {1e3 * middle[rows]:.1f} ms a step (least {1e3 * min(times[rows]):.1f}), "
            f"{rows / middle[rows]:.1f} tokens/s, {share:.2f} of reading's rate"
        )


if __name__ == "__main__":
    main()
