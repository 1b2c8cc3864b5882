"""Lessons 21, 23, 27, 31, 34: bytes, costs, serving, the loop."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from paliglass.fast import Int8Linear
from paliglass.inspect.exercises.exercise import exercise

__all__ = [
    "accepted",
    "dot_bytes",
    "generate",
    "int8_product",
    "quantize_rows",
    "read_tensor",
    "ridge_batch",
    "speculative_token",
    "step_seconds",
    "unpack_group",
]

Cases = Iterator[tuple[Any, ...]]


def _real_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    layer = Int8Linear.quantize(weight)
    assert layer.weight is not None
    return layer.weight.float(), layer.scale


def _weights() -> Cases:
    yield (torch.tensor([[0.50, -0.26, 0.013, 0.001], [3.0, -6.0, 0.2, 0.0]]),)
    yield (torch.randn(6, 32),)


@exercise(
    "int8",
    cases=_weights,
    truth=_real_rows,
    mistakes={
        "one scale for the whole matrix: each row has its own": (
            "weight.abs().amax(1) / 127",
            "(weight.abs().max() / 127).expand(len(weight))",
        ),
        "a scale for each column; it is the rows that make one output each": (
            "amax(1)",
            "amax(0)",
            "[:, None]",
            "",
        ),
        "cut off towards 0; round to the nearest": ("round()", "trunc()"),
        "the largest magnitude becomes 127, so the scale is a 127th of it": ("/ 127", "/ 128"),
        "the largest number is not the largest magnitude: take abs() first": (".abs()", ""),
    },
)
def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 by rows: N × K → the whole numbers from −127 to 127, as floats, N × K, and the rows'
    scales, N: integers · scale is about the weight, and a row's largest magnitude is ±127.
    """
    scales = weight.abs().amax(1) / 127
    return (weight / scales[:, None]).round(), scales


def _codes(rows: int, width: int) -> Tensor:
    return torch.randint(-127, 128, (rows, width), dtype=torch.int8)


@exercise(
    "int8",
    cases=lambda: iter(
        [
            (_codes(3, 8), torch.rand(3), _codes(5, 8), torch.rand(5)),
            (_codes(1, 16), torch.rand(1), _codes(2, 16), torch.rand(2)),
        ]
    ),
    truth=lambda x, x_scales, w, w_scales: (
        (x.double() * x_scales[:, None]) @ (w.double() * w_scales[:, None]).T
    ).float(),
    mistakes={
        "8 bits do not hold a product, let alone a sum: multiply in int32": (
            "x.int() @ w.int().T",
            "x @ w.T",
        ),
        "each row of the weight has its scale": (" * w_scales", ""),
        "each token has its scale": (" * x_scales[:, None]", ""),
        "each token has its own scale, not the largest of all": (
            "x_scales[:, None]",
            "x_scales.max()",
        ),
    },
)
def int8_product(x: Tensor, x_scales: Tensor, w: Tensor, w_scales: Tensor) -> Tensor:
    """The product of quantized tokens and weights, T × V, float32: int32 first, then the scales.

    x: T × D, int8; token t is x[t] · x_scales[t]. w: V × D, int8; row v is w[v] · w_scales[v].
    """
    return (x.int() @ w.int().T) * x_scales[:, None] * w_scales


@exercise(
    "cost",
    cases=lambda: iter(
        [
            (2.5e9, 2.0, 1, 990e12, 3.35e12),
            (2.5e9, 1.0, 8, 1e11, 20e9),
            (2.5e9, 2.0, 1000, 990e12, 3.35e12),
        ]
    ),
    mistakes={
        "computing and reading go on at once: the slower of the two decides, not their sum": (
            "max(2 * weights * rows / speed, weights * size / bandwidth)",
            "2 * weights * rows / speed + weights * size / bandwidth",
        ),
        "a weight costs a multiplication and an addition": ("2 * weights", "weights"),
        "the weights are read once for all rows": ("weights * size", "rows * weights * size"),
        "each row is computed": (" * rows", ""),
    },
)
def step_seconds(weights: float, size: float, rows: int, speed: float, bandwidth: float) -> float:
    """The least time of a step of decoding, in seconds, after the roofline; the cache is left out.

    weights: how many, of `size` bytes each. rows: answers in the batch. speed: operations a second.
    bandwidth: bytes a second.
    """
    return max(2 * weights * rows / speed, weights * size / bandwidth)


