"""The decoder's loss: the cross-entropy of the suffix."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

__all__ = ["IGNORE", "Reduction", "suffix_cross_entropy"]

IGNORE = -100
"""The label of a position that is not to be predicted: prefix, picture, padding."""

Reduction = Literal["token_mean", "example_mean"]


def suffix_cross_entropy(
    logits: Tensor, labels: Tensor, reduction: Reduction = "token_mean"
) -> Tensor:
    """How surprised the model is by the suffix, in nats per token.

    logits: B × T × V, labels: B × T with `IGNORE` outside the suffix; position t predicts label
    t + 1. "token_mean" is the mean over all suffix tokens of the batch (transformers);
    "example_mean" the mean of each row's mean, so that a long answer weighs no more than a short
    one (big_vision).
    """
    targets = labels[:, 1:]
    losses = F.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), targets, ignore_index=IGNORE, reduction="none"
    )
    counted = targets != IGNORE
    if reduction == "token_mean":
        return losses.sum() / counted.sum()
    if reduction != "example_mean":
        raise ValueError(f"reduction is {reduction!r}; it must be token_mean or example_mean")
    return (losses.sum(-1) / counted.sum(-1).clamp(min=1)).mean()
