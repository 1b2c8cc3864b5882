"""Lessons 11, 12, 17, 18, 22, 32: tokens on their way in and out, boxes and masks among them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from paliglass.formats.rle import decode_rle
from paliglass.inspect.exercises.exercise import exercise, gradients
from paliglass.modeling_gemma import GemmaForCausalLM, GemmaModel
from paliglass.modeling_mask_codec import MaskCodec
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.processing_paligemma import PaliGemmaProcessor
from paliglass.sampling import draw, keep_top_p
from paliglass.tasks.boxes import Box, encode_box, parse_boxes
from paliglass.tasks.confidence import object_score as package_score

__all__ = [
    "best_pair",
    "box_to_tokens",
    "mask_of_runs",
    "merge",
    "nearest_codes",
    "object_score",
    "prompt_ids",
    "sample",
    "table_gradient",
    "tied_logits",
    "tokens_to_box",
    "top_p",
]

Cases = Iterator[tuple[Any, ...]]


def _prompts() -> Cases:
    table = torch.randn(10, 4)
    yield torch.tensor([9, 9, 2, 5]), table, torch.randn(2, 4), 9
    yield torch.tensor([3, 9, 9, 9, 5]), table, torch.randn(3, 4), 9


def _real_merge(ids: Tensor, table: Tensor, pictures: Tensor, image: int) -> Tensor:
    decoder: Any = SimpleNamespace(
        embed_tokens=table.__getitem__, config=SimpleNamespace(hidden_size=table.shape[-1])
    )
    model: Any = SimpleNamespace(
        config=SimpleNamespace(image_token_index=image),
        language_model=SimpleNamespace(
            model=SimpleNamespace(embed=lambda words: GemmaModel.embed(decoder, words))
        ),
    )
    return PaliGemmaForConditionalGeneration.embed(model, ids, pictures)


@exercise(
    "merge",
    cases=_prompts,
    truth=_real_merge,
    mistakes={
        "words are multiplied by √D": (" * table.shape[-1] ** 0.5", ""),
        "the picture's vectors are multiplied by √D, too: only words are": (
            "= pictures",
            "= pictures * table.shape[-1] ** 0.5",
        ),
        "the picture's vectors are divided by √D: they stay as the projector made them": (
            "= pictures",
            "= pictures / table.shape[-1] ** 0.5",
        ),
        "pictures always come first here; they belong where ids are <image>": (
            "sequence[ids == image] = pictures\n    return sequence",
            "return torch.cat((pictures, sequence[ids != image]))",
        ),
        "the picture is added to the embedding of <image>; it takes its place": (
            "] = pictures",
            "] += pictures",
        ),
    },
)
def merge(ids: Tensor, table: Tensor, pictures: Tensor, image: int) -> Tensor:
    """The sequence that enters the decoder, T × D.

    ids: T. table: V × D, the embeddings. pictures: P × D, what the projector made of the patches,
    to stand in order where ids are `image`. Words are multiplied by √D.
    """
    sequence = table[ids] * table.shape[-1] ** 0.5
    sequence[ids == image] = pictures
    return sequence


def _real_prompt(words: list[int], pictures: int, patches: int, image: int, bos: int) -> list[int]:
    processor: Any = SimpleNamespace(
        encode_plain=lambda text: words,
        image_token_id=image,
        bos_token_id=bos,
        num_image_tokens=patches,
    )
    return PaliGemmaProcessor.encode_prefix(processor, "", pictures)


@exercise(
    "merge",
    cases=lambda: iter([([388, 1182, 260], 1, 4, 3200, 2), ([7, 260], 2, 3, 9, 1)]),
    truth=_real_prompt,
    mistakes={
        "<bos> stands behind the pictures, before the words": (
            "[image] * (pictures * patches) + [bos]",
            "[bos] + [image] * (pictures * patches)",
        ),
        "one <image> a picture is too few: each patch needs a place": (
            "(pictures * patches)",
            "pictures",
        ),
        "every picture needs its places": ("(pictures * patches)", "patches"),
        "<bos> is missing": (" + [bos]", ""),
    },
)
def prompt_ids(words: list[int], pictures: int, patches: int, image: int, bos: int) -> list[int]:
    """The ids that PaliGemma is given, for a prompt about some pictures of `patches` patches each.

    words: the prompt's ids, the newline last. image, bos: the ids of <image> and <bos>.
    """
    return [image] * (pictures * patches) + [bos] + words


@exercise(
    "tokens",
    cases=lambda: iter(
        [((320.0, 120.0, 640.0, 360.0), 640.0, 480.0), ((0.0, 1.0, 33.3, 77.7), 100, 90)]
    ),
    truth=lambda box, width, height: encode_box(Box(*box), width, height),
    mistakes={
        "x stands before y: the order is y0 x0 y1 x1": (
            "(y0 / height, x0 / width, y1 / height, x1 / width)",
            "(x0 / width, y0 / height, x1 / width, y1 / height)",
        ),
        "the last place is 1023, so a share is multiplied by 1023": ("* 1023", "* 1024"),
        "cut off, and not rounded": ("round(", "int("),
        "a number has four digits: <loc0007>": (":04", ""),
    },
)
def box_to_tokens(box: tuple[float, float, float, float], width: float, height: float) -> str:
    """A box (x0, y0, x1, y1) in pixels of a picture → its four <loc> tokens, as one string."""
    x0, y0, x1, y1 = box
    shares = (y0 / height, x0 / width, y1 / height, x1 / width)
    return "".join(f"<loc{round(share * 1023):04}>" for share in shares)


@exercise(
    "tokens",
    cases=lambda: iter(
        [
            ({("l", "o", "w"): 5, ("l", "o", "t"): 2, ("n", "e", "w"): 6},),
            ({("a", "b"): 1, ("a", "c"): 9, ("a", "b", "d"): 1, ("e", "a", "b"): 1},),
            ({("a", "a"): 3, ("b", "b"): 3},),
            ({("a", "n", "a", "n"): 3, ("i", "t"): 5},),
        ]
    ),
    mistakes={
        "a word that occurs ten times has its pairs ten times: count them so": ("+ count", "+ 1"),
        "of two pairs that are as frequent, the one that comes last in the alphabet is asked for": (
            "max(counts, key=lambda pair: (counts",
            "min(counts, key=lambda pair: (-counts",
        ),
        "a pair that stands in a word twice counts twice": (
            "pairwise(word)",
            "set(pairwise(word))",
        ),
        "that is the rarest pair": ("max(", "min("),
    },
)
def best_pair(words: dict[tuple[str, ...], int]) -> tuple[str, str]:
    """A step of training a byte-pair tokenizer: the two neighbours that occur most often.

    words: each word, as the tuple of its pieces so far → how often it occurs. Of several pairs with
    the same count, the one that comes last in the alphabet.
    """
    counts: dict[tuple[str, str], int] = {}
    for word, count in words.items():
        for pair in pairwise(word):
            counts[pair] = counts.get(pair, 0) + count
    return max(counts, key=lambda pair: (counts[pair], pair))


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
            "reached_before < p",
            "ordered.cumsum(0) <= p",
        ),
        "what is kept must sum to 1 again": ("kept / kept.sum()", "kept"),
        "each word is judged alone; top-p adds up from the likeliest": (
            "reached_before < p",
            "ordered >= 1 - p",
        ),
        "adds up in the order of the vocabulary: sort first": (
            "probabilities.sort(descending=True)",
            "probabilities, torch.arange(len(probabilities))",
        ),
        "the kept ones are still sorted: each belongs to its own place in the vocabulary": (
            "torch.zeros_like(probabilities).scatter(0, order, kept / kept.sum())",
            "kept / kept.sum()",
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


def _real_sample(logits: Tensor, temperature: float, uniform: float) -> int:
    if not temperature:
        return int(logits.argmax())
    return int(draw(logits[None] / temperature, torch.tensor([uniform]))[0])


@exercise(
    "sampling",
    cases=lambda: iter(
        [
            (torch.tensor([1.0, 3.0, 2.0, -1.0]), temperature, uniform)
            for temperature, uniform in (
                (0.0, 0.999),
                (1.0, 0.05),
                (1.0, 0.8),
                (5.0, 0.2),
                (0.3, 0.97),
            )
        ]
    ),
    truth=_real_sample,
    mistakes={
        "temperature 0 takes the likeliest; nothing can be divided by it": (
            "if temperature == 0:\n        return int(logits.argmax())\n    ",
            "",
        ),
        "logits are divided by the temperature: the higher, the more even": (
            "logits / temperature",
            "logits * temperature",
        ),
        "the temperature is not used": ("logits / temperature", "logits"),
        "words take their part of 0 … 1 one after another: add up": (".cumsum(-1)", ""),
        "one word too early: it is the first whose sum is above the number": (
            "<= uniform).sum()",
            "<= uniform).sum().sub(1).clamp(min=0)",
        ),
    },
)
def sample(logits: Tensor, temperature: float, uniform: float) -> int:
    """The next token's id, drawn with a random number in [0, 1): the words share that interval in
    the order of their ids, each with its probability, and the one that the number falls on is said.

    logits: V. temperature: 0 takes the likeliest.
    """
    if temperature == 0:
        return int(logits.argmax())
    sums = (logits / temperature).softmax(-1).cumsum(-1)
    return int((sums <= uniform).sum())


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
        "the cap is hard: c · tanh(x / c) comes near c and never cuts": (
            "(logits / cap).tanh() * cap",
            "logits.clamp(-cap, cap)",
        ),
        "tanh gives −1 … 1: multiply by the cap again": (".tanh() * cap", ".tanh()"),
        "the cap is not used": ("(logits / cap).tanh() * cap if cap else logits", "logits"),
        "√D belongs to the input; the head takes the table as it is": (
            "hidden @ table.T",
            "hidden @ table.T * table.shape[-1] ** 0.5",
        ),
        "these are probabilities; logits are what softmax is given": (
            "(logits / cap).tanh() * cap if cap else logits",
            "((logits / cap).tanh() * cap if cap else logits).softmax(-1)",
        ),
    },
)
def tied_logits(hidden: Tensor, table: Tensor, cap: float | None) -> Tensor:
    """The logits of a head that is tied to the table of words: T × D → T × V.

    table: V × D, the embeddings. cap: None, or as in Gemma 2 the c of c · tanh(x / c).
    """
    logits = hidden @ table.T
    return (logits / cap).tanh() * cap if cap else logits


@exercise(
    "weight_tying",
    cases=lambda: iter(
        [
            (torch.tensor([1, 4, 1]), torch.randn(3, 2), torch.randn(3, 2), torch.randn(3, 6)),
            (torch.tensor([0]), torch.randn(1, 4), torch.randn(1, 4), torch.randn(1, 3)),
        ]
    ),
    truth=lambda ids, entered, hidden, logits: gradients(
        lambda table: (table[ids] * entered).sum() + (hidden @ table.T * logits).sum(),
        torch.zeros(logits.shape[1], hidden.shape[1]),
    )[0],
    mistakes={
        "that is the output's part: the table is read at the input, too": (
            "gradient.index_add(0, ids, entered)",
            "gradient",
        ),
        "that is the input's part: the output multiplies with every row": (
            "logits.T @ hidden",
            "torch.zeros(logits.shape[1], hidden.shape[1])",
        ),
        "a word that was read twice is told twice: += with an index keeps the last": (
            "return gradient.index_add(0, ids, entered)",
            "gradient[ids] += entered\n    return gradient",
        ),
    },
)
def table_gradient(ids: Tensor, entered: Tensor, hidden: Tensor, logits: Tensor) -> Tensor:
    """The gradient of a tied table, V × D, which is read at the input and multiplies at the output.

    ids: T, the words. entered: T × D, the loss's gradient with respect to what the table gave for
    them (leave √D aside). hidden: T × D, what the output multiplied with the table. logits: T × V,
    the gradient with respect to the product.
    """
    gradient = logits.T @ hidden
    return gradient.index_add(0, ids, entered)


def _real_box(answer: str, width: float, height: float) -> tuple[float, ...]:
    x0, y0, x1, y1 = parse_boxes(answer)[0].box
    return x0 * width, y0 * height, x1 * width, y1 * height


@exercise(
    "detection",
    cases=lambda: iter(
        [
            ("<loc0208><loc0064><loc0527><loc0464> tractor", 512, 512),
            ("<loc0000><loc0512><loc1023><loc0767> red circle", 640, 480),
        ]
    ),
    truth=_real_box,
    mistakes={
        "x and y are exchanged: the tokens say y0 x0 y1 x1": (
            "y0, x0, y1, x1 =",
            "x0, y0, x1, y1 =",
        ),
        "one scale for both axes: x counts in the picture's width, y in its height": (
            "* height",
            "* width",
        ),
        "1023 is the far edge: divide by 1023": ("/ 1023", "/ 1024"),
    },
)
def tokens_to_box(answer: str, width: float, height: float) -> tuple[float, ...]:
    """The first box of an answer, "<locY0><locX0><locY1><locX1> label" → x0, y0, x1, y1 in pixels
    of the picture, width × height.
    """
    y0, x0, y1, x1 = (int(answer[i + 4 : i + 8]) / 1023 for i in range(0, 36, 9))
    return x0 * width, y0 * height, x1 * width, y1 * height


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
            " / len(shape)",
            "",
        ),
        "the edges' probabilities are averaged; the geometric mean averages their logarithms": (
            "math.exp(sum(shape) / len(shape) + sum(label))",
            "sum(map(math.exp, shape)) / len(shape) * math.exp(sum(label))",
        ),
        "the label is averaged as well; its tokens' probabilities are multiplied": (
            "sum(label)",
            "sum(label) / len(label)",
        ),
        "the logarithm of the score: take exp": ("math.exp", ""),
    },
)
def object_score(shape: list[float], label: list[float]) -> float:
    """How sure the model is of an object: the geometric mean of the probabilities of its edges,
    times the product of the probabilities of its label's tokens. Both lists hold *logarithms*.
    """
    return math.exp(sum(shape) / len(shape) + sum(label))


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


@exercise(
    "masks_and_reading",
    cases=lambda: iter([([2, 3, 1], 2, 3), ([0, 1, 6, 5], 4, 3), ([9], 3, 3)]),
    truth=lambda runs, height, width: torch.from_numpy(
        decode_rle({"size": [height, width], "counts": runs})
    ),
    mistakes={
        "runs go down the columns, one column after another": (
            "reshape(width, height).T",
            "reshape(height, width)",
        ),
        "the first run is of pixels outside": ("i % 2 == 1", "i % 2 == 0"),
        "inside is True, outside False": ("i % 2 == 1", "i % 2"),
    },
)
def mask_of_runs(runs: list[int], height: int, width: int) -> Tensor:
    """A mask as COCO keeps it: run lengths → bool, H × W.

    The pixels are counted down the first column, then down the second, and so on: so many outside
    (perhaps 0), so many inside, so many outside …
    """
    inside = [i % 2 == 1 for i, run in enumerate(runs) for _ in range(run)]
    return torch.tensor(inside).reshape(width, height).T
