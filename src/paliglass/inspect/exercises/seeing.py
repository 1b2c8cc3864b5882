"""Exercises of the lessons 1 to 12: from pixels and words to one sequence of vectors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from paliglass.config import GemmaConfig
from paliglass.contrastive.losses import clip_loss as package_clip_loss
from paliglass.contrastive.losses import siglip_loss as package_siglip_loss
from paliglass.contrastive.losses import softmax_cross_entropy
from paliglass.inspect.exercises.exercise import exercise
from paliglass.layers.attention import attend_reference
from paliglass.layers.losses import suffix_cross_entropy
from paliglass.layers.norms import RMSNorm
from paliglass.modeling_gemma import GemmaDecoderLayer, GemmaMLP, GemmaModel
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.modeling_siglip import SigLipVisionEncoderLayer
from paliglass.tasks.boxes import Box, encode_box, parse_boxes

__all__ = [
    "attend",
    "best_pair",
    "box_to_tokens",
    "clip_loss",
    "cross_entropy",
    "encoder_layer",
    "geglu",
    "layer_parameters",
    "merge",
    "patchify",
    "rms_norm",
    "siglip_loss",
    "sinusoidal",
    "suffix_loss",
    "tokens_to_box",
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
            lambda d, h, k, size, m: d * size * 4 * h + 3 * d * m + 2 * d
        ),
        "a Gemma MLP has three matrices: gate, up and down": (
            lambda d, h, k, size, m: d * size * (2 * h + 2 * k) + 2 * d * m + 2 * d
        ),
        "two RMSNorms belong to the layer, a weight for each channel": (
            lambda d, h, k, size, m: d * size * (2 * h + 2 * k) + 3 * d * m
        ),
    },
)
def layer_parameters(width: int, heads: int, key_heads: int, head_dim: int, mlp: int) -> int:
    """How many parameters a layer of Gemma's decoder has: four matrices of attention, the MLP's,
    two norms, no biases.

    width: D. heads, key_heads: of the queries, and of keys and of values. mlp: how wide it is.
    """
    attention = width * head_dim * (2 * heads + 2 * key_heads)
    return attention + 3 * width * mlp + 2 * width


def _patchify(order: tuple[int, ...]) -> Callable[[Tensor, int], Tensor]:
    def cut(picture: Tensor, size: int) -> Tensor:
        channels, high, wide = picture.shape
        parts = picture.reshape(channels, high // size, size, wide // size, size).permute(order)
        return parts.reshape(high // size * (wide // size), -1)

    return cut


@exercise(
    "patches",
    cases=lambda: iter([(torch.randn(3, 8, 8), 4), (torch.randn(3, 6, 12), 3)]),
    truth=lambda picture, size: F.unfold(picture[None], size, stride=size)[0].T,
    mistakes={
        "the patches come column by column; they are read like text, row by row": _patchify(
            (3, 1, 0, 2, 4)
        ),
        "in a patch the channel comes last; a convolution's weight is channel, y, x": _patchify(
            (1, 3, 2, 4, 0)
        ),
        "a reshape alone does not cut squares: bring both axes of patches to the front first": (
            lambda picture, size: picture.reshape(-1, len(picture) * size * size)
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


def _sinusoidal(exponent: float, halves: bool = False) -> Callable[[int, int], Tensor]:
    def table(length: int, width: int) -> Tensor:
        speeds = 10000.0 ** (-torch.arange(0, width, 2) * exponent / width)
        angles = torch.arange(length)[:, None] * speeds
        if halves:
            return torch.cat((angles.sin(), angles.cos()), dim=-1)
        return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)

    return table


@exercise(
    "positions",
    cases=lambda: iter([(3, 4), (50, 16)]),
    mistakes={
        "all sines come first, then all cosines; here each pair stands side by side": _sinusoidal(
            1, halves=True
        ),
        "the last pair is too quick: pair i has θ = 10000^(−2i / width)": _sinusoidal(0.5),
        "the last pair is too slow: pair i has θ = 10000^(−2i / width)": _sinusoidal(2),
    },
)
def sinusoidal(length: int, width: int) -> Tensor:
    """The table of sinusoidal positions, length × width.

    Row p has for each pair i of channels sin(p·θ), cos(p·θ) with θ = 10000^(−2i / width).
    """
    speeds = 10000.0 ** (-torch.arange(0, width, 2) / width)
    angles = torch.arange(length)[:, None] * speeds
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def _real_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    norm = RMSNorm(len(weight), eps)
    norm.weight.data = weight
    return norm.forward(x)


def _vectors_and_weights() -> Cases:
    yield torch.randn(5, 8) + 2, torch.randn(8), 1e-6
    yield torch.randn(2, 3, 8) * 100, torch.zeros(8), 1e-6
    yield torch.zeros(2, 4), torch.randn(4), 1e-6


@exercise(
    "norms",
    cases=_vectors_and_weights,
    truth=_real_rms_norm,
    mistakes={
        "the mean is subtracted: that is LayerNorm": lambda x, weight, eps: (
            F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + weight)
        ),
        "Gemma multiplies by 1 + weight: a weight of 0 changes nothing": (
            lambda x, weight, eps: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight
        ),
        "a vector of zeros gives NaN: eps belongs under the root": lambda x, weight, eps: (
            x / x.square().mean(-1, keepdim=True).sqrt() * (1 + weight)
        ),
        "the squares are added up; RMS is the root of their mean": lambda x, weight, eps: (
            x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps) * (1 + weight)
        ),
        "the mean goes over all tokens; each token has its own": lambda x, weight, eps: (
            x * torch.rsqrt(x.square().mean() + eps) * (1 + weight)
        ),
    },
)
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Gemma's RMSNorm: … × D → … × D.

    Each vector divided by the root mean square of its channels (eps is added to the mean), then
    each channel times 1 + weight.
    """
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * (1 + weight)