@exercise(
    "cost",
    cases=lambda: iter([(990e12, 3.35e12, 2.0), (1e12, 5e10, 0.5)]),
    mistakes={
        "turned round: many operations a second need many rows": (
            "operations / bandwidth",
            "bandwidth / operations",
        ),
        "a weight costs two operations in each row, a multiplication and an addition": (" / 2", ""),
        "the wider a weight, the more rows are needed to be worth its reading": (
            " * bytes_per_weight",
            "",
        ),
    },
)
def ridge_batch(operations: float, bandwidth: float, bytes_per_weight: float) -> float:
    """From how many rows on decoding is limited by arithmetic, and not by the reading of weights.

    operations: that the machine does in a second. bandwidth: bytes that it reads. A row multiplies
    and adds once with each weight; leave caches aside.
    """
    return operations / bandwidth * bytes_per_weight / 2


@exercise(
    "serving",
    cases=lambda: iter(
        [([5, 7, 9], [5, 7, 2, 4]), ([5, 7], [5, 7, 8]), ([3], [4, 6]), ([1, 2, 3], [9, 2, 3, 4])]
    ),
    mistakes={
        "the large model's own word at the first miss is good: it is kept, too": (
            "[*guesses[:good], judged[good]]",
            "guesses[:good]",
        ),
        "after a miss nothing counts: what follows was asked after a wrong word": (
            "[*guesses[:good], judged[good]]",
            "[*(g for g, j in zip(guesses, judged) if g == j), judged[-1]]",
        ),
        "what the large model says after a wrong guess is of no use, it had another beginning": (
            "[*guesses[:good], judged[good]]",
            "judged",
        ),
        "the wrong guess is kept in place of the large model's word": (
            "[*guesses[:good], judged[good]]",
            "[*guesses, judged[-1]][: good + 1]",
        ),
    },
)
def accepted(guesses: list[int], judged: list[int]) -> list[int]:
    """Greedy speculative decoding: the tokens that a pass brings.

    guesses: k tokens of the draft. judged: k + 1, the large model's choice at the place of each
    guess, given those before it, and one after the last.
    """
    good = next((i for i, guess in enumerate(guesses) if guess != judged[i]), len(guesses))
    return [*guesses[:good], judged[good]]


@exercise(
    "serving",
    cases=lambda: iter(
        [
            (torch.tensor(p), torch.tensor(q), guess, keep, other)
            for p, q, guess, keep, other in (
                ([0.6, 0.3, 0.1], [0.2, 0.3, 0.5], 2, 0.15, 0.0),
                ([0.6, 0.3, 0.1], [0.2, 0.3, 0.5], 2, 0.7, 0.95),
                ([0.6, 0.3, 0.1], [0.2, 0.3, 0.5], 0, 0.9, 0.5),
                ([0.5, 0.4, 0.1], [0.2, 0.2, 0.6], 2, 0.5, 0.7),
                ([0.1, 0.6, 0.3], [0.5, 0.3, 0.2], 0, 0.6, 0.7),
                ([0.1, 0.6, 0.3], [0.5, 0.3, 0.2], 0, 0.6, 0.0),
            )
        ]
    ),
    mistakes={
        "upside down: kept is what the large model likes more than the draft does": (
            "p[guess] / q[guess]",
            "q[guess] / p[guess]",
        ),
        "what is drawn instead comes from what p has more than q, not from p": (
            "(p - q).clamp(min=0)",
            "p",
        ),
        "a guess that p likes less than q may be kept all the same: compare with the number": (
            "keep < p[guess] / q[guess]",
            "p[guess] >= q[guess]",
        ),
        "what p has more than q does not sum to 1: stretch the number, or the differences": (
            "other * more.sum()",
            "other",
        ),
        "a word that has nothing in that interval is never drawn, not even with 0": (
            "<= other",
            "< other",
        ),
    },
)
def speculative_token(p: Tensor, q: Tensor, guess: int, keep: float, other: float) -> int:
    """What a pass of speculative sampling says in the place of the draft's guess.

    p, q: V, the probabilities of the large model and of the draft. keep: a random number in [0, 1);
    the guess stays with probability min(1, p/q). other: another one, which draws a word from what p
    has more than q, in the order of the ids, where it does not stay.
    """
    if keep < p[guess] / q[guess]:
        return guess
    more = (p - q).clamp(min=0)
    return int((more.cumsum(0) <= other * more.sum()).sum())


def _files() -> Cases:
    tensors = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor([0.5, -2.0, 7.25])}
    data = safetensors.torch.save(tensors, {"format": "pt"})
    for name in tensors:
        yield data, name


