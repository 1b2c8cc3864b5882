"""Exercises of the lessons from 24 on: making, judging, serving a model, and what others do."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from paliglass.contrastive.zero_shot import embed_labels, retrieval_recall
from paliglass.inspect.exercises.exercise import exercise
from paliglass.modeling_mask_codec import MaskCodec

__all__ = [
    "accepted",
    "calibration_error",
    "character_errors",
    "class_vectors",
    "dot_bytes",
    "generate",
    "head_attribution",
    "local_mask",
    "muon_step",
    "nearest_codes",
    "read_tensor",
    "recall_at",
    "unpack_group",
    "unshuffle",
    "weighted_error",
]

Cases = Iterator[tuple[Any, ...]]


def _muon(
    sign: float = -1, pick: Callable[[int, int], int] = max
) -> Callable[[Tensor, Tensor, float], Tensor]:
    def step(w: Tensor, g: Tensor, rate: float) -> Tensor:
        u, _, v = torch.linalg.svd(g, full_matrices=False)
        return w + sign * rate * 0.2 * math.sqrt(pick(*g.shape)) * (u @ v)

    return step


@exercise(
    "training",
    cases=lambda: iter(
        [(torch.randn(4, 4), torch.randn(4, 4), 0.1), (torch.zeros(2, 6), torch.randn(2, 6), 0.02)]
    ),
    mistakes={
        "goes up the hill: a step is taken against the gradient": _muon(sign=1),
        "the factor has the larger side, √max(m, n)": _muon(pick=min),
        "the singular values are still in it: Muon makes all of them 1": lambda w, g, rate: (
            w - rate * 0.2 * math.sqrt(max(g.shape)) * g
        ),
        "the factor 0.2 · √max(m, n) is missing": lambda w, g, rate: (
            w + (_muon()(w, g, rate) - w) / (0.2 * math.sqrt(max(g.shape)))
        ),
    },
)
def muon_step(w: Tensor, g: Tensor, rate: float) -> Tensor:
    """A step of Muon without momentum: w − rate · 0.2 · √max(m, n) · U·Vᵀ, m × n.

    g = U·S·Vᵀ is the gradient's singular value decomposition: torch.linalg.svd.
    """
    u, _, v_transposed = torch.linalg.svd(g, full_matrices=False)
    return w - rate * 0.2 * math.sqrt(max(g.shape)) * (u @ v_transposed)


def _levenshtein(a: str, b: str, change: int = 1, insert: int = 1) -> int:
    row = [insert * j for j in range(len(b) + 1)]
    for i, letter in enumerate(a, 1):
        before, row = row, [i]
        for j, other in enumerate(b, 1):
            row.append(
                min(
                    before[j] + 1,
                    row[j - 1] + insert,
                    before[j - 1] + (0 if letter == other else change),
                )
            )
    return row[-1]


@exercise(
    "evaluation",
    cases=lambda: iter(
        [("kitten", "sitting"), ("STOP", "STOP"), ("", "abc"), ("abc", ""), ("EXIT 12", "EXT 21")]
    ),
    mistakes={
        "to change a letter costs one, not a deletion and an insertion": lambda a, b: _levenshtein(
            a, b, change=2
        ),
        "a missing letter costs one, too": lambda a, b: _levenshtein(a, b, insert=0),
        "compares letter by letter at the same place: one that is missing shifts all others": (
            lambda a, b: sum(x != y for x, y in zip(a, b, strict=False)) + abs(len(a) - len(b))
        ),
    },
)
def character_errors(said: str, truth: str) -> int:
    """The fewest letters to insert, delete or change that turn one text into the other."""
    row = list(range(len(truth) + 1))
    for i, letter in enumerate(said, 1):
        before, row = row, [i]
        for j, other in enumerate(truth, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other)))
    return row[-1]


def _judged() -> Cases:
    yield [0.9, 0.9, 0.9, 0.7, 0.3, 0.1], [1, 1, 0, 0, 0, 0], 2
    yield [0.95, 0.85, 0.81, 1.0, 0.05], [1, 0, 1, 1, 0], 10


def _ece(
    scores: list[float], right: list[int], bins: int, weighted: bool = True, signed: bool = False
) -> float:
    total, filled = 0.0, 0
    for b in range(bins):
        some = [
            (s, r) for s, r in zip(scores, right, strict=True) if min(int(s * bins), bins - 1) == b
        ]
        if some:
            gap = (sum(s for s, _ in some) - sum(r for _, r in some)) / len(some)
            total += (gap if signed else abs(gap)) * (len(some) if weighted else 1)
            filled += 1
    return total / (len(scores) if weighted else filled)


@exercise(
    "evaluation",
    cases=_judged,
    mistakes={
        "every bin counts the same; it counts by how many answers are in it": (
            lambda scores, right, bins: _ece(scores, right, bins, weighted=False)
        ),
        "gaps above and below cancel: take their magnitude": lambda scores, right, bins: _ece(
            scores, right, bins, signed=True
        ),
        "each answer is held to its own score; only means over a bin can be held to a share": (
            lambda scores, right, bins: (
                sum(abs(s - r) for s, r in zip(scores, right, strict=True)) / len(scores)
            )
        ),
    },
)
def calibration_error(scores: list[float], right: list[int], bins: int) -> float:
    """The expected calibration error: answers are sorted by score into so many equal bins of 0 … 1
    (a score of 1 belongs to the last); the gap between a bin's mean score and its share of right
    answers, averaged over all *answers*. right: 1 or 0 for each.
    """
    total = 0.0
    for number in range(bins):
        chosen = [i for i, s in enumerate(scores) if min(int(s * bins), bins - 1) == number]
        total += abs(sum(scores[i] - right[i] for i in chosen))
    return total / len(scores)


def _heads() -> Cases:
    yield torch.randn(4, 3), torch.randn(12, 8), torch.randn(8)
    yield torch.randn(2, 5), torch.randn(10, 6), torch.randn(6)


@exercise(
    "interpretability",
    cases=_heads,
    mistakes={
        "every head is given the first head's rows of W_O; each has its own": (
            lambda heads, out, direction: heads @ out[: heads.shape[1]] @ direction
        ),
        "that is all heads together; each is asked for alone": lambda heads, out, direction: (
            (heads.flatten() @ out @ direction)[None].expand(len(heads)).clone()
        ),
        "a head's rows of W_O lie together, and not every so many rows apart": (
            lambda heads, out, direction: torch.stack(
                [h @ out[i :: len(heads)] @ direction for i, h in enumerate(heads)]
            )
        ),
    },
)
def head_attribution(heads: Tensor, out: Tensor, direction: Tensor) -> Tensor:
    """Direct logit attribution: how much each of H heads adds to a logit, H.

    heads: H × head_dim, what they bring to the last token. out: (H · head_dim) × D, W_O; side by
    side, the heads times it are what attention adds to the stream. direction: D, the word's row of
    the head, norm included.
    """
    rows = out.view(*heads.shape, -1)  # H × head_dim × D
    return torch.einsum("hc,hcd,d->h", heads, rows, direction)


@exercise(
    "serving",
    cases=lambda: iter(
        [([5, 7, 9], [5, 7, 2, 4]), ([5, 7], [5, 7, 8]), ([3], [4, 6]), ([1, 2, 3], [9, 2, 3, 4])]
    ),
    mistakes={
        "the large model's own word at the first miss is good: it is kept, too": (
            lambda guesses, judged: [
                g for i, g in enumerate(guesses) if guesses[: i + 1] == judged[: i + 1]
            ]
        ),
        "after a miss nothing counts: what follows was asked after a wrong word": (
            lambda guesses, judged: [
                *[g for g, j in zip(guesses, judged, strict=False) if g == j],
                judged[-1],
            ]
        ),
        "what the large model says after a wrong guess is of no use, it had another beginning": (
            lambda guesses, judged: judged
        ),
        "the wrong guess is kept in place of the large model's word": lambda guesses, judged: (
            lambda n: [*guesses[: n + 1]] if n < len(guesses) else list(judged)
        )(next((i for i, g in enumerate(guesses) if g != judged[i]), len(guesses))),
    },
)
def accepted(guesses: list[int], judged: list[int]) -> list[int]:
    """Greedy speculative decoding: the tokens that a pass brings.

    guesses: k tokens of the draft. judged: k + 1, the large model's choice at the place of each
    guess, given those before it, and one after the last.
    """
    good = next((i for i, guess in enumerate(guesses) if guess != judged[i]), len(guesses))
    return [*guesses[:good], judged[good]]


def _shuffled() -> Cases:
    yield torch.randn(64, 32), 2
    yield torch.randn(4, 27), 3


def _unshuffle(swap: bool = False, first: bool = False) -> Callable[[Tensor, int], Tensor]:
    def unshuffle(tokens: Tensor, side: int) -> Tensor:
        n = math.isqrt(len(tokens))
        if first:  # channels before places
            x = tokens.reshape(n, n, -1, side, side).permute(0, 3, 1, 4, 2)
        else:
            x = tokens.reshape(n, n, side, side, -1).permute(
                *((0, 3, 1, 2, 4) if swap else (0, 2, 1, 3, 4))
            )
        return x.reshape(n * n * side * side, -1)

    return unshuffle


def _real_unshuffle(tokens: Tensor, side: int) -> Tensor:
    """torch's, whose channels lie as D × side² and come first."""
    n = math.isqrt(len(tokens))
    x = tokens.view(n, n, side * side, -1).permute(3, 2, 0, 1).reshape(-1, n, n)
    return F.pixel_shuffle(x, side).flatten(1).T