@exercise(
    "softmax",
    cases=lambda: iter(
        [
            (torch.randn(4, 6), torch.tensor([0, 5, 2, 2])),
            (torch.tensor([[1000.0, 998.0, 0.0]]), torch.tensor([1])),
            (torch.tensor([[-500.0, -600.0]]), torch.tensor([1])),
        ]
    ),
    truth=softmax_cross_entropy,
    mistakes={
        "overflows: subtract each row's largest logit before exp": lambda logits, labels: (
            logits.exp().sum(-1).log() - logits[range(len(labels)), labels]
        ).mean(),
        "softmax first and log then loses what is small: stay with log Σ exp": (
            lambda logits, labels: -logits.softmax(-1)[range(len(labels)), labels].log().mean()
        ),
        "adds the rows up; the loss is their mean": lambda logits, labels: F.cross_entropy(
            logits, labels, reduction="sum"
        ),
    },
)
def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over rows of −log of the probability that softmax gives the label.

    logits: n × V, of any size: none may overflow. labels: n ids. Without F.cross_entropy,
    log_softmax and logsumexp.
    """
    largest = logits.amax(-1, keepdim=True)
    log_sum = largest[:, 0] + (logits - largest).exp().sum(-1).log()
    return (log_sum - logits[torch.arange(len(labels)), labels]).mean()


def _labelled() -> Cases:
    yield torch.randn(1, 6, 9), torch.tensor([[-100, -100, -100, 7, 8, 1]])
    yield torch.randn(2, 5, 9), torch.tensor([[-100, -100, 3, 1, -100], [-100, 4, 5, 6, 1]])


@exercise(
    "softmax",
    cases=_labelled,
    truth=suffix_cross_entropy,
    mistakes={
        "each position is asked for its own token; position t predicts token t + 1": (
            lambda logits, labels: F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        ),
        "every position is counted; divide by the number of labels that are not −100": (
            lambda logits, labels: (
                F.cross_entropy(
                    logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
                )
                / labels[:, 1:].numel()
            )
        ),
    },
)
def suffix_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The language model's loss: the mean cross-entropy over all tokens of all answers.

    logits: B × T × V. labels: B × T, the sequence's own ids in the answer, −100 elsewhere. What
    you need of torch you may use.
    """
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def _queries_keys_values() -> Cases:
    mask = torch.tensor([[True, False, False], [True, True, False], [True, True, True]])
    yield torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.randn(2, 3, 4), mask
    yield 3 * torch.randn(1, 2, 16), torch.randn(1, 3, 16), torch.randn(1, 3, 16), mask[1:]


