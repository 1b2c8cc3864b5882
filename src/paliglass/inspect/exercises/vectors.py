"""Lessons 1 to 4 and 28: shapes, patches, positions, norms, connectors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from paliglass.config import GemmaConfig, PaliGemmaConfig, SigLipConfig
from paliglass.inspect.exercises.exercise import exercise
from paliglass.layers.norms import RMSNorm
from paliglass.modeling_gemma import GemmaDecoderLayer
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration

__all__ = [
    "embed_patches",
    "layer_norm",
    "layer_parameters",
    "patchify",
    "path_shapes",
    "pool_tokens",
    "resize_positions",
    "rms_norm",
    "sinusoidal",
    "unshuffle",
]

Cases = Iterator[tuple[Any, ...]]


def _sizes() -> Cases:
    yield 64, 2, 2, 32, 128
    yield 2048, 8, 1, 256, 16384
    yield 2304, 8, 4, 256, 9216


def _real_layer_parameters(width: int, heads: int, key_heads: int, head_dim: int, mlp: int) -> int:
    config = GemmaConfig(
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=head_dim,
        intermediate_size=mlp,
    )
    with torch.device("meta"):
        return sum(one.numel() for one in GemmaDecoderLayer(config, 0).parameters())


@exercise(
    "architecture",
    cases=_sizes,
    truth=_real_layer_parameters,
    mistakes={
        "keys and values have heads of their own number, not the queries'": (
            "2 * heads + 2 * key_heads",
            "4 * heads",
        ),
        "a Gemma MLP has three matrices: gate, up and down": ("3 * width * mlp", "2 * width * mlp"),
        "two RMSNorms belong to the layer, a weight for each channel": (" + 2 * width", ""),
    },
)
def layer_parameters(width: int, heads: int, key_heads: int, head_dim: int, mlp: int) -> int:
    """How many parameters a layer of Gemma's decoder has: four matrices of attention, the MLP's,
    two norms, no biases.

    width: D. heads, key_heads: of the queries, and of keys and of values. mlp: how wide it is.
    """
    attention = width * head_dim * (2 * heads + 2 * key_heads)
    return attention + 3 * width * mlp + 2 * width


def _real_path(
    image: int, patch: int, vision_width: int, width: int, words: int, vocabulary: int
) -> list[tuple[int, ...]]:
    small: dict[str, Any] = {
        "intermediate_size": 4,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    vision = SigLipConfig(hidden_size=vision_width, image_size=image, patch_size=patch, **small)
    text = GemmaConfig(hidden_size=width, vocab_size=vocabulary, head_dim=4, **small)
    model = PaliGemmaForConditionalGeneration(PaliGemmaConfig(vision, text, vocabulary - 1))
    pixels = torch.zeros(1, 3, image, image)
    seen = model.vision_tower(pixels)
    features = model.multi_modal_projector(seen)
    ids = torch.tensor([[vocabulary - 1] * seen.shape[1] + [0] * words])
    path = pixels, seen, features, model.embed(ids, features), model(ids, pixels).logits
    return [tuple(one.shape[1:]) for one in path]


@exercise(
    "architecture",
    cases=lambda: iter([(8, 4, 6, 10, 3, 20), (12, 3, 8, 4, 5, 16)]),
    truth=_real_path,
    mistakes={
        "patches lie in rows and in columns": (" ** 2", ""),
        "the sequence holds the picture's vectors and the words'": ("patches + words", "words"),
        "the projector brings the vectors to the decoder's width": (
            "(patches, width)",
            "(patches, vision_width)",
        ),
        "there are logits behind every token, patches too": (
            "(tokens, vocabulary)",
            "(words, vocabulary)",
        ),
    },
)
def path_shapes(
    image: int, patch: int, vision_width: int, width: int, words: int, vocabulary: int
) -> list[tuple[int, ...]]:
    """The shapes on the way from a picture to the logits, without the batch: pixels, what the tower
    gives, the projector, the sequence that enters the decoder, the logits of all its tokens.

    image, patch: sides in pixels. vision_width, width: of the tower, and of the decoder. words: how
    many tokens stand behind the picture's. vocabulary: rows of the table.
    """
    patches = (image // patch) ** 2
    tokens = patches + words
    pixels = (3, image, image)
    return [
        pixels,
        (patches, vision_width),
        (patches, width),
        (tokens, width),
        (tokens, vocabulary),
    ]


@exercise(
    "patches",
    cases=lambda: iter([(torch.randn(3, 8, 8), 4), (torch.randn(3, 6, 12), 3)]),
    truth=lambda picture, size: F.unfold(picture[None], size, stride=size)[0].T,
    mistakes={
        "the patches come column by column; they are read like text, row by row": (
            "1, 3, 0, 2, 4",
            "3, 1, 0, 2, 4",
        ),
        "in a patch the channel comes last; a convolution's weight is channel, y, x": (
            "1, 3, 0, 2, 4",
            "1, 3, 2, 4, 0",
        ),
        "a reshape alone does not cut squares: bring both axes of patches to the front first": (
            ".permute(1, 3, 0, 2, 4)",
            "",
        ),
    },
)
def patchify(picture: Tensor, size: int) -> Tensor:
    """Cuts a picture into squares of size × size pixels: C × H × W → P × (C · size · size).

    Patches from left to right, then downwards; in each the numbers lie as channel, y, x. H and W
    are multiples of size.
    """
    channels, high, wide = picture.shape
    parts = picture.reshape(channels, high // size, size, wide // size, size)
    return parts.permute(1, 3, 0, 2, 4).reshape(-1, channels * size * size)


@exercise(
    "patches",
    cases=lambda: iter(
        [
            (torch.randn(3, 8, 8), torch.randn(5, 3, 4, 4), torch.randn(5)),
            (torch.randn(2, 6, 9), torch.randn(4, 2, 3, 3), torch.randn(4)),
        ]
    ),
    truth=lambda picture, kernel, bias: (
        F.conv2d(picture[None], kernel, bias, stride=kernel.shape[-1])[0].flatten(1).T
    ),
    mistakes={
        "the bias is missing": (" + bias", ""),
        "patches do not overlap: the stride is the kernel's size": (", stride=size", ""),
        "a row belongs to a patch, a column to a channel of the vectors": (
            "return patches @ kernel.flatten(1).T + bias",
            "return (patches @ kernel.flatten(1).T + bias).T",
        ),
        "a kernel's numbers lie colour by colour, as a patch's do": (
            "kernel.flatten(1)",
            "kernel.permute(0, 2, 3, 1).flatten(1)",
        ),
    },
)
def embed_patches(picture: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """A convolution whose stride is its kernel's size, as a matrix product: C × H × W → P × D.

    kernel: D × C × s × s. bias: D. Patches row by row. `F.unfold`, or your `patchify`, cuts them.
    """
    size = kernel.shape[-1]
    patches = F.unfold(picture[None], size, stride=size)[0].T
    return patches @ kernel.flatten(1).T + bias


@exercise(
    "positions",
    cases=lambda: iter([(3, 4), (50, 16)]),
    mistakes={
        "all sines come first, then all cosines; here each pair stands side by side": (
            "torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)",
            "torch.cat((angles.sin(), angles.cos()), dim=-1)",
        ),
        "the last pair is too quick: pair i has θ = 10000^(−2i / width)": (
            "/ width",
            "/ width / 2",
        ),
        "the last pair is too slow: pair i has θ = 10000^(−2i / width)": ("/ width", "/ width * 2"),
    },
)
def sinusoidal(length: int, width: int) -> Tensor:
    """The table of sinusoidal positions, length × width.

    Row p has for each pair i of channels sin(p·θ), cos(p·θ) with θ = 10000^(−2i / width).
    """
    speeds = 10000.0 ** (-torch.arange(0, width, 2) / width)
    angles = torch.arange(length)[:, None] * speeds
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


@exercise(
    "positions",
    cases=lambda: iter([(torch.randn(4, 3), 4), (torch.randn(9, 5), 6)]),
    mistakes={
        "channels come first in a picture, and last in the table: transpose": (
            "table.T.reshape(1, -1, old, old)",
            "table.reshape(1, -1, old, old)",
        ),
        "a position is the middle of its patch: align_corners=False": (
            'mode="bilinear"',
            'mode="bilinear", align_corners=True',
        ),
        "the nearest vector again and again makes neighbours equal: bilinear": (
            '"bilinear"',
            '"nearest"',
        ),
        "a row belongs to a position: transpose back": (".flatten(1).T", ".flatten(1)"),
    },
)
def resize_positions(table: Tensor, side: int) -> Tensor:
    """A table of learned positions for more patches: P × D → side² × D, bilinear.

    Patches lie row by row in a square, in both tables. `F.interpolate` takes 1 × D × √P × √P.
    """
    old = math.isqrt(len(table))
    picture = table.T.reshape(1, -1, old, old)
    return F.interpolate(picture, (side, side), mode="bilinear")[0].flatten(1).T


def _vectors_and_weights() -> Cases:
    yield torch.randn(5, 8) + 2, torch.randn(8), 0.1
    yield torch.randn(2, 3, 8) * 100, torch.zeros(8), 1e-6
    yield torch.zeros(2, 4), torch.randn(4), 1e-6


def _real_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    norm = RMSNorm(len(weight), eps)
    norm.weight.data = weight
    return norm.forward(x)


@exercise(
    "norms",
    cases=_vectors_and_weights,
    truth=_real_rms_norm,
    mistakes={
        "the mean is subtracted: that is LayerNorm": (
            "x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)",
            "F.layer_norm(x, x.shape[-1:], eps=eps)",
        ),
        "Gemma multiplies by 1 + weight: a weight of 0 changes nothing": ("(1 + weight)", "weight"),
        "a vector of zeros gives NaN: eps belongs under the root": (" + eps", ""),
        "eps is added to the mean, below the root": (
            "* torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)",
            "/ (x.square().mean(-1, keepdim=True).sqrt() + eps)",
        ),
        "the squares are added up; RMS is the root of their mean": (".mean(-1", ".sum(-1"),
        "the mean goes over all tokens; each token has its own": ("-1, keepdim=True", ""),
    },
)
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Gemma's RMSNorm: … × D → … × D.

    Each vector divided by the root mean square of its channels (eps is added to the mean), then
    each channel times 1 + weight.
    """
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * (1 + weight)