@exercise(
    "connectors",
    cases=_shuffled,
    truth=_real_unshuffle,
    mistakes={
        "rows and columns within a square are exchanged: the places go row by row": _unshuffle(
            swap=True
        ),
        "the channels of one patch lie together, four patches after each other": _unshuffle(
            first=True
        ),
        "patches of a square do not lie behind each other in the picture: axes must be exchanged": (
            lambda tokens, side: tokens.reshape(len(tokens) * side * side, -1)
        ),
    },
)
def unshuffle(tokens: Tensor, side: int) -> Tensor:
    """Turns pixel shuffle round: N × (side² · D) → (N · side²) × D.

    A token holds the side × side patches of a square, row by row, each with its D channels
    together. Tokens and patches both lie row by row in their square picture.
    """
    n = math.isqrt(len(tokens))
    x = tokens.reshape(n, n, side, side, -1).transpose(1, 2)
    return x.reshape(n * n * side * side, -1)


def _embedded() -> Cases:
    images = F.normalize(torch.randn(20, 4), dim=-1)
    texts = F.normalize(images + 0.8 * torch.randn(20, 4), dim=-1)
    for k in (1, 5):
        yield images, texts, k


@exercise(
    "zero_shot",
    cases=_embedded,
    truth=retrieval_recall,
    mistakes={
        "that is from text to picture; for each picture the nearest texts are asked for": (
            lambda images, texts, k: retrieval_recall(texts, images, k)
        ),
        "that is precision: a picture has one right text, found or not": lambda images, texts, k: (
            retrieval_recall(images, texts, k) / k
        ),
        "the texts farthest away are taken: the largest dot products are the nearest": (
            lambda images, texts, k: retrieval_recall(images, -texts, k)
        ),
        "only the first is looked at; k are": lambda images, texts, k: retrieval_recall(
            images, texts, 1
        ),
    },
)
def recall_at(images: Tensor, texts: Tensor, k: int) -> float:
    """Recall@k: the share of pictures whose own text is among the k nearest, 0 … 1.

    images, texts: n × D, of unit length; row i of both belongs together.
    """
    nearest = (images @ texts.T).topk(k, dim=-1).indices
    return (nearest == torch.arange(len(images))[:, None]).any(-1).float().mean().item()