def _attend(scale: float = -0.5, axis: int = -1, late: bool = False) -> Callable[..., Tensor]:
    def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** scale
        weights = (scores if late else scores.masked_fill(~mask, -math.inf)).softmax(axis)
        return (weights * mask if late else weights) @ value

    return attention


@exercise(
    "attention",
    cases=_queries_keys_values,
    truth=lambda query, key, value, mask: attend_reference(
        query[None], key[None], value[None], mask, query.shape[-1] ** -0.5
    )[0][0],
    mistakes={
        "the scores are not divided by √head_dim": _attend(scale=0),
        "the scores are divided by head_dim, and not by its root": _attend(scale=-1),
        "the softmax goes over queries; for each query its weights over the keys sum to 1": (
            _attend(axis=-2)
        ),
        "what the mask forbids is taken out after the softmax, so that weights no longer sum to "
        "1: before it such a score is −∞": _attend(late=True),
        "a forbidden score is 0, which has a weight like any other: it must be −∞": (
            lambda query, key, value, mask: (
                (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 * mask).softmax(-1) @ value
            )
        ),
        "the mask is not used": lambda query, key, value, mask: _attend()(
            query, key, value, torch.ones_like(mask)
        ),
    },
)
def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attention of H heads: softmax(Q·Kᵀ / √head_dim) · V, H × T × head_dim.

    query: H × T × head_dim. key, value: H × S × head_dim. mask: T × S, True = may look. Without
    scaled_dot_product_attention.
    """
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return scores.masked_fill(~mask, -math.inf).softmax(-1) @ value


def _real_geglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    with torch.device("meta"):
        mlp = GemmaMLP(GemmaConfig(hidden_size=len(down), intermediate_size=len(gate)))
    weights = {"gate_proj": gate, "up_proj": up, "down_proj": down}
    weights = {f"{name}.weight": weight for name, weight in weights.items()}
    out: Tensor = torch.func.functional_call(mlp, weights, (x,))
    return out


@exercise(
    "feed_forward",
    cases=lambda: iter(
        [(torch.randn(3, 4), torch.randn(6, 4), torch.randn(6, 4), torch.randn(4, 6))] * 2
    ),
    truth=_real_geglu,
    mistakes={
        "the other one is bent: GELU is for the gate": lambda x, gate, up, down: (
            (x @ gate.T * F.gelu(x @ up.T, approximate="tanh")) @ down.T
        ),
        "both are bent: only the gate passes GELU": lambda x, gate, up, down: (
            (F.gelu(x @ gate.T, approximate="tanh") * F.gelu(x @ up.T, approximate="tanh")) @ down.T
        ),
        "the product is bent: multiply after GELU": lambda x, gate, up, down: (
            F.gelu((x @ gate.T) * (x @ up.T), approximate="tanh") @ down.T
        ),
        "that is SiLU (SwiGLU); Gemma has GELU": lambda x, gate, up, down: (
            (F.silu(x @ gate.T) * (x @ up.T)) @ down.T
        ),
        "that is the exact GELU; Gemma has its tanh approximation": lambda x, gate, up, down: (
            (F.gelu(x @ gate.T) * (x @ up.T)) @ down.T
        ),
    },
)
def geglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Gemma's feed-forward layer: … × D → … × D.

    gate, up: M × D. down: D × M. The gate passes GELU (its tanh approximation) and is multiplied
    with the other.
    """
    return (F.gelu(x @ gate.T, approximate="tanh") * (x @ up.T)) @ down.T