@exercise(
    "norms",
    cases=lambda: iter(
        [
            (3 + torch.randn(5, 8), torch.randn(8), torch.randn(8), 1e-6),
            (0.01 * torch.randn(3, 4), torch.randn(4), torch.randn(4), 1e-2),
        ]
    ),
    truth=lambda x, weight, bias, eps: F.layer_norm(x, weight.shape, weight, bias, eps),
    mistakes={
        "without the mean taken away, that is RMSNorm with a bias": (
            "x - x.mean(-1, keepdim=True)",
            "x",
        ),
        "the variance divides by D, not by D − 1": (
            "centred.square().mean(-1, keepdim=True)",
            "x.var(-1, keepdim=True)",
        ),
        "each row by itself: over the columns goes BatchNorm": ("(-1,", "(0,"),
        "1 + weight is Gemma's RMSNorm; here the weight itself": ("* weight", "* (1 + weight)"),
        "divide by the deviation, which is the root of the variance": (
            ".rsqrt()",
            ".reciprocal()",
        ),
        "eps is added to the variance, below the root": (
            "(variance + eps).rsqrt()",
            "/ (variance.sqrt() + eps)",
        ),
    },
)
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm, T × D → T × D: each row with mean 0 and variance 1, then · weight + bias.

    weight, bias: D. eps is added to the variance. Without F.layer_norm.
    """
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred * (variance + eps).rsqrt() * weight + bias


def _shuffled() -> Cases:
    yield torch.randn(64, 32), 2
    yield torch.randn(4, 27), 3


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
        "rows and columns within a square are exchanged: the places go row by row": (
            "transpose(1, 2)",
            "permute(0, 3, 1, 2, 4)",
        ),
        "the channels of one patch lie together, four patches after each other": (
            "n, n, side, side, -1).transpose(1, 2)",
            "n, n, -1, side, side).permute(0, 3, 1, 4, 2)",
        ),
        "patches of a square do not lie behind each other in the picture: axes must be exchanged": (
            ".transpose(1, 2)",
            "",
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


@exercise(
    "connectors",
    cases=lambda: iter([(torch.randn(16, 3), 2), (torch.randn(36, 2), 3)]),
    truth=lambda tokens, side: (
        F.avg_pool2d(
            tokens.T.reshape(1, -1, math.isqrt(len(tokens)), math.isqrt(len(tokens))), side
        )[0]
        .flatten(1)
        .T
    ),
    mistakes={
        "patches that follow each other are no square: rows and columns must be apart first": (
            "tokens.reshape(n, side, n, side, -1).mean((1, 3)).flatten(0, 1)",
            "tokens.reshape(n * n, side * side, -1).mean(1)",
        ),
        "that is the sum; the mean keeps the size": ("mean((1, 3))", "sum((1, 3))"),
        "that is the largest; the mean is asked for": ("mean((1, 3))", "amax((1, 3))"),
        "one patch of the square is kept; all have a part in the mean": (
            "mean((1, 3))",
            "select(3, 0).select(1, 0)",
        ),
    },
)
def pool_tokens(tokens: Tensor, side: int) -> Tensor:
    """Fewer picture tokens, as Gemma 3 does it: the mean of each side × side square of patches.

    tokens: P × D, row by row in a square picture → (P / side²) × D, row by row.
    """
    n = math.isqrt(len(tokens)) // side
    return tokens.reshape(n, side, n, side, -1).mean((1, 3)).flatten(0, 1)