@exercise(
    "inference",
    cases=_files,
    truth=lambda data, name: safetensors.torch.load(data)[name].flatten().tolist(),
    mistakes={
        "data_offsets count from the end of the header, and not from the start of the file": (
            "8 + length + begin : 8 + length + end",
            "begin : end",
        ),
        "the header begins after 8 bytes, and so all is 8 bytes further on": (
            "8 + length + begin : 8 + length + end",
            "length + begin : length + end",
        ),
        "big-endian; safetensors writes the low byte first: '<f'": ('f"<{', 'f">{'),
    },
)
def read_tensor(data: bytes, name: str) -> list[float]:
    """The numbers of a float32 tensor of a safetensors file, `data`, row by row.

    8 bytes, the header's length (little-endian); the header, JSON: {name: {"dtype", "shape",
    "data_offsets": [begin, end]}}; then the numbers, little-endian. Without the library.
    """
    (length,) = struct.unpack("<Q", data[:8])
    begin, end = json.loads(data[8 : 8 + length])[name]["data_offsets"]
    numbers = data[8 + length + begin : 8 + length + end]
    return list(struct.unpack(f"<{len(numbers) // 4}f", numbers))


def _logits(prompt: list[int]) -> Callable[[list[int]], Tensor]:
    answer = [4, 2, 4, 1]

    def next_logits(ids: list[int]) -> Tensor:
        logits = torch.zeros(6)
        logits[answer[min(len(ids) - len(prompt), len(answer) - 1)]] = 1
        return logits

    return next_logits


@exercise(
    "inference",
    cases=lambda: iter([(_logits([5, 5]), [5, 5], 1, most) for most in (10, 2, 0)]),
    mistakes={
        "the end token is part of the answer; it only ends it": (
            "if token == end:\n            break\n        answer.append(token)",
            "answer.append(token)\n        if token == end:\n            break",
        ),
        "the prompt stands before the answer; the answer alone is asked for": (
            "return answer",
            "return prompt + answer",
        ),
        "one token too many: stop at `most`": ("< most", "<= most"),
        "the model is shown the prompt alone each time; it must see what it has said": (
            "[*prompt, *answer]",
            "prompt",
        ),
    },
)
def generate(
    next_logits: Callable[[list[int]], Tensor], prompt: list[int], end: int, most: int
) -> list[int]:
    """The loop of every language model, greedy: the answer's ids, at most so many, without `end`.

    next_logits: what the model thinks of the token after these ids, V numbers.
    """
    answer: list[int] = []
    while len(answer) < most:
        token = int(next_logits([*prompt, *answer]).argmax())
        if token == end:
            break
        answer.append(token)
    return answer


def _bytes() -> Cases:
    yield 10, [1, 2, 3, 4], [1, -1, 1, -1]
    yield -7, [255, 0, 200, 128], [-127, 5, 127, -1]
    yield 1000, [255] * 4, [127, 127, 127, 126]


@exercise(
    "kernels",
    cases=_bytes,
    mistakes={
        "the sum so far is added to, not replaced": ("total + ", ""),
        "the first four are unsigned: 200 is 200, not −56": (
            "a * b",
            "(a - 256 if a > 127 else a) * b",
        ),
        "products do not wrap: they are added up in 32 bits": (
            "a * b for",
            "(a * b + 128) % 256 - 128 for",
        ),
        "the four products' sum is not held to 16 bits": (
            "sum(a * b for a, b in zip(unsigned, signed, strict=True))",
            "max(-32768, min(32767, sum(a * b for a, b in zip(unsigned, signed, strict=True))))",
        ),
    },
)
def dot_bytes(total: int, unsigned: list[int], signed: list[int]) -> int:
    """One lane of vpdpbusd: an int32, plus four bytes 0 … 255 times four of −128 … 127."""
    return total + sum(a * b for a, b in zip(unsigned, signed, strict=True))


def _groups() -> Cases:
    codes = [-127, -101, -80, -62, -47, -34, -21, -9, 2, 13, 25, 37, 50, 65, 83, 107]
    yield bytes([0x80, 0xF1, 0x27, 0x9C]), codes, 0.01
    yield bytes(range(16)), codes, 2.0


@exercise(
    "kernels",
    cases=_groups,
    mistakes={
        "the high half comes first in what you give; the low halves of all bytes do": (
            "*(byte & 15 for byte in packed), *(byte >> 4 for byte in packed)",
            "*(byte >> 4 for byte in packed), *(byte & 15 for byte in packed)",
        ),
        "low and high half alternate in what you give; all low halves come first": (
            "*(byte & 15 for byte in packed), *(byte >> 4 for byte in packed)",
            "half for byte in packed for half in (byte & 15, byte >> 4)",
        ),
        "half a byte is a place in `codes`, not the value itself": ("codes[half]", "half"),
        "the group's scale multiplies every value": ("scale * ", ""),
    },
)
def unpack_group(packed: bytes, codes: list[int], scale: float) -> list[float]:
    """The weights of an int4 group: first those in the low halves of all bytes, then those in the
    high halves.

    Half a byte says which of the 16 codes stands for the weight. scale: the group's.
    """
    halves = [*(byte & 15 for byte in packed), *(byte >> 4 for byte in packed)]
    return [scale * codes[half] for half in halves]
