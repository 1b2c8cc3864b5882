"""Exercises of the lessons 13 to 23: the decoder, its mask and cache, its words, its cost."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from paliglass.checkpoints.adapters import CONFIG, PREFIX, WEIGHTS, with_adapter
from paliglass.config import GemmaConfig
from paliglass.fast import Int8Linear
from paliglass.inspect.exercises.exercise import exercise
from paliglass.inspect.tracing import TracedRow
from paliglass.layers.attention import attend_reference
from paliglass.layers.kv_cache import KVCache
from paliglass.layers.masks import prefix_lm_mask as package_mask
from paliglass.layers.norms import RMSNorm
from paliglass.layers.rope import apply_rotary, rotary_cos_sin
from paliglass.modeling_gemma import GemmaForCausalLM
from paliglass.sampling import keep_top_p
from paliglass.tasks.confidence import object_score as package_score

__all__ = [
    "attend_grouped",
    "decode_step",
    "lens_ranks",
    "lora",
    "object_score",
    "prefix_lm_mask",
    "quantize_rows",
    "rotate",
    "step_seconds",
    "tied_logits",
    "tokens_computed",
    "top_p",
]

Cases = Iterator[tuple[Any, ...]]


def _real_rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    return apply_rotary(
        x, *(one[0, 0] for one in rotary_cos_sin(positions[None], x.shape[-1], base, x.dtype))
    )


def _rotated(
    sign: int = 1, exponent: float = 1, neighbours: bool = False
) -> Callable[[Tensor, Tensor, float], Tensor]:
    def rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
        width = x.shape[-1]
        speeds = base ** (-torch.arange(0, width, 2) * exponent / width)
        angles = positions[:, None] * speeds * sign
        a, b = (x[:, ::2], x[:, 1::2]) if neighbours else x.chunk(2, dim=-1)
        turned = a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()
        return torch.stack(turned, -1).flatten(1) if neighbours else torch.cat(turned, -1)

    return rotate


@exercise(
    "rope",
    cases=lambda: iter(
        [
            (torch.randn(5, 8), torch.arange(1, 6), 10000.0),
            (torch.randn(3, 16), torch.tensor([7, 300, 2]), 100.0),
        ]
    ),
    truth=_real_rotate,
    mistakes={
        "a pair is channel i and channel i + head_dim / 2 here, not two neighbours": _rotated(
            neighbours=True
        ),
        "turns the other way: (a, b) becomes (a·cos − b·sin, b·cos + a·sin)": _rotated(sign=-1),
        "the last pairs turn too quickly: θ_i = base^(−2i / head_dim)": _rotated(exponent=0.5),
        "turns by the place in the tensor, and not by the positions given": (
            lambda x, positions, base: _rotated()(x, torch.arange(len(x)), base)
        ),
    },
)
def rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """RoPE for one head: T × head_dim → T × head_dim.

    positions: T. Pair i, which is channel i and channel i + head_dim / 2, is turned by
    position · θ_i, θ_i = base^(−2i / head_dim).
    """
    speeds = base ** (-torch.arange(0, x.shape[-1], 2) / x.shape[-1])
    angles = positions[:, None] * speeds
    a, b = x.chunk(2, dim=-1)
    return torch.cat(
        (a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), dim=-1
    )


def _grouped() -> Cases:
    yield torch.randn(8, 5, 16), torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    yield torch.randn(4, 3, 8), torch.randn(1, 6, 8), torch.randn(1, 6, 8)
    yield torch.randn(4, 3, 8), torch.randn(4, 6, 8), torch.randn(4, 6, 8)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1) @ value


@exercise(
    "gqa",
    cases=_grouped,
    truth=lambda query, key, value: attend_reference(
        query[None], key[None], value[None], None, query.shape[-1] ** -0.5
    )[0][0],
    mistakes={
        "heads of a group lie beside each other: head 1 shares with head 0, not with head 2": (
            lambda query, key, value: _attend(
                query,
                key.repeat(len(query) // len(key), 1, 1),
                value.repeat(len(query) // len(key), 1, 1),
            )
        ),
        "all heads use the first key head; each group has its own": lambda query, key, value: (
            _attend(query, key[:1].expand(len(query), -1, -1), value[:1].expand(len(query), -1, -1))
        ),
        "the scores are not divided by √head_dim": lambda query, key, value: (
            (query @ key.repeat_interleave(len(query) // len(key), 0).transpose(-1, -2)).softmax(-1)
            @ value.repeat_interleave(len(query) // len(key), 0)
        ),
    },
)
def attend_grouped(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Grouped-query attention without a mask, H × T × head_dim.

    query: H × T × head_dim. key, value: K × S × head_dim; H is a multiple of K, and the first H / K
    query heads share the first key head, the next the second, and so on.
    """
    group = len(query) // len(key)
    key, value = key.repeat_interleave(group, 0), value.repeat_interleave(group, 0)
    return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1) @ value


