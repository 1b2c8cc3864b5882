"""The second exercises of lessons that have one elsewhere, in the order of the lessons."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from paliglass.config import GemmaConfig, PaliGemmaConfig, SigLipConfig
from paliglass.contrastive.encoders import AttentionPooling
from paliglass.formats.rle import decode_rle
from paliglass.inspect.exercises.exercise import exercise
from paliglass.layers.masks import prefix_lm_mask
from paliglass.layers.rope import apply_rotary, rotary_cos_sin
from paliglass.modeling_gemma import GemmaDecoderLayer
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.modeling_siglip import SigLipAttention
from paliglass.processing_paligemma import PaliGemmaProcessor
from paliglass.sampling import draw

__all__ = [
    "attention_pool",
    "backward",
    "clip_gradient",
    "embed_patches",
    "exact_gelu",
    "fewer_key_heads",
    "importance_weights",
    "int8_product",
    "kept_tokens",
    "layer_norm",
    "lora_gradients",
    "mask_of_runs",
    "multi_head",
    "packed_mask",
    "path_shapes",
    "pool_tokens",
    "prompt_ids",
    "relative_score",
    "resize_positions",
    "ridge_batch",
    "rollout",
    "sample",
    "sandwich_layer",
    "speculative_token",
    "starting_bias",
    "table_gradient",
]

Function = Callable[[Tensor], Tensor]


def _gradients(loss: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    """What backpropagation gives for each input."""
    with torch.enable_grad():
        leaves = [one.detach().clone().requires_grad_() for one in inputs]
        return torch.autograd.grad(loss(*leaves), leaves)


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
    """A convolution whose stride is its kernel's size, as a matrix product: C × S × S → P × D.

    kernel: D × C × s × s. bias: D. Patches row by row. `F.unfold`, or your `patchify`, cuts them.
    """
    size = kernel.shape[-1]
    patches = F.unfold(picture[None], size, stride=size)[0].T
    return patches @ kernel.flatten(1).T + bias


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


def _real_multi_head(
    x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, wo: Tensor, heads: int
) -> Tensor:
    module = SigLipAttention(SigLipConfig(hidden_size=len(wq), num_attention_heads=heads))
    for linear, weight in zip(
        (module.q_proj, module.k_proj, module.v_proj, module.out_proj),
        (wq, wk, wv, wo),
        strict=True,
    ):
        linear.weight.data, linear.bias.data = weight, torch.zeros(len(weight))
    return module(x[None])[0]


@exercise(
    "attention",
    cases=lambda: iter(
        [
            (torch.randn(5, 8), *torch.randn(4, 8, 8), 2),
            (torch.randn(3, 12), *torch.randn(4, 12, 12), 4),
        ]
    ),
    truth=_real_multi_head,
    mistakes={
        "a head is a cut of every token's channels; a mere reshape mixes tokens": (
            ".reshape(len(x), heads, -1).transpose(0, 1)",
            ".reshape(heads, len(x), -1)",
        ),
        "heads lie side by side in a token before W_O: transpose back first": (
            ".transpose(0, 1).flatten(1) @ wo.T",
            ".reshape(len(x), -1) @ wo.T",
        ),
        "W_O is missing": (" @ wo.T", ""),
        "scores are divided by √head_dim, not by √D": ("query.shape[-1]", "x.shape[-1]"),
        "scores are not divided by √head_dim": (" / query.shape[-1] ** 0.5", ""),
        "a linear layer is x·Wᵀ": ("(x @ w.T)", "(x @ w)"),
    },
)
def multi_head(x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, wo: Tensor, heads: int) -> Tensor:
    """Multi-head self-attention without mask and biases, T × D → T × D.

    wq, wk, wv, wo: D × D, as nn.Linear keeps them. Head i takes the i-th D / heads channels of
    queries, keys, values, and gives those of W_O's input.
    """
    query, key, value = ((x @ w.T).reshape(len(x), heads, -1).transpose(0, 1) for w in (wq, wk, wv))
    weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
    return (weights @ value).transpose(0, 1).flatten(1) @ wo.T


@exercise(
    "feed_forward",
    cases=lambda: iter([(torch.linspace(-4, 4, 33),), (torch.randn(2, 3),)]),
    truth=F.gelu,
    mistakes={
        "that is the approximation with tanh; the exact one has the error function": (
            "torch.erf(x / math.sqrt(2))",
            "torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))",
        ),
        "that is Φ(x), the share below x; GELU is x times that": ("x * (1", "(1"),
        "a deviation of 1 stands as x / √2 in the error function": ("x / math.sqrt(2)", "x"),
        "1 + erf lies between 0 and 2: half of it": (" / 2", ""),
    },
)
def exact_gelu(x: Tensor) -> Tensor:
    """GELU as it is defined, x · Φ(x): Φ(x), the share of a normal distribution below x, is half of
    1 + erf(x / √2).
    """
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def _real_pool(patches: Tensor, probe: Tensor, norm: Function, mlp: Function) -> Tensor:
    def attention(query: Tensor, key: Tensor, value: Tensor, need_weights: bool) -> tuple[Tensor]:
        return (F.scaled_dot_product_attention(query, key, value),)

    head: Any = SimpleNamespace(
        probe=probe[None, None], attention=attention, layernorm=norm, mlp=mlp
    )
    return AttentionPooling.forward(head, patches[None])[0]


def _pools() -> Iterator[tuple[Any, ...]]:
    matrix = torch.randn(4, 4)
    yield torch.randn(6, 4), torch.randn(4), lambda x: x / 2, lambda x: x @ matrix
    yield torch.randn(3, 8), 3 * torch.randn(8), torch.tanh, lambda x: x * x


@exercise(
    "vit",
    cases=_pools,
    truth=_real_pool,
    mistakes={
        "all patches count alike; the probe asks, and those that answer count more": (
            "weights @ patches",
            "patches.mean(0)",
        ),
        "scores are divided by √D": (" / len(probe) ** 0.5", ""),
        "the patch that answers best is taken alone; a weighted mean is asked for": (
            "weights @ patches",
            "patches[weights.argmax()]",
        ),
        "the MLP adds to what was pooled": ("return pooled + ", "return "),
        "the MLP's input passes the norm": ("mlp(norm(pooled))", "mlp(pooled)"),
    },
)
def attention_pool(
    patches: Tensor,
    probe: Tensor,
    norm: Callable[[Tensor], Tensor],
    mlp: Callable[[Tensor], Tensor],
) -> Tensor:
    """One vector for a whole picture, P × D → D: SigLIP's own head, which PaliGemma leaves out.

    probe: D, a query that was learned. It attends to all patches (with one head; keys and values
    are the patches themselves), and behind it, with a norm and a skip, stands an MLP.
    """
    weights = (patches @ probe / len(probe) ** 0.5).softmax(0)
    pooled = weights @ patches
    return pooled + mlp(norm(pooled))


def _both_ways(logits: Tensor) -> Tensor:
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


@exercise(
    "clip",
    cases=lambda: iter([(torch.randn(3, 3),), (5 * torch.randn(5, 5),)]),
    truth=lambda logits: _gradients(_both_ways, logits)[0],
    mistakes={
        "texts are asked too: the softmax down the columns": (" + logits.softmax(0) - right", ""),
        "each half is a mean over n questions": ("(2 * len(logits))", "2"),
        "the loss is the mean of two halves": ("(2 * len(logits))", "len(logits)"),
        "what is right is taken away: the diagonal must rise": (" - right", ""),
        "turned round: the gradient is p − y, and a step goes against it": (
            "/ (2 * len(logits))",
            "/ (-2 * len(logits))",
        ),
    },
)
def clip_gradient(logits: Tensor) -> Tensor:
    """The gradient of CLIP's loss with respect to its logits, n × n, without autograd.

    The loss is half the mean cross-entropy of the rows and half that of the columns; the diagonal
    is right in both. Of one cross-entropy it is p − y.
    """
    right = torch.eye(len(logits))
    return (logits.softmax(1) - right + logits.softmax(0) - right) / (2 * len(logits))


@exercise(
    "siglip",
    cases=lambda: iter([(2,), (10,), (32768,)]),
    truth=lambda n: torch.logit(torch.tensor(1 / n, dtype=torch.float64)).item(),
    mistakes={
        "that is the share itself: of which number is it the sigmoid?": (
            "-math.log(n - 1)",
            "1 / n",
        ),
        "against one right text stand n − 1 wrong ones": ("n - 1", "n"),
        "turned round: so large a bias says yes to all": ("-math.log", "math.log"),
    },
)
def starting_bias(n: int) -> float:
    """The bias with which SigLIP says at the start what is so: at cosine 0, a pair's probability is
    the share of true pairs among n texts, σ(bias) = 1/n. (With the paper's 32 768: −10.4.)
    """
    return -math.log(n - 1)


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


def _real_packed(examples: list[tuple[int, int]]) -> Tensor:
    return torch.block_diag(  # type: ignore[no-untyped-call]
        *(
            prefix_lm_mask(
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


@exercise(
    "weight_tying",
    cases=lambda: iter(
        [
            (torch.tensor([1, 4, 1]), torch.randn(3, 2), torch.randn(3, 2), torch.randn(3, 6)),
            (torch.tensor([0]), torch.randn(1, 4), torch.randn(1, 4), torch.randn(1, 3)),
        ]
    ),
    truth=lambda ids, entered, hidden, logits: _gradients(
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


def _sandwiches() -> Iterator[tuple[Any, ...]]:
    matrix = torch.randn(4, 4)
    norms = [lambda x, by=by: x / by for by in (1.5, 3.0, 0.7, 2.0)]
    yield torch.randn(3, 4), norms, lambda x: (x @ matrix).tanh(), torch.cos


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
    "fine_tuning",
    cases=lambda: iter(
        [
            (torch.randn(4, 6), torch.randn(2, 6), torch.zeros(4, 2), 2.0),
            (torch.randn(5, 3), torch.randn(1, 3), torch.randn(5, 1), 0.5),
        ]
    ),
    truth=lambda g, a, b, scale: _gradients(lambda a, b: (scale * b @ a * g).sum(), a, b),
    mistakes={
        "the change is scale · B·A: the scale stands in both": (
            "scale * b.T @ g, scale * g @ a.T",
            "b.T @ g, g @ a.T",
        ),
        "A's gradient is 0 at the start, when B is, and not later": (
            "scale * b.T @ g,",
            "torch.zeros_like(a),",
        ),
        "A's gradient first, then B's": (
            "scale * b.T @ g, scale * g @ a.T",
            "scale * g @ a.T, scale * b.T @ g",
        ),
    },
)
def lora_gradients(g: Tensor, a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """What LoRA's two matrices are told: the gradients of A, r × in, and of B, out × r.

    The layer's matrix is W + scale · B·A; g, out × in, is the loss's gradient with respect to it.
    """
    return scale * b.T @ g, scale * g @ a.T


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
    "training",
    cases=lambda: iter(
        [(torch.randn(3), torch.randn(2), torch.randn(4, 3), torch.randn(2, 4)) for _ in range(2)]
    ),
    truth=lambda x, target, w1, w2: _gradients(
        lambda w1, w2: (w2 @ (w1 @ x).relu() - target).square().sum(), w1, w2
    ),
    mistakes={
        "ReLU lets nothing back where it let nothing through": (" * (hidden > 0)", ""),
        "the derivative of (y − t)² has a 2": ("2 * (", "("),
        "turned round: y − t": ("w2 @ hidden - target", "target - w2 @ hidden"),
        "w2's gradient is an outer product with its input, which came through ReLU": (
            "torch.outer(error, hidden)",
            "torch.outer(error, w1 @ x)",
        ),
    },
)
def backward(x: Tensor, target: Tensor, w1: Tensor, w2: Tensor) -> tuple[Tensor, Tensor]:
    """Backpropagation without autograd: the gradients of w1 and w2, for the loss
    Σ (w2 · relu(w1 · x) − target)².

    x: in. w1: hidden × in. w2: out × hidden. target: out.
    """
    hidden = (w1 @ x).relu()
    error = 2 * (w2 @ hidden - target)
    before = (w2.T @ error) * (hidden > 0)
    return torch.outer(before, x), torch.outer(error, hidden)


@exercise(
    "interpretability",
    cases=lambda: iter([(torch.randn(3, 4, 4).softmax(-1),), (torch.randn(1, 2, 2).softmax(-1),)]),
    mistakes={
        "the half that the skip connection carries on is missing": (
            "(layer + torch.eye(len(layer))) / 2 @ whole",
            "layer @ whole",
        ),
        "a later layer reads what the earlier ones made: it stands at the left": (
            "(layer + torch.eye(len(layer))) / 2 @ whole",
            "whole @ (layer + torch.eye(len(layer))) / 2",
        ),
        "rows must sum to 1: half attention, half skip": (" / 2", ""),
        "a mean of the layers; what a layer reads was mixed by the one before it": (
            "return whole",
            "return attention.mean(0)",
        ),
    },
)
def rollout(attention: Tensor) -> Tensor:
    """Attention rollout (arXiv 2005.00928): how much of each input, by attention alone, is in each
    output, T × T.

    attention: L × T × T, of each layer, from the first; row = who looks, rows sum to 1. Half of a
    token goes on through the skip connection, half is what it attends to.
    """
    whole = torch.eye(attention.shape[-1])
    for layer in attention:
        whole = (layer + torch.eye(len(layer))) / 2 @ whole
    return whole


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


@exercise(
    "covariate_shift",
    cases=lambda: iter([([0.5, 0.9, 0.2], 100, 100), ([0.5, 0.75], 300, 100)]),
    mistakes={
        "the odds are p against 1 − p": ("p / (1 - p) * train / use", "p * train / use"),
        "upside down: what is likely in use weighs more": (
            "p / (1 - p) * train / use",
            "(1 - p) / p * train / use",
        ),
        "who saw three times as many of one kind believes in it three times as much": (
            " * train / use",
            "",
        ),
        "the numbers of examples the other way round: odds of use against train, corrected": (
            "train / use",
            "use / train",
        ),
    },
)
def importance_weights(probabilities: list[float], train: int, use: int) -> list[float]:
    """The weights p_use(x) / p_train(x) of examples, from a classifier that tells the two apart.

    probabilities: that an input is from use, as a classifier says that was trained on so many
    examples from `train` and from `use`.
    """
    return [p / (1 - p) * train / use for p in probabilities]