def _class_texts() -> Cases:
    yield (F.normalize(torch.randn(3, 4, 8), dim=-1),)
    yield (F.normalize(torch.randn(2, 1, 8), dim=-1),)


def _real_class_vectors(texts: Tensor) -> Tensor:
    labels, templates = texts.shape[:2]
    model: Any = SimpleNamespace(embed_texts=lambda: texts.flatten(0, 1), device=texts.device)
    processor: Any = SimpleNamespace(words=lambda texts: {})
    return embed_labels(model, processor, ["label"] * labels, ["{}"] * templates)


@exercise(
    "zero_shot",
    cases=_class_texts,
    truth=_real_class_vectors,
    mistakes={
        "a mean of unit vectors is shorter than 1: a cosine needs unit length again": (
            lambda texts: texts.mean(1)
        ),
        "labels and templates are exchanged: the mean goes over the templates": (
            lambda texts: F.normalize(texts.mean(0), dim=-1)
        ),
    },
)
def class_vectors(texts: Tensor) -> Tensor:
    """A unit vector for each label, of its templates' unit vectors: L × templates × D → L × D."""
    return F.normalize(texts.mean(1), dim=-1)


def _local(length: int, window: int, causal: bool = True, more: int = 0) -> Tensor:
    apart = torch.arange(length)[:, None] - torch.arange(length)
    return (apart < window + more) & ((apart >= 0) if causal else (apart > -window - more))