@exercise(
    "masks",
    cases=lambda: iter([(3, 2, 0), (4, 3, 2), (2, 0, 0), (0, 3, 0)]),
    truth=lambda prefix, suffix, padding: package_mask(
        torch.tensor([[0] * (padding + prefix) + [1] * suffix]),
        torch.tensor([[0] * padding + [1] * (prefix + suffix)]),
    )[0, 0],
    mistakes={
        "that is causal: the prefix sees itself whole": lambda prefix, suffix, padding: (
            torch.ones(padding + prefix + suffix, padding + prefix + suffix).tril().bool()
            & (torch.arange(padding + prefix + suffix) >= padding)
        ),
        "everybody sees everything: a token of the suffix must not see those after it": (
            lambda prefix, suffix, padding: (
                (torch.arange(padding + prefix + suffix) >= padding)
                .expand(padding + prefix + suffix, -1)
                .clone()
            )
        ),
        "padding is seen: its columns are False in every row": lambda prefix, suffix, padding: (
            package_mask(
                torch.tensor([[0] * (padding + prefix) + [1] * suffix]),
                torch.ones(1, padding + prefix + suffix),
            )[0, 0]
        ),
        "a token of the suffix does not see itself": lambda prefix, suffix, padding: (
            (
                (torch.arange(padding + prefix + suffix)[None] < padding + prefix)
                | torch.ones(padding + prefix + suffix, padding + prefix + suffix).tril(-1).bool()
            )
            & (torch.arange(padding + prefix + suffix) >= padding)
        ),
        "turned on its side: a row is who looks, a column is who is looked at": (
            lambda prefix, suffix, padding: (
                package_mask(
                    torch.tensor([[0] * (padding + prefix) + [1] * suffix]),
                    torch.ones(1, padding + prefix + suffix),
                )[0, 0].T
            )
        ),
    },
)
def prefix_lm_mask(prefix: int, suffix: int, padding: int) -> Tensor:
    """PaliGemma's attention mask for a row of `padding` tokens without meaning, then `prefix` that
    are given, then `suffix` that are said: bool, T × T, row = who looks, column = at whom, True =
    may see. Nobody sees padding; what padding sees does not matter but is asked for: as a token
    that is given.
    """
    order = torch.tensor([0] * (padding + prefix) + [1] * suffix).cumsum(0)
    return (order[None] <= order[:, None]) & (torch.arange(len(order)) >= padding)


def _steps() -> Cases:
    for seen in (5, 0):
        yield tuple(torch.randn(count, 4) for count in (1, 1, 1, seen, seen))


