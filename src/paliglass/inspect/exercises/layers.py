"""Lessons 5 to 8: softmax and its loss, attention, feed-forward layers, the encoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from paliglass.config import GemmaConfig, SigLipConfig
from paliglass.contrastive.encoders import AttentionPooling
from paliglass.contrastive.losses import softmax_cross_entropy
from paliglass.inspect.exercises.exercise import exercise
from paliglass.layers.attention import attend_reference
from paliglass.layers.losses import suffix_cross_entropy
from paliglass.modeling_gemma import GemmaMLP
from paliglass.modeling_siglip import SigLipAttention, SigLipVisionEncoderLayer

__all__ = [
    "attend",
    "attention_pool",
    "cross_entropy",
    "encoder_layer",
    "exact_gelu",
    "geglu",
    "multi_head",
    "suffix_loss",
]

Cases = Iterator[tuple[Any, ...]]
Function = Callable[[Tensor], Tensor]


@exercise(
    "softmax",
    cases=lambda: iter(
        [
            (torch.randn(4, 6), torch.tensor([0, 5, 2, 2])),
            (
                torch.tensor([[1000.0, 998.0, 0.0], [-1000.0, -1001.0, -1003.0]]),
                torch.tensor([1, 2]),
            ),
            (torch.tensor([[-500.0, -600.0]]), torch.tensor([1])),
        ]
    ),
    truth=softmax_cross_entropy,
    mistakes={
        "overflows: subtract each row's largest logit before exp": (
            "logits.amax(-1, keepdim=True)",
            "torch.zeros(len(logits), 1)",
        ),
        "the largest of all rows is too much for the others, whose exp is then 0: each row's own": (
            "logits.amax(-1, keepdim=True)",
            "logits.max().expand(len(logits), 1)",
        ),
        "softmax first and log then loses what is small: stay with log Σ exp": (
            "(log_sum - logits[torch.arange(len(labels)), labels])",
            "-logits.softmax(-1)[torch.arange(len(labels)), labels].log()",
        ),
        "adds the rows up; the loss is their mean": (".mean()", ".sum()"),
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
            "[:, :-1]",
            "",
            "[:, 1:]",
            "",
        ),
        "every position is counted; divide by the number of labels that are not −100": (
            "labels[:, 1:].flatten())",
            'labels[:, 1:].flatten(), reduction="sum") / labels[:, 1:].numel()',
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


@exercise(
    "attention",
    cases=_queries_keys_values,
    truth=lambda query, key, value, mask: attend_reference(
        query[None], key[None], value[None], mask, query.shape[-1] ** -0.5
    )[0][0],
    mistakes={
        "the scores are not divided by √head_dim": (" / query.shape[-1] ** 0.5", ""),
        "the scores are divided by head_dim, and not by its root": (" ** 0.5", ""),
        "the softmax goes over queries; for each query its weights over the keys sum to 1": (
            "softmax(-1)",
            "softmax(-2)",
        ),
        "what the mask forbids is taken out after the softmax, so that weights no longer sum to "
        "1: before it such a score is −∞": (
            "scores.masked_fill(~mask, -math.inf).softmax(-1)",
            "(scores.softmax(-1) * mask)",
        ),
        "a forbidden score is 0, which has a weight like any other: it must be −∞": (
            "scores.masked_fill(~mask, -math.inf)",
            "(scores * mask)",
        ),
        "the mask is not used": (".masked_fill(~mask, -math.inf)", ""),
    },
)
def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attention of H heads: softmax(Q·Kᵀ / √head_dim) · V, H × T × head_dim.

    query: H × T × head_dim. key, value: H × S × head_dim. mask: T × S, True = may look. Without
    scaled_dot_product_attention.
    """
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return scores.masked_fill(~mask, -math.inf).softmax(-1) @ value


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
        [
            (torch.randn(3, 4), *torch.randn(2, 6, 4), torch.randn(4, 6)),
            (torch.randn(2, 3, 4), *torch.randn(2, 5, 4), torch.randn(4, 5)),
        ]
    ),
    truth=_real_geglu,
    mistakes={
        "the other one is bent: GELU is for the gate": (
            'F.gelu(x @ gate.T, approximate="tanh") * (x @ up.T)',
            'x @ gate.T * F.gelu(x @ up.T, approximate="tanh")',
        ),
        "both are bent: only the gate passes GELU": (
            "(x @ up.T)",
            'F.gelu(x @ up.T, approximate="tanh")',
        ),
        "the product is bent: multiply after GELU": (
            'F.gelu(x @ gate.T, approximate="tanh") * (x @ up.T)',
            'F.gelu((x @ gate.T) * (x @ up.T), approximate="tanh")',
        ),
        "that is SiLU (SwiGLU); Gemma has GELU": (
            'F.gelu(x @ gate.T, approximate="tanh")',
            "F.silu(x @ gate.T)",
        ),
        "that is the exact GELU; Gemma has its tanh approximation": (', approximate="tanh"', ""),
    },
)
def geglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Gemma's feed-forward layer: … × D → … × D.

    gate, up: M × D. down: D × M. The gate passes GELU (its tanh approximation) and is multiplied
    with the other.
    """
    return (F.gelu(x @ gate.T, approximate="tanh") * (x @ up.T)) @ down.T


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


def _real_encoder_layer(
    x: Tensor,
    norm: Callable[[Tensor], Tensor],
    attend: Callable[[Tensor], Tensor],
    mlp: Callable[[Tensor], Tensor],
) -> Tensor:
    parts: Any = SimpleNamespace(layer_norm1=norm, self_attn=attend, layer_norm2=norm, mlp=mlp)
    return SigLipVisionEncoderLayer.forward(parts, x)


def _layers() -> Cases:
    matrix = torch.randn(4, 4)
    yield torch.randn(3, 4), lambda x: x @ matrix, lambda x: x.mean(0, keepdim=True), torch.tanh
    yield torch.randn(2, 4), lambda x: x / 2, lambda x: x + 1, lambda x: x * x


@exercise(
    "vit",
    cases=_layers,
    truth=_real_encoder_layer,
    mistakes={
        "the norm stands after the sum (post-norm); SigLIP's stands before attention and MLP": (
            "x = x + attend(norm(x))\n    return x + mlp(norm(x))",
            "x = norm(x + attend(x))\n    return norm(x + mlp(x))",
        ),
        "without the skip connections: what attention and MLP make is added to the stream": (
            "x = x + ",
            "x = ",
            "return x + ",
            "return ",
        ),
        "the second sum begins with what came in: the MLP adds to the stream after attention": (
            "x = x + attend(norm(x))\n    return x + mlp(norm(x))",
            "return x + mlp(norm(x + attend(norm(x))))",
        ),
        "the MLP reads the stream before attention; it comes after it": (
            "x = x + attend(norm(x))\n    return x + mlp(norm(x))",
            "return x + attend(norm(x)) + mlp(norm(x))",
        ),
        "the MLP's input passes the norm, too": ("mlp(norm(x))", "mlp(x)"),
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


def _pools() -> Iterator[tuple[Any, ...]]:
    matrix = torch.randn(4, 4)
    yield torch.randn(6, 4), torch.randn(4), lambda x: x / 2, lambda x: x @ matrix
    yield torch.randn(3, 8), 3 * torch.randn(8), torch.tanh, lambda x: x * x


def _real_pool(patches: Tensor, probe: Tensor, norm: Function, mlp: Function) -> Tensor:
    def attention(query: Tensor, key: Tensor, value: Tensor, need_weights: bool) -> tuple[Tensor]:
        return (F.scaled_dot_product_attention(query, key, value),)

    head: Any = SimpleNamespace(
        probe=probe[None, None], attention=attention, layernorm=norm, mlp=mlp
    )
    return AttentionPooling.forward(head, patches[None])[0]


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
