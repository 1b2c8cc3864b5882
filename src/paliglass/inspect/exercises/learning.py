"""Lessons 20, 24, 25, 26, 33: how a model is trained, judged and looked into."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from paliglass.checkpoints.adapters import CONFIG, PREFIX, WEIGHTS, with_adapter
from paliglass.inspect.exercises.exercise import exercise, gradients

__all__ = [
    "backward",
    "calibration_error",
    "character_errors",
    "head_attribution",
    "importance_weights",
    "lora",
    "lora_gradients",
    "muon_step",
    "rollout",
    "weighted_error",
]

Cases = Iterator[tuple[Any, ...]]


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


def _lora_cases() -> Cases:
    yield torch.randn(5, 8), torch.randn(6, 8), torch.randn(2, 8), torch.randn(6, 2), 8.0
    yield torch.randn(3, 8), torch.randn(6, 8), torch.randn(4, 8), torch.zeros(6, 4), 4.0


@exercise(
    "fine_tuning",
    cases=_lora_cases,
    truth=_real_lora,
    mistakes={
        "the correction counts α / r times; r is the number of A's rows": (" * alpha / len(a)", ""),
        "the correction counts α / r times, not α": (" / len(a)", ""),
        "only the correction is left: the frozen weights are used as well": ("x @ weight.T + ", ""),
        "r / α, upside down": ("alpha / len(a)", "len(a) / alpha"),
    },
)
def lora(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """A linear layer with a LoRA correction of rank r: … × in → … × out.

    weight: out × in, frozen. a: r × in. b: out × r. The weight is weight + b·a · α / r.
    """
    return x @ weight.T + x @ a.T @ b.T * alpha / len(a)


@exercise(
    "fine_tuning",
    cases=lambda: iter(
        [
            (torch.randn(4, 6), torch.randn(2, 6), torch.zeros(4, 2), 2.0),
            (torch.randn(5, 3), torch.randn(1, 3), torch.randn(5, 1), 0.5),
        ]
    ),
    truth=lambda g, a, b, scale: gradients(lambda a, b: (scale * b @ a * g).sum(), a, b),
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


@exercise(
    "training",
    cases=lambda: iter(
        [(torch.randn(4, 4), torch.randn(4, 4), 0.1), (torch.zeros(2, 6), torch.randn(2, 6), 0.02)]
    ),
    mistakes={
        "goes up the hill: a step is taken against the gradient": ("w - rate", "w + rate"),
        "the factor has the larger side, √max(m, n)": ("max(", "min("),
        "the singular values are still in it: Muon makes all of them 1": (
            "(u @ v_transposed)",
            "g",
        ),
        "the factor 0.2 · √max(m, n) is missing": (" * 0.2 * math.sqrt(max(g.shape))", ""),
    },
)
def muon_step(w: Tensor, g: Tensor, rate: float) -> Tensor:
    """A step of Muon without momentum: w − rate · 0.2 · √max(m, n) · U·Vᵀ, m × n.

    g = U·S·Vᵀ is the gradient's singular value decomposition: torch.linalg.svd.
    """
    u, _, v_transposed = torch.linalg.svd(g, full_matrices=False)
    return w - rate * 0.2 * math.sqrt(max(g.shape)) * (u @ v_transposed)


@exercise(
    "training",
    cases=lambda: iter(
        [(torch.randn(3), torch.randn(2), torch.randn(4, 3), torch.randn(2, 4)) for _ in range(2)]
    ),
    truth=lambda x, target, w1, w2: gradients(
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
    "evaluation",
    cases=lambda: iter(
        [("kitten", "sitting"), ("STOP", "STOP"), ("", "abc"), ("abc", ""), ("EXIT 12", "EXT 21")]
    ),
    mistakes={
        "to change a letter costs one, not a deletion and an insertion": (
            "(letter != other)",
            "2 * (letter != other)",
        ),
        "a missing letter costs one, too": (
            "list(range(len(truth) + 1))",
            "[0] * (len(truth) + 1)",
            "row[j - 1] + 1",
            "row[j - 1]",
        ),
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
    yield [0.95, 0.85, 0.81, 1.0, 0.05], [1, 1, 1, 0, 0], 10


@exercise(
    "evaluation",
    cases=_judged,
    mistakes={
        "every bin counts the same; it counts by how many answers are in it": (
            "abs(sum(scores[i] - right[i] for i in chosen))",
            "abs(sum(scores[i] - right[i] for i in chosen)) / max(len(chosen), 1)",
            "/ len(scores)",
            "/ len({min(int(s * bins), bins - 1) for s in scores})",
        ),
        "gaps above and below cancel: take their magnitude": (
            "abs(sum(scores[i] - right[i] for i in chosen))",
            "(sum(scores[i] - right[i] for i in chosen))",
        ),
        "a score of 1 belongs to the last bin": ("min(int(s * bins), bins - 1)", "int(s * bins)"),
        "each answer is held to its own score; only means over a bin can be held to a share": (
            "abs(sum(scores[i] - right[i] for i in chosen))",
            "sum(abs(scores[i] - right[i]) for i in chosen)",
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
            "out.view(*heads.shape, -1)",
            "out[: heads.shape[1]].expand(len(heads), -1, -1)",
        ),
        "that is all heads together; each is asked for alone": (
            'torch.einsum("hc,hcd,d->h", heads, rows, direction)',
            'torch.einsum("hc,hcd,d->", heads, rows, direction).expand(len(heads))',
        ),
        "a head's rows of W_O lie together, and not every so many rows apart": (
            "out.view(*heads.shape, -1)",
            "out.view(heads.shape[1], len(heads), -1).transpose(0, 1)",
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
            "use[kind] / train[kind]",
            "train[kind] / use[kind]",
        ),
        "weighted by use alone: the training set has drawn each kind `train` times already": (
            "use[kind] / train[kind]",
            "use[kind]",
        ),
        "not weighted: that is the error on the training set's own mixture": (
            "use[kind] / train[kind]",
            "1",
        ),
        "the sum; the mean over the examples is asked for": (" / len(errors)", ""),
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