@exercise(
    "after",
    cases=lambda: iter([(6, 3), (5, 1), (4, 9)]),
    mistakes={
        "one token too many: a window of 3 is the token itself and two before it": (
            lambda length, window: _local(length, window, more=1)
        ),
        "looks into the future as well": lambda length, window: _local(
            length, window, causal=False
        ),
        "turned on its side: a row is who looks": lambda length, window: _local(length, window).T,
    },
)
def local_mask(length: int, window: int) -> Tensor:
    """The mask of a local layer for a causal text: bool, T × T, row = who looks, True = may see.

    Each token sees the last `window` tokens, itself among them.
    """
    apart = torch.arange(length)[:, None] - torch.arange(length)
    return (apart >= 0) & (apart < window)


def _files() -> Cases:
    tensors = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor([0.5, -2.0, 7.25])}
    data = safetensors.torch.save(tensors, {"format": "pt"})
    for name in tensors:
        yield data, name


def _numbers(data: bytes, name: str, skip: bool = True) -> list[float]:
    (length,) = struct.unpack("<Q", data[:8])
    begin, end = json.loads(data[8 : 8 + length])[name]["data_offsets"]
    start = 8 + length if skip else 0
    return list(struct.unpack(f"<{(end - begin) // 4}f", data[start + begin : start + end]))


@exercise(
    "inference",
    cases=_files,
    truth=lambda data, name: safetensors.torch.load(data)[name].flatten().tolist(),
    mistakes={
        "data_offsets count from the end of the header, and not from the start of the file": (
            lambda data, name: _numbers(data, name, skip=False)
        ),
        "the header begins after 8 bytes, and so all is 8 bytes further on": lambda data, name: (
            lambda length, begin, end: list(
                struct.unpack(f"<{(end - begin) // 4}f", data[length + begin : length + end])
            )
        )(
            struct.unpack("<Q", data[:8])[0],
            *json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])[name]["data_offsets"],
        ),
        "big-endian; safetensors writes the low byte first: '<f'": lambda data, name: list(
            struct.unpack(
                f">{len(_numbers(data, name))}f",
                struct.pack(f"<{len(_numbers(data, name))}f", *_numbers(data, name)),
            )
        ),
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


def _greedy(
    next_logits: Callable[[list[int]], Tensor],
    prompt: list[int],
    end: int,
    most: int,
    with_end: bool = False,
    with_prompt: bool = False,
) -> list[int]:
    ids = list(prompt)
    while len(ids) - len(prompt) < most:
        token = int(next_logits(ids).argmax())
        if token == end:
            ids += [end] * with_end
            break
        ids.append(token)
    return ids if with_prompt else ids[len(prompt) :]