def _layers() -> Cases:
    matrix = torch.randn(4, 4)
    yield torch.randn(3, 4), lambda x: x @ matrix, lambda x: x.mean(0, keepdim=True), torch.tanh
    yield torch.randn(2, 4), lambda x: x / 2, lambda x: x + 1, lambda x: x * x


def _real_encoder_layer(
    x: Tensor,
    norm: Callable[[Tensor], Tensor],
    attend: Callable[[Tensor], Tensor],
    mlp: Callable[[Tensor], Tensor],
) -> Tensor:
    parts: Any = SimpleNamespace(layer_norm1=norm, self_attn=attend, layer_norm2=norm, mlp=mlp)
    return SigLipVisionEncoderLayer.forward(parts, x)


@exercise(
    "vit",
    cases=_layers,
    truth=_real_encoder_layer,
    mistakes={
        "the norm stands after the sum (post-norm); SigLIP's stands before attention and MLP": (
            lambda x, norm, attend, mlp: norm(norm(x + attend(x)) + mlp(norm(x + attend(x))))
        ),
        "without the skip connections: what attention and MLP make is added to the stream": (
            lambda x, norm, attend, mlp: mlp(norm(attend(norm(x))))
        ),
        "the second sum begins with what came in: the MLP adds to the stream after attention": (
            lambda x, norm, attend, mlp: x + mlp(norm(x + attend(norm(x))))
        ),
        "the MLP reads the stream before attention; it comes after it": (
            lambda x, norm, attend, mlp: x + attend(norm(x)) + mlp(norm(x))
        ),
        "the MLP's input passes the norm, too": lambda x, norm, attend, mlp: (
            (x + attend(norm(x))) + mlp(x + attend(norm(x)))
        ),
    },
)
def encoder_layer(
    x: Tensor,
    norm: Callable[[Tensor], Tensor],
    attend: Callable[[Tensor], Tensor],
    mlp: Callable[[Tensor], Tensor],
) -> Tensor:
    """A layer of the vision tower, P × D → P × D: attention, then the MLP.

    Each reads the stream through the norm, and what it makes is added to the stream. (A real layer
    has two norms; here one serves for both.)
    """
    x = x + attend(norm(x))
    return x + mlp(norm(x))


def _pairs() -> Cases:
    yield torch.randn(3, 4), torch.randn(3, 4), math.log(1 / 0.07)
    yield 5 * torch.randn(6, 8), torch.randn(6, 8), 0.0


def _clip(logits: Tensor, rows: bool = True, columns: bool = True) -> Tensor:
    labels = torch.arange(len(logits))
    parts = [F.cross_entropy(logits, labels)] * rows + [F.cross_entropy(logits.T, labels)] * columns
    return torch.stack(parts).mean()


@exercise(
    "clip",
    cases=_pairs,
    truth=lambda images, texts, t: package_clip_loss(
        F.normalize(images, dim=-1), F.normalize(texts, dim=-1), math.exp(t)
    ),
    mistakes={
        "the vectors are not of length 1: a dot product is a cosine only then": (
            lambda images, texts, t: _clip(images @ texts.T * math.exp(t))
        ),
        "only rows are asked: columns, text to picture, are the other half": (
            lambda images, texts, t: _clip(
                F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T * math.exp(t),
                columns=False,
            )
        ),
        "only columns are asked: rows, picture to text, are the other half": (
            lambda images, texts, t: _clip(
                F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T * math.exp(t), rows=False
            )
        ),
        "the cosines are multiplied by t; the factor is exp(t)": (
            lambda images, texts, t: _clip(
                F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T * t
            )
        ),
        "the two halves are added; the loss is their mean": lambda images, texts, t: (
            2 * _clip(F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T * math.exp(t))
        ),
    },
)
def clip_loss(images: Tensor, texts: Tensor, t: float) -> Tensor:
    """CLIP's symmetric loss of n pairs: images and texts are n × D, of any length, row i of both
    belongs together, and exp(t) stretches the cosines. What you need of torch you may use.
    """
    images, texts = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
    logits = images @ texts.T * math.exp(t)
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def _unit_pairs() -> Cases:
    yield F.normalize(torch.randn(3, 4), dim=-1), F.normalize(torch.randn(3, 4), dim=-1), 10.0, -5.0
    one = F.normalize(torch.randn(4, 4), dim=-1)
    yield one, -one, 100.0, -10.0  # far off: a sigmoid of −110 is 0 in float32