def _step(
    front: bool = False, seen: bool = True, kept: bool = True
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    def step(
        query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        old = keys, values
        new = (key, keys) if front else (keys, key), (value, values) if front else (values, value)
        keys, values = torch.cat(new[0]), torch.cat(new[1])
        used = (keys, values) if seen else old
        out = (query @ used[0].T / query.shape[-1] ** 0.5).softmax(-1) @ used[1]
        return out, *((keys, values) if kept else old)

    return step


def _real_step(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    head_dim = query.shape[-1]
    config = GemmaConfig(num_hidden_layers=1, num_key_value_heads=1, head_dim=head_dim)
    cache = KVCache(config, 1, len(keys) + 1)
    used = keys, values
    for new in ((keys, values), (key, value)):
        if len(new[0]):
            cache.reserve(torch.ones(1, len(new[0]), dtype=torch.bool))
            used = cache.update(0, *(one[None, None] for one in new))
    out, _ = attend_reference(query[None, None], *used, None, head_dim**-0.5)
    return out[0, 0], used[0][0, 0], used[1][0, 0]


@exercise(
    "cache",
    cases=_steps,
    truth=_real_step,
    mistakes={
        "the new token does not see itself: add its key and value to the cache first": _step(
            seen=False
        ),
        "the cache comes out as it went in: the next step would not know this token": _step(
            kept=False
        ),
        "the new key stands before the old ones; the cache is in the order of the tokens": _step(
            front=True
        ),
        "the scores are not divided by √head_dim": lambda query, key, value, keys, values: (
            (query @ torch.cat((keys, key)).T).softmax(-1) @ torch.cat((values, value)),
            torch.cat((keys, key)),
            torch.cat((values, value)),
        ),
    },
)
def decode_step(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """A step of decoding with one head: what the new token attends to, and the cache after it.

    query, key, value: 1 × head_dim, the new token's. keys, values: T × head_dim, the cache.
    Returns 1 × head_dim, and the two caches, (T + 1) × head_dim each.
    """
    keys, values = torch.cat((keys, key)), torch.cat((values, value))
    return (query @ keys.T / query.shape[-1] ** 0.5).softmax(-1) @ values, keys, values


@exercise(
    "cache",
    cases=lambda: iter([(260, 50, True), (260, 50, False), (10, 1, True), (10, 1, False)]),
    mistakes={
        "the prompt gives the first word by itself: one step less": lambda prompt, words, cached: (
            prompt + words if cached else sum(prompt + i for i in range(words + 1))
        ),
        "without a cache the prompt is computed again for every word": (
            lambda prompt, words, cached: prompt + words - 1
        ),
        "without a cache the words said so far are computed again, too": (
            lambda prompt, words, cached: prompt + words - 1 if cached else prompt * words
        ),
    },
)
def tokens_computed(prompt: int, words: int, cached: bool) -> int:
    """How many tokens pass the decoder until an answer of `words` tokens is said, with a KV cache
    or without. The pass over the prompt, of so many tokens, gives the first word.
    """
    if cached:
        return prompt + words - 1
    return sum(prompt + i for i in range(words))


def _top_p(form: str) -> Callable[[Tensor, float], Tensor]:
    def top_p(probabilities: Tensor, p: float) -> Tensor:
        ordered, order = probabilities.sort(descending=True)
        summed = ordered.cumsum(0)
        kept = {"short": summed <= p, "strict": ordered >= 1 - p, "raw": summed - ordered < p}[form]
        ordered = torch.where(kept, ordered, 0)
        if form != "raw":
            ordered = ordered / ordered.sum()
        return torch.zeros_like(probabilities).scatter(0, order, ordered)

    return top_p


@exercise(
    "sampling",
    cases=lambda: iter(
        [
            (torch.tensor([0.1, 0.5, 0.15, 0.25]), 0.7),
            (torch.tensor([0.05, 0.9, 0.05]), 0.3),
            (torch.randn(50).softmax(0), 0.9),
        ]
    ),
    truth=lambda probabilities, p: keep_top_p(probabilities.log()[None], p)[0].softmax(-1),
    mistakes={
        "stops one word too early: the word that reaches p is kept, and so there is always one": (
            _top_p("short")
        ),
        "what is kept must sum to 1 again": _top_p("raw"),
        "each word is judged alone; top-p adds up from the likeliest": _top_p("strict"),
        "adds up in the order of the vocabulary: sort first": lambda probabilities, p: (
            lambda kept: kept / kept.sum()
        )(torch.where(probabilities.cumsum(0) - probabilities < p, probabilities, 0)),
        "the kept ones are still sorted: each belongs to its own place in the vocabulary": (
            lambda probabilities, p: (
                lambda ordered: (lambda kept: kept / kept.sum())(
                    torch.where(ordered.cumsum(0) - ordered < p, ordered, 0)
                )
            )(probabilities.sort(descending=True).values)
        ),
    },
)
def top_p(probabilities: Tensor, p: float) -> Tensor:
    """Nucleus sampling's new probabilities, V → V: the likeliest words until their sum reaches p
    keep theirs, all others get 0, and the whole sums to 1 again. Each word stays at its place.
    """
    ordered, order = probabilities.sort(descending=True)
    reached_before = ordered.cumsum(0) - ordered
    kept = torch.where(reached_before < p, ordered, 0)
    return torch.zeros_like(probabilities).scatter(0, order, kept / kept.sum())


def _real_logits(hidden: Tensor, table: Tensor, cap: float | None) -> Tensor:
    decoder: Any = SimpleNamespace(
        lm_head=partial(F.linear, weight=table),
        config=SimpleNamespace(final_logit_softcapping=cap),
    )
    return GemmaForCausalLM.logits(decoder, hidden)


@exercise(
    "weight_tying",
    cases=lambda: iter(
        [
            (torch.randn(2, 4), torch.randn(7, 4), None),
            (20 * torch.randn(3, 4), torch.randn(7, 4), 30.0),
        ]
    ),
    truth=_real_logits,
    mistakes={
        "the cap is hard: c · tanh(x / c) comes near c and never cuts": lambda hidden, table, cap: (
            (hidden @ table.T).clamp(-cap, cap) if cap else hidden @ table.T
        ),
        "tanh gives −1 … 1: multiply by the cap again": lambda hidden, table, cap: (
            (hidden @ table.T / cap).tanh() if cap else hidden @ table.T
        ),
        "the cap is not used": lambda hidden, table, cap: hidden @ table.T,
        "√D belongs to the input; the head takes the table as it is": lambda hidden, table, cap: (
            lambda x: (x / cap).tanh() * cap if cap else x
        )(hidden @ table.T * table.shape[-1] ** 0.5),
        "these are probabilities; logits are what softmax is given": lambda hidden, table, cap: (
            lambda x: (x / cap).tanh() * cap if cap else x
        )(hidden @ table.T).softmax(-1),
    },
)
def tied_logits(hidden: Tensor, table: Tensor, cap: float | None) -> Tensor:
    """The logits of a head that is tied to the table of words: T × D → T × V.

    table: V × D, the embeddings. cap: None, or as in Gemma 2 the c of c · tanh(x / c).
    """
    logits = hidden @ table.T
    return (logits / cap).tanh() * cap if cap else logits


def _streams() -> Cases:
    yield torch.randn(4, 6), torch.randn(9, 6), 5
    yield torch.randn(3, 6), torch.randn(9, 6), 0


def _ranks(
    stream: Tensor, table: Tensor, word: int, norm: bool = True, first: int = 1
) -> list[int]:
    stream = F.rms_norm(stream, stream.shape[-1:]) if norm else stream
    logits = stream @ table.T
    return [int((row > row[word]).sum()) + first for row in logits]


def _real_ranks(stream: Tensor, table: Tensor, word: int) -> list[int]:
    decoder = SimpleNamespace(model=SimpleNamespace(norm=RMSNorm(table.shape[-1])))
    row: Any = SimpleNamespace(
        _name=str,
        _trace=SimpleNamespace(
            model=SimpleNamespace(language_model=decoder),
            word_logits=partial(F.linear, weight=table),
        ),
        answer=slice(1),
        hidden=lambda layer: stream[int(layer)][None],
    )
    found = (TracedRow.lens(row, layer, len(table))[0] for layer in range(len(stream)))
    return [1 + [one.id for one in likeliest].index(word) for likeliest in found]


@exercise(
    "decoder",
    cases=_streams,
    truth=_real_ranks,
    mistakes={
        "the likeliest word has rank 1, not 0": lambda stream, table, word: _ranks(
            stream, table, word, first=0
        ),
        "counts from the wrong end: rank 1 is the likeliest": lambda stream, table, word: [
            int((row < row[word]).sum()) + 1 for row in stream @ table.T
        ],
        "a rank is a place in the order, not the logit itself": lambda stream, table, word: (
            F.rms_norm(stream, stream.shape[-1:]) @ table.T
        )[:, word].tolist(),
    },
)
def lens_ranks(stream: Tensor, table: Tensor, word: int) -> list[int]:
    """The logit lens: for the stream after each layer, layers × D, the rank that `word` would have:
    1 plus the number of words that are likelier. table: V × D, the head's. (The last norm, without
    learned weights, divides by the root mean square; does it change a rank?)
    """
    logits = stream @ table.T
    return [1 + int((row > row[word]).sum()) for row in logits]


def _lora_cases() -> Cases:
    yield torch.randn(5, 8), torch.randn(6, 8), torch.randn(2, 8), torch.randn(6, 2), 8.0
    yield torch.randn(3, 8), torch.randn(6, 8), torch.randn(4, 8), torch.zeros(6, 4), 4.0


def _real_lora(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """What is loaded where peft has left such a correction of one layer."""
    name = "language_model.model.layers.0.self_attn.q_proj"
    settings = {"peft_type": "LORA", "r": len(a), "lora_alpha": alpha, "target_modules": ["q_proj"]}
    pair = {f"{PREFIX}{name}.lora_A.weight": a, f"{PREFIX}{name}.lora_B.weight": b}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, CONFIG).write_text(json.dumps(settings), "utf-8")
        safetensors.torch.save_file(pair, Path(folder, WEIGHTS))
        [(_, _, merged)] = with_adapter([(f"{name}.weight", name, weight)], Path(folder))
    return x @ merged.T


@exercise(
    "fine_tuning",
    cases=_lora_cases,
    truth=_real_lora,
    mistakes={
        "the correction counts α / r times; r is the number of A's rows": (
            lambda x, weight, a, b, alpha: x @ (weight + b @ a).T
        ),
        "the correction counts α / r times, not α": lambda x, weight, a, b, alpha: (
            x @ (weight + alpha * (b @ a)).T
        ),
        "only the correction is left: the frozen weights are used as well": (
            lambda x, weight, a, b, alpha: x @ (b @ a * alpha / len(a)).T
        ),
        "r / α, upside down": lambda x, weight, a, b, alpha: (
            x @ (weight + b @ a * len(a) / alpha).T
        ),
    },
)
def lora(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """A linear layer with a LoRA correction of rank r: … × in → … × out.

    weight: out × in, frozen. a: r × in. b: out × r. The weight is weight + b·a · α / r.
    """
    return x @ weight.T + x @ a.T @ b.T * alpha / len(a)


def _weights() -> Cases:
    yield (torch.tensor([[0.50, -0.26, 0.013, 0.001], [3.0, -6.0, 0.2, 0.0]]),)
    yield (torch.randn(6, 32),)


def _real_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    layer = Int8Linear.quantize(weight)
    assert layer.weight is not None
    return layer.weight.float(), layer.scale


@exercise(
    "int8",
    cases=_weights,
    truth=_real_rows,
    mistakes={
        "one scale for the whole matrix: each row has its own": lambda weight: (
            (weight / (weight.abs().max() / 127)).round(),
            (weight.abs().max() / 127).expand(len(weight)).clone(),
        ),
        "a scale for each column; it is the rows that make one output each": lambda weight: (
            (weight / (weight.abs().amax(0) / 127)).round(),
            weight.abs().amax(0) / 127,
        ),
        "cut off towards 0; round to the nearest": lambda weight: (
            (weight / (weight.abs().amax(1, keepdim=True) / 127)).trunc(),
            weight.abs().amax(1) / 127,
        ),
        "the largest magnitude becomes 127, so the scale is a 127th of it": lambda weight: (
            (weight / (weight.abs().amax(1, keepdim=True) / 128)).round(),
            weight.abs().amax(1) / 128,
        ),
        "the largest number is not the largest magnitude: take abs() first": lambda weight: (
            (weight / (weight.amax(1, keepdim=True) / 127)).round(),
            weight.amax(1) / 127,
        ),
    },
)
def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 by rows: N × K → the whole numbers from −127 to 127, as floats, N × K, and the rows'
    scales, N: integers · scale is about the weight, and a row's largest magnitude is ±127.
    """
    scales = weight.abs().amax(1) / 127
    return (weight / scales[:, None]).round(), scales


@exercise(
    "detection",
    cases=lambda: iter(
        [
            ([math.log(p) for p in (0.5, 0.5, 0.9, 0.8)], [math.log(0.9), math.log(0.6)]),
            ([-1.0] * 4, [-0.5]),
        ]
    ),
    truth=package_score,
    mistakes={
        "the edges' probabilities are multiplied; it is their geometric mean": (
            lambda shape, label: math.exp(sum(shape) + sum(label))
        ),
        "the edges' probabilities are averaged; the geometric mean averages their logarithms": (
            lambda shape, label: sum(map(math.exp, shape)) / len(shape) * math.exp(sum(label))
        ),
        "the label is averaged as well; its tokens' probabilities are multiplied": (
            lambda shape, label: math.exp(sum(shape) / len(shape) + sum(label) / len(label))
        ),
        "the logarithm of the score: take exp": lambda shape, label: (
            sum(shape) / len(shape) + sum(label)
        ),
    },
)
def object_score(shape: list[float], label: list[float]) -> float:
    """How sure the model is of an object: the geometric mean of the probabilities of its edges,
    times the product of the probabilities of its label's tokens. Both lists hold *logarithms*.
    """
    return math.exp(sum(shape) / len(shape) + sum(label))


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
            lambda weights, size, rows, speed, bandwidth: (
                2 * weights * rows / speed + weights * size / bandwidth
            )
        ),
        "a weight costs a multiplication and an addition": (
            lambda weights, size, rows, speed, bandwidth: max(
                weights * rows / speed, weights * size / bandwidth
            )
        ),
        "the weights are read once for all rows": lambda weights, size, rows, speed, bandwidth: max(
            2 * weights * rows / speed, rows * weights * size / bandwidth
        ),
        "each row is computed": lambda weights, size, rows, speed, bandwidth: max(
            2 * weights / speed, weights * size / bandwidth
        ),
    },
)
def step_seconds(weights: float, size: float, rows: int, speed: float, bandwidth: float) -> float:
    """The least time of a step of decoding, in seconds, after the roofline; the cache is left out.

    weights: how many, of `size` bytes each. rows: answers in the batch. speed: operations a second.
    bandwidth: bytes a second.
    """
    return max(2 * weights * rows / speed, weights * size / bandwidth)
