"""Lessons 13 to 16, 19 and 30: Gemma's layers, their masks and their cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from paliglass.config import GemmaConfig
from paliglass.inspect.exercises.exercise import exercise
from paliglass.inspect.tracing import TracedRow
from paliglass.layers.attention import attend_reference
from paliglass.layers.kv_cache import KVCache
from paliglass.layers.masks import prefix_lm_mask as package_mask
from paliglass.layers.norms import RMSNorm
from paliglass.layers.rope import apply_rotary, rotary_cos_sin
from paliglass.modeling_gemma import GemmaDecoderLayer

__all__ = [
    "attend_grouped",
    "decode_step",
    "fewer_key_heads",
    "kept_tokens",
    "lens_ranks",
    "local_mask",
    "packed_mask",
    "prefix_lm_mask",
    "relative_score",
    "rotate",
    "sandwich_layer",
    "tokens_computed",
]

Cases = Iterator[tuple[Any, ...]]
Function = Callable[[Tensor], Tensor]


def _real_rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    return apply_rotary(
        x, *(one[0, 0] for one in rotary_cos_sin(positions[None], x.shape[-1], base, x.dtype))
    )


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
        "a pair is channel i and channel i + head_dim / 2 here, not two neighbours": (
            "x.chunk(2, dim=-1)",
            "(x[:, ::2], x[:, 1::2])",
            "torch.cat(turned, dim=-1)",
            "torch.stack(turned, -1).flatten(1)",
        ),
        "turns the other way: (a, b) becomes (a·cos − b·sin, b·cos + a·sin)": (
            "* speeds",
            "* -speeds",
        ),
        "the last pairs turn too quickly: θ_i = base^(−2i / head_dim)": (
            " / x.shape[-1])",
            " / x.shape[-1] / 2)",
        ),
        "turns by the place in the tensor, and not by the positions given": (
            "positions[:",
            "torch.arange(len(x))[:",
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
    turned = a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()
    return torch.cat(turned, dim=-1)


def _real_score(query: Tensor, key: Tensor, distance: int, base: float) -> float:
    positions = torch.tensor([[5 + distance, 5]])
    cos, sin = rotary_cos_sin(positions, len(query), base, query.dtype)
    turned = apply_rotary(torch.stack((query, key))[None, None], cos, sin)[0, 0]
    return float(turned[0] @ turned[1])


@exercise(
    "rope",
    cases=lambda: iter([(*torch.randn(2, 8), 3, 10000.0), (*torch.randn(2, 16), 40, 100.0)]),
    truth=_real_score,
    mistakes={
        "turned the other way: the query stands after the key": (
            "(a * d - b * c)",
            "(b * c - a * d)",
        ),
        "the sine's half is missing: turning mixes the channels of a pair": (
            " + angles.sin() * (a * d - b * c)",
            "",
        ),
        "θ_i = base^(−2i / head_dim): there are head_dim / 2 pairs": (
            "/ len(a))",
            "/ len(query))",
        ),
        "a pair is channel i and channel i + head_dim / 2, not two neighbours": (
            "a, b, c, d = *query.chunk(2), *key.chunk(2)",
            "a, b, c, d = query[::2], query[1::2], key[::2], key[1::2]",
        ),
    },
)
def relative_score(query: Tensor, key: Tensor, distance: int, base: float) -> float:
    """q·k after RoPE, from the distance alone: the query stands so many tokens after the key.

    query, key: head_dim, before turning. Pairs and speeds are those of `rotate`; for each pair,
    q·(turned by distance · θ_i)·k is a cosine times one number and a sine times another.
    """
    a, b, c, d = *query.chunk(2), *key.chunk(2)
    angles = distance * base ** (-torch.arange(len(a)) / len(a))
    return (angles.cos() * (a * c + b * d) + angles.sin() * (a * d - b * c)).sum().item()


def _grouped() -> Cases:
    yield torch.randn(8, 5, 16), torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    yield torch.randn(4, 3, 8), torch.randn(1, 6, 8), torch.randn(1, 6, 8)
    yield torch.randn(4, 3, 8), torch.randn(4, 6, 8), torch.randn(4, 6, 8)


@exercise(
    "gqa",
    cases=_grouped,
    truth=lambda query, key, value: attend_reference(
        query[None], key[None], value[None], None, query.shape[-1] ** -0.5
    )[0][0],
    mistakes={
        "heads of a group lie beside each other: head 1 shares with head 0, not with head 2": (
            "key.repeat_interleave(group, 0), value.repeat_interleave(group, 0)",
            "key.repeat(group, 1, 1), value.repeat(group, 1, 1)",
        ),
        "all heads use the first key head; each group has its own": (
            "key.repeat_interleave(group, 0), value.repeat_interleave(group, 0)",
            "key[:1], value[:1]",
        ),
        "the scores are not divided by √head_dim": (" / query.shape[-1] ** 0.5", ""),
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
    "gqa",
    cases=lambda: iter([(torch.randn(16, 3), 4, 2), (torch.randn(16, 5), 8, 1)]),
    mistakes={
        "the heads of a group lie one behind the other: 0 and 1, and not 0 and 2": (
            "reshape(kept, heads // kept, -1, width).mean(1)",
            "reshape(heads // kept, kept, -1, width).mean(0)",
        ),
        "one head of each group is kept; their mean was better": (".mean(1)", "[:, 0]"),
        "that is the sum; the mean is asked for": (".mean(1)", ".sum(1)"),
        "a row of the matrix is a channel: whole heads are averaged, each channel by itself": (
            "kept, heads // kept, -1, width).mean(1)",
            "kept, -1, heads // kept, width).mean(2)",
        ),
    },
)
def fewer_key_heads(weight: Tensor, heads: int, kept: int) -> Tensor:
    """The start of uptraining (arXiv 2305.13245): k_proj's matrix, heads · head_dim × D, with fewer
    heads, kept · head_dim × D. Each is the mean of a group: of the first heads / kept, and so on.
    """
    width = weight.shape[1]
    return weight.reshape(kept, heads // kept, -1, width).mean(1).flatten(0, 1)


@exercise(
    "masks",
    cases=lambda: iter([(3, 2, 0), (4, 3, 2), (2, 0, 0), (0, 3, 0)]),
    truth=lambda prefix, suffix, padding: package_mask(
        torch.tensor([[0] * (padding + prefix) + [1] * suffix]),
        torch.tensor([[0] * padding + [1] * (prefix + suffix)]),
    )[0, 0],
    mistakes={
        "that is causal: the prefix sees itself whole": (
            "[0] * (padding + prefix) + [1]",
            "[0] * padding + [1] * prefix + [1]",
        ),
        "everybody sees everything: a token of the suffix must not see those after it": (
            "order[None] <= order[:, None]",
            "order[None] >= 0 * order[:, None]",
        ),
        "padding is seen: its columns are False in every row": (
            " & (torch.arange(len(order)) >= padding)",
            "",
        ),
        "a token of the suffix does not see itself": (
            "order[None] <= order[:, None]",
            "(order[None] < order[:, None]) | (order[None] == 0)",
        ),
        "turned on its side: a row is who looks, a column is who is looked at": (
            "order[None] <= order[:, None]",
            "order[:, None] <= order[None]",
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


def _real_packed(examples: list[tuple[int, int]]) -> Tensor:
    return torch.block_diag(  # type: ignore[no-untyped-call]
        *(
            package_mask(
                torch.tensor([[0] * prefix + [1] * suffix]), torch.ones(1, prefix + suffix)
            )[0, 0]
            for prefix, suffix in examples
        )
    )


@exercise(
    "masks",
    cases=lambda: iter([([(2, 1), (1, 2)],), ([(3, 0), (1, 1), (2, 3)],)]),
    truth=_real_packed,
    mistakes={
        "an example sees the one before it": ("(example[:, None] == example) & ", ""),
        "an example is seen whole: within it the prefix-LM rule holds": (
            " & (order <= order[:, None])",
            "",
        ),
        "that is causal: a prefix sees itself whole": (
            "[0] * prefix + [1] * suffix",
            "[1] * prefix + [1] * suffix",
        ),
        "turned on its side: a row is who looks": (
            "order <= order[:, None]",
            "order[:, None] <= order",
        ),
    },
)
def packed_mask(examples: list[tuple[int, int]]) -> Tensor:
    """The mask of training examples that stand in one row, one after the other: bool, T × T.

    examples: of each how many tokens its prefix and its suffix have. Row = who looks, True = may
    see. Nobody sees another example; within one, the prefix sees itself whole, and a token of the
    suffix the prefix, itself and those before it.
    """
    steps = [one for prefix, suffix in examples for one in [0] * prefix + [1] * suffix]
    numbers = [i for i, lengths in enumerate(examples) for _ in range(sum(lengths))]
    order, example = torch.tensor(steps).cumsum(0), torch.tensor(numbers)
    return (example[:, None] == example) & (order <= order[:, None])


def _steps() -> Cases:
    for seen in (5, 0):
        yield tuple(torch.randn(count, 4) for count in (1, 1, 1, seen, seen))


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
        "the new token does not see itself: add its key and value to the cache first": (
            "keys.T / query.shape[-1] ** 0.5).softmax(-1) @ values,",
            "keys[:-1].T / query.shape[-1] ** 0.5).softmax(-1) @ values[:-1],",
        ),
        "the cache comes out as it went in: the next step would not know this token": (
            "@ values, keys, values",
            "@ values, keys[:-1], values[:-1]",
        ),
        "the new key stands before the old ones; the cache is in the order of the tokens": (
            "torch.cat((keys, key)), torch.cat((values, value))",
            "torch.cat((key, keys)), torch.cat((value, values))",
        ),
        "the scores are not divided by √head_dim": (" / query.shape[-1] ** 0.5", ""),
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
        "the prompt gives the first word by itself: one step less": (
            "words - 1",
            "words",
            "range(words)",
            "range(words + 1)",
        ),
        "without a cache the prompt is computed again for every word": (
            "sum(prompt + i for i in range(words))",
            "prompt + words - 1",
        ),
        "without a cache the words said so far are computed again, too": (
            "sum(prompt + i for i in range(words))",
            "prompt * words",
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


def _streams() -> Cases:
    yield torch.randn(4, 6), torch.randn(9, 6), 5
    yield torch.randn(3, 6), torch.randn(9, 6), 0


@exercise(
    "decoder",
    cases=_streams,
    truth=_real_ranks,
    mistakes={
        "the likeliest word has rank 1, not 0": ("1 + ", ""),
        "counts from the wrong end: rank 1 is the likeliest": (
            "row > row[word]",
            "row < row[word]",
        ),
        "a rank is a place in the order, not the logit itself": (
            "[1 + int((row > row[word]).sum()) for row in logits]",
            "(F.rms_norm(stream, stream.shape[-1:]) @ table.T)[:, word].tolist()",
        ),
    },
)
def lens_ranks(stream: Tensor, table: Tensor, word: int) -> list[int]:
    """The logit lens: for the stream after each layer, layers × D, the rank that `word` would have:
    1 plus the number of words that are likelier. table: V × D, the head's. (The last norm, without
    learned weights, divides by the root mean square; does it change a rank?)
    """
    logits = stream @ table.T
    return [1 + int((row > row[word]).sum()) for row in logits]


def _sandwiches() -> Iterator[tuple[Any, ...]]:
    matrix = torch.randn(4, 4)
    norms = [lambda x, by=by: x / by for by in (1.5, 3.0, 0.7, 2.0)]
    yield torch.randn(3, 4), norms, lambda x: (x @ matrix).tanh(), torch.cos


def _real_sandwich(x: Tensor, norms: list[Function], attend: Function, mlp: Function) -> Tensor:
    layer: Any = SimpleNamespace(
        has_post_norms=True,
        input_layernorm=norms[0],
        self_attn=lambda x, *rest: attend(x),
        post_attention_layernorm=norms[1],
        pre_feedforward_layernorm=norms[2],
        mlp=mlp,
        post_feedforward_layernorm=norms[3],
    )
    layer.after_attention = lambda *both: GemmaDecoderLayer.after_attention(layer, *both)
    rest: Any = (None, None)
    return GemmaDecoderLayer.forward(layer, x, *rest)


@exercise(
    "decoder",
    cases=_sandwiches,
    truth=_real_sandwich,
    mistakes={
        "that is Gemma 1 around attention: Gemma 2 also normalises what comes back": (
            "norms[1](attend(norms[0](x)))",
            "attend(norms[0](x))",
        ),
        "that is Gemma 1 around the MLP: Gemma 2 also normalises what comes back": (
            "norms[3](mlp(norms[2](x)))",
            "mlp(norms[2](x))",
        ),
        "the second norm takes what attention gives, before it is added to the stream": (
            "x + norms[1](attend(norms[0](x)))",
            "norms[1](x + attend(norms[0](x)))",
        ),
        "the stream goes on beside attention: add": ("x = x + norms", "x = norms"),
    },
)
def sandwich_layer(
    x: Tensor,
    norms: list[Callable[[Tensor], Tensor]],
    attend: Callable[[Tensor], Tensor],
    mlp: Callable[[Tensor], Tensor],
) -> Tensor:
    """A layer of Gemma 2, T × D → T × D. Its four norms stand, in this order, before attention,
    after it, before the MLP, and after it.
    """
    x = x + norms[1](attend(norms[0](x)))
    return x + norms[3](mlp(norms[2](x)))


@exercise(
    "after",
    cases=lambda: iter([(6, 3), (5, 1), (4, 9)]),
    mistakes={
        "one token too many: a window of 3 is the token itself and two before it": (
            "< window",
            "<= window",
        ),
        "looks into the future as well": (
            "(apart >= 0) & (apart < window)",
            "apart.abs() < window",
        ),
        "turned on its side: a row is who looks": (
            "(apart >= 0) & (apart < window)",
            "(apart <= 0) & (apart > -window)",
        ),
    },
)
def local_mask(length: int, window: int) -> Tensor:
    """The mask of a local layer for a causal text: bool, T × T, row = who looks, True = may see.

    Each token sees the last `window` tokens, itself among them.
    """
    apart = torch.arange(length)[:, None] - torch.arange(length)
    return (apart >= 0) & (apart < window)


@exercise(
    "after",
    cases=lambda: iter([(6, 5, 1024, 32768), (48, 5, 1024, 500), (4, 1, 10, 30)]),
    mistakes={
        "a local layer keeps its window, and no more than there are": (
            "min(window, tokens)",
            "window",
        ),
        "5 : 1 makes groups of six": ("(local + 1)", "local"),
        "turned round: one in local + 1 is global": (
            "spread * tokens + (layers - spread) * min(window, tokens)",
            "spread * min(window, tokens) + (layers - spread) * tokens",
        ),
        "a global layer keeps all": (
            "spread * tokens + (layers - spread)",
            "layers",
        ),
    },
)
def kept_tokens(layers: int, local: int, window: int, tokens: int) -> int:
    """How many tokens' keys all layers together keep, after so many tokens: `local` local layers
    with that window stand before each global one, which keeps all. (layers is a multiple.)
    """
    spread = layers // (local + 1)
    return spread * tokens + (layers - spread) * min(window, tokens)