def _signs(n: int) -> Tensor:
    return 2 * torch.eye(n) - 1


@exercise(
    "siglip",
    cases=_unit_pairs,
    truth=package_siglip_loss,
    mistakes={
        "the mean is taken over all n² cells; the paper divides by n": (
            lambda images, texts, scale, bias: (
                -F.logsigmoid(_signs(len(images)) * (images @ texts.T * scale + bias)).mean()
            )
        ),
        "the bias is forgotten": lambda images, texts, scale, bias: (
            -F.logsigmoid(_signs(len(images)) * (images @ texts.T * scale)).sum() / len(images)
        ),
        "the bias is not turned over with the rest: z multiplies all of scale · cosine + bias": (
            lambda images, texts, scale, bias: (
                -F.logsigmoid(_signs(len(images)) * (images @ texts.T * scale) + bias).sum()
                / len(images)
            )
        ),
        "every cell is asked to say yes: z is −1 off the diagonal": (
            lambda images, texts, scale, bias: (
                -F.logsigmoid(images @ texts.T * scale + bias).sum() / len(images)
            )
        ),
        "only the diagonal is counted: the other cells are to say no": (
            lambda images, texts, scale, bias: (
                -F.logsigmoid(images @ texts.T * scale + bias).diagonal().mean()
            )
        ),
        "log(sigmoid(x)) is −∞ where the sigmoid underflows; F.logsigmoid does not": (
            lambda images, texts, scale, bias: (
                -(_signs(len(images)) * (images @ texts.T * scale + bias)).sigmoid().log().sum()
                / len(images)
            )
        ),
    },
)
def siglip_loss(images: Tensor, texts: Tensor, scale: float, bias: float) -> Tensor:
    """SigLIP's loss of n pairs of unit vectors, n × D each: −log σ(z · (scale · cosine + bias)),
    added up over all n² cells and divided by n; z is 1 where row and column belong together, else
    −1.
    """
    z = 2 * torch.eye(len(images)) - 1
    return -F.logsigmoid(z * (images @ texts.T * scale + bias)).sum() / len(images)


def _prompts() -> Cases:
    table = torch.randn(10, 4)
    yield torch.tensor([9, 9, 2, 5]), table, torch.randn(2, 4), 9
    yield torch.tensor([3, 9, 9, 9, 5]), table, torch.randn(3, 4), 9


