"""Lessons 9, 10 and 29: pictures and texts in one space."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from paliglass.contrastive.losses import clip_loss as package_clip_loss
from paliglass.contrastive.losses import siglip_loss as package_siglip_loss
from paliglass.contrastive.zero_shot import embed_labels, retrieval_recall
from paliglass.inspect.exercises.exercise import exercise, gradients

__all__ = [
    "class_vectors",
    "clip_gradient",
    "clip_loss",
    "recall_at",
    "siglip_loss",
    "starting_bias",
]

Cases = Iterator[tuple[Any, ...]]


def _pairs() -> Cases:
    yield torch.randn(3, 4), torch.randn(3, 4), math.log(1 / 0.07)
    yield 5 * torch.randn(6, 8), torch.randn(6, 8), 0.0


@exercise(
    "clip",
    cases=_pairs,
    truth=lambda images, texts, t: package_clip_loss(
        F.normalize(images, dim=-1), F.normalize(texts, dim=-1), math.exp(t)
    ),
    mistakes={
        "the vectors are not of length 1: a dot product is a cosine only then": (
            "F.normalize(images, dim=-1), F.normalize(texts, dim=-1)",
            "images, texts",
        ),
        "only rows are asked: columns, text to picture, are the other half": (
            "(F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2",
            "F.cross_entropy(logits, labels)",
        ),
        "only columns are asked: rows, picture to text, are the other half": (
            "(F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2",
            "F.cross_entropy(logits.T, labels)",
        ),
        "the cosines are multiplied by t; the factor is exp(t)": ("math.exp(t)", "t"),
        "the two halves are added; the loss is their mean": (" / 2", ""),
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


def _both_ways(logits: Tensor) -> Tensor:
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


@exercise(
    "clip",
    cases=lambda: iter([(torch.randn(3, 3),), (5 * torch.randn(5, 5),)]),
    truth=lambda logits: gradients(_both_ways, logits)[0],
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


def _unit_pairs() -> Cases:
    yield F.normalize(torch.randn(3, 4), dim=-1), F.normalize(torch.randn(3, 4), dim=-1), 10.0, -5.0
    one = F.normalize(torch.randn(4, 4), dim=-1)
    yield one, -one, 100.0, -10.0  # far off: a sigmoid of −110 is 0 in float32


@exercise(
    "siglip",
    cases=_unit_pairs,
    truth=package_siglip_loss,
    mistakes={
        "the mean is taken over all n² cells; the paper divides by n": (
            ".sum() / len(images)",
            ".mean()",
        ),
        "the bias is forgotten": (" + bias", ""),
        "the bias is not turned over with the rest: z multiplies all of scale · cosine + bias": (
            "z * (images @ texts.T * scale + bias)",
            "z * (images @ texts.T * scale) + bias",
        ),
        "every cell is asked to say yes: z is −1 off the diagonal": ("z * (", "("),
        "only the diagonal is counted: the other cells are to say no": (
            "F.logsigmoid(z * (images @ texts.T * scale + bias)).sum() / len(images)",
            "F.logsigmoid(images @ texts.T * scale + bias).diagonal().mean()",
        ),
        "log(sigmoid(x)) is −∞ where the sigmoid underflows; F.logsigmoid does not": (
            "F.logsigmoid(z * (images @ texts.T * scale + bias))",
            "(z * (images @ texts.T * scale + bias)).sigmoid().log()",
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
            "images @ texts.T",
            "texts @ images.T",
        ),
        "that is precision: a picture has one right text, found or not": ("item()", "item() / k"),
        "the texts farthest away are taken: the largest dot products are the nearest": (
            "(images @ texts.T)",
            "(-images @ texts.T)",
        ),
        "only the first is looked at; k are": ("topk(k,", "topk(1,"),
    },
)
def recall_at(images: Tensor, texts: Tensor, k: int) -> float:
    """Recall@k: the share of pictures whose own text is among the k nearest, 0 … 1.

    images, texts: n × D, of unit length; row i of both belongs together.
    """
    nearest = (images @ texts.T).topk(k, dim=-1).indices
    return (nearest == torch.arange(len(images))[:, None]).any(-1).float().mean().item()


def _real_class_vectors(texts: Tensor) -> Tensor:
    labels, templates = texts.shape[:2]
    model: Any = SimpleNamespace(embed_texts=lambda: texts.flatten(0, 1), device=texts.device)
    processor: Any = SimpleNamespace(words=lambda texts: {})
    return embed_labels(model, processor, ["label"] * labels, ["{}"] * templates)


def _class_texts() -> Cases:
    yield (F.normalize(torch.randn(3, 4, 8), dim=-1),)
    yield (F.normalize(torch.randn(2, 1, 8), dim=-1),)


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