@exercise(
    "inference",
    cases=lambda: iter([(_logits([5, 5]), [5, 5], 1, most) for most in (10, 2, 0)]),
    mistakes={
        "the end token is part of the answer; it only ends it": (
            lambda f, prompt, end, most: _greedy(f, prompt, end, most, with_end=True)
        ),
        "the prompt stands before the answer; the answer alone is asked for": (
            lambda f, prompt, end, most: _greedy(f, prompt, end, most, with_prompt=True)
        ),
        "one token too many: stop at `most`": lambda f, prompt, end, most: _greedy(
            f, prompt, end, most + 1
        ),
        "the model is shown the prompt alone each time; it must see what it has said": (
            lambda f, prompt, end, most: [int(f(prompt).argmax())] * most
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


def _codes() -> Cases:
    codebook = torch.tensor([[0.0, 0.0], [3.0, 0.0], [9.0, 1.0], [-1.0, 2.0]])
    yield torch.tensor([[0.2, 0.1], [2.9, 0.4], [-2.0, 2.0], [4.0, 0.0]]), codebook
    yield torch.randn(7, 8), torch.randn(16, 8) * torch.arange(1, 17)[:, None] / 8


def _real_nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    codec = MaskCodec.__new__(MaskCodec)
    torch.nn.Module.__init__(codec)
    codec.codebook = torch.nn.Parameter(codebook)
    return codec.nearest(vectors)


@exercise(
    "masks_and_reading",
    cases=_codes,
    truth=_real_nearest,
    mistakes={
        "a large dot product is not nearness: a long code wins always; take ‖v − e‖²": (
            lambda vectors, codebook: (vectors @ codebook.T).argmax(-1)
        ),
        "that is the farthest: argmin": lambda vectors, codebook: torch.cdist(
            vectors, codebook
        ).argmax(-1),
        "compares directions only; a code has a length as well": lambda vectors, codebook: (
            F.normalize(vectors, dim=-1) @ F.normalize(codebook, dim=-1).T
        ).argmax(-1),
        "the distance is measured along one channel at a time: add up the squares first": (
            lambda vectors, codebook: (vectors[:, None] - codebook).abs().amin(-1).argmin(-1)
        ),
    },
)
def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """A VQ-VAE's middle: for each vector, N × D, the number of the nearest of V × D codes, N."""
    return (vectors[:, None] - codebook).square().sum(-1).argmin(-1)


def _shifted() -> Cases:
    use, train = {"a": 0.25, "b": 0.75}, {"a": 0.75, "b": 0.25}
    yield ["a", "a", "a", "b"], [0.1, 0.2, 0.0, 0.5], train, use
    yield (
        ["b", "a", "c"],
        [1.0, 0.0, 0.5],
        {"a": 0.5, "b": 0.3, "c": 0.2},
        {"a": 0.1, "b": 0.1, "c": 0.8},
    )


@exercise(
    "covariate_shift",
    cases=_shifted,
    mistakes={
        "upside down: a kind that is frequent in use and rare in training counts more": (
            lambda kinds, errors, train, use: (
                sum(train[k] / use[k] * e for k, e in zip(kinds, errors, strict=True)) / len(kinds)
            )
        ),
        "weighted by use alone: the training set has drawn each kind `train` times already": (
            lambda kinds, errors, train, use: (
                sum(use[k] * e for k, e in zip(kinds, errors, strict=True)) / len(kinds)
            )
        ),
        "not weighted: that is the error on the training set's own mixture": (
            lambda kinds, errors, train, use: sum(errors) / len(errors)
        ),
        "the sum; the mean over the examples is asked for": lambda kinds, errors, train, use: sum(
            use[k] / train[k] * e for k, e in zip(kinds, errors, strict=True)
        ),
    },
)
def weighted_error(
    kinds: list[str], errors: list[float], train: dict[str, float], use: dict[str, float]
) -> float:
    """Importance weighting: what mean error is to be expected in use, from training examples alone.

    kinds, errors: of each example. train, use: how probable each kind is there. The mean over the
    examples of weight · error.
    """
    weights = [use[kind] / train[kind] for kind in kinds]
    return sum(w * e for w, e in zip(weights, errors, strict=True)) / len(errors)


def _bytes() -> Cases:
    yield 10, [1, 2, 3, 4], [1, -1, 1, -1]
    yield -7, [255, 0, 200, 128], [-127, 5, 127, -1]


def _signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte


@exercise(
    "kernels",
    cases=_bytes,
    mistakes={
        "the sum so far is added to, not replaced": lambda total, unsigned, signed: sum(
            a * b for a, b in zip(unsigned, signed, strict=True)
        ),
        "the first four are unsigned: 200 is 200, not −56": lambda total, unsigned, signed: (
            total + sum(_signed(a) * b for a, b in zip(unsigned, signed, strict=True))
        ),
        "products do not wrap: they are added up in 32 bits": lambda total, unsigned, signed: (
            total + sum(_signed(a * b % 256) for a, b in zip(unsigned, signed, strict=True))
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
            lambda packed, codes, scale: [
                scale * codes[h] for h in [*[b >> 4 for b in packed], *[b & 15 for b in packed]]
            ]
        ),
        "low and high half alternate in what you give; all low halves come first": (
            lambda packed, codes, scale: [
                scale * codes[h] for b in packed for h in (b & 15, b >> 4)
            ]
        ),
        "half a byte is a place in `codes`, not the value itself": lambda packed, codes, scale: [
            scale * h for h in [*[b & 15 for b in packed], *[b >> 4 for b in packed]]
        ],
        "the group's scale multiplies every value": lambda packed, codes, scale: [
            codes[h] for h in [*[b & 15 for b in packed], *[b >> 4 for b in packed]]
        ],
    },
)
def unpack_group(packed: bytes, codes: list[int], scale: float) -> list[float]:
    """The weights of an int4 group: first those in the low halves of all bytes, then those in the
    high halves.

    Half a byte says which of the 16 codes stands for the weight. scale: the group's.
    """
    halves = [*(byte & 15 for byte in packed), *(byte >> 4 for byte in packed)]
    return [scale * codes[half] for half in halves]