def _merge(words: float = 2.0, features: float = 1.0) -> Callable[..., Tensor]:
    def merge(ids: Tensor, table: Tensor, pictures: Tensor, image: int) -> Tensor:
        sequence = table[ids] * words
        sequence[ids == image] = pictures * features
        return sequence

    return merge


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
        "words are multiplied by √D": _merge(words=1),
        "the picture's vectors are multiplied by √D, too: only words are": _merge(features=2),
        "the picture's vectors are divided by √D: they stay as the projector made them": _merge(
            features=0.5
        ),
        "pictures always come first here; they belong where ids are <image>": (
            lambda ids, table, pictures, image: torch.cat(
                (pictures, table[ids[ids != image]] * table.shape[-1] ** 0.5)
            )
        ),
        "the picture is added to the embedding of <image>; it takes its place": (
            lambda ids, table, pictures, image: (
                table[ids] * 2
                + torch.zeros(len(ids), 4).masked_scatter((ids == image)[:, None], pictures)
            )
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


@exercise(
    "tokens",
    cases=lambda: iter(
        [((320.0, 120.0, 640.0, 360.0), 640.0, 480.0), ((0.0, 1.0, 33.3, 77.7), 100, 90)]
    ),
    truth=lambda box, width, height: encode_box(Box(*box), width, height),
    mistakes={
        "x stands before y: the order is y0 x0 y1 x1": lambda box, width, height: encode_box(
            Box(box[1], box[0], box[3], box[2]), height, width
        ),
        "the last place is 1023, so a share is multiplied by 1023": lambda box, width, height: (
            "".join(
                f"<loc{round(share * 1024):04}>"
                for share in (box[1] / height, box[0] / width, box[3] / height, box[2] / width)
            )
        ),
        "cut off, and not rounded": lambda box, width, height: "".join(
            f"<loc{int(share * 1023):04}>"
            for share in (box[1] / height, box[0] / width, box[3] / height, box[2] / width)
        ),
        "a number has four digits: <loc0007>": lambda box, width, height: "".join(
            f"<loc{round(share * 1023)}>"
            for share in (box[1] / height, box[0] / width, box[3] / height, box[2] / width)
        ),
    },
)
def box_to_tokens(box: tuple[float, float, float, float], width: float, height: float) -> str:
    """A box (x0, y0, x1, y1) in pixels of a picture → its four <loc> tokens, as one string."""
    x0, y0, x1, y1 = box
    shares = (y0 / height, x0 / width, y1 / height, x1 / width)
    return "".join(f"<loc{round(share * 1023):04}>" for share in shares)


def _box_of(answer: str, width: float, height: float) -> tuple[float, ...]:
    y0, x0, y1, x1 = (int(answer[i + 4 : i + 8]) for i in range(0, 36, 9))
    return x0 / 1023 * width, y0 / 1023 * height, x1 / 1023 * width, y1 / 1023 * height


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
        "x and y are exchanged: the tokens say y0 x0 y1 x1": lambda answer, width, height: tuple(
            int(answer[i + 4 : i + 8]) / 1023 * size
            for i, size in zip(range(0, 36, 9), (width, height) * 2, strict=True)
        ),
        "one scale for both axes: x counts in the picture's width, y in its height": (
            lambda answer, width, height: _box_of(answer, width, width)
        ),
        "1023 is the far edge: divide by 1023": lambda answer, width, height: tuple(
            edge * 1023 / 1024 for edge in _box_of(answer, width, height)
        ),
    },
)
def tokens_to_box(answer: str, width: float, height: float) -> tuple[float, ...]:
    """The first box of an answer, "<locY0><locX0><locY1><locX1> label" → x0, y0, x1, y1 in pixels
    of the picture, width × height.
    """
    y0, x0, y1, x1 = (int(answer[i + 4 : i + 8]) / 1023 for i in range(0, 36, 9))
    return x0 * width, y0 * height, x1 * width, y1 * height


def _pair_counts(
    words: dict[tuple[str, ...], int], weighted: bool = True
) -> Counter[tuple[str, str]]:
    counts: Counter[tuple[str, str]] = Counter()
    for word, count in words.items():
        for pair in pairwise(word):
            counts[pair] += count if weighted else 1
    return counts


def _last(counts: Counter[tuple[str, str]]) -> tuple[str, str]:
    return max(counts, key=lambda pair: (counts[pair], pair))


@exercise(
    "tokens",
    cases=lambda: iter(
        [
            ({("l", "o", "w"): 5, ("l", "o", "t"): 2, ("n", "e", "w"): 6},),
            ({("a", "b"): 1, ("a", "c"): 9, ("a", "b", "d"): 1, ("e", "a", "b"): 1},),
            ({("a", "a"): 3, ("b", "b"): 3},),
        ]
    ),
    mistakes={
        "a word that occurs ten times has its pairs ten times: count them so": lambda words: _last(
            _pair_counts(words, weighted=False)
        ),
        "of two pairs that are as frequent, the one that comes last in the alphabet is asked for": (
            lambda words: min(_pair_counts(words).items(), key=lambda one: (-one[1], one[0]))[0]
        ),
        "that is the rarest pair": lambda words: min(
            _pair_counts(words).items(), key=lambda one: (one[1], one[0])
        )[0],
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
