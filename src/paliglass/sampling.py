"""Logits → the next token. Pure functions; `choose` strings them together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["GREEDY", "Sampling", "choose", "draw", "keep_top_k", "keep_top_p"]


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen.

    temperature: 0 takes the likeliest (greedy); 1 samples from the model's own distribution, less
    is bolder, more is more even. top_k, top_p: sample only among the k likeliest, or among the
    fewest that together reach probability p (nucleus sampling, arXiv 1904.09751).
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it must be 1 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must lie in (0, 1]")


GREEDY = Sampling()


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """B × V → B × V with all but the k largest of each row at −inf."""
    smallest_kept = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < smallest_kept, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """B × V → B × V with all but the fewest likeliest tokens that reach probability p at −inf.

    The token that crosses p is kept, so at least one always is.
    """
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(-1)
    reached_before = probabilities.cumsum(-1) - probabilities
    ordered = ordered.masked_fill(reached_before >= p, -torch.inf)
    return torch.empty_like(logits).scatter_(-1, order, ordered)


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Samples each row of B × V by inverting its cumulative distribution: ids B.

    uniform: B numbers in [0, 1). The same number gives the same token on every device.
    """
    if logits.device.type == "mps":  # which has no float64
        return draw(logits.cpu(), uniform).to(logits.device)
    cumulative = logits.double().softmax(-1).cumsum(-1)
    places = uniform.to(cumulative) * cumulative[:, -1]
    ids = torch.searchsorted(cumulative, places[:, None], right=True)[:, 0]
    # Rounding may place a number at the very end, behind which words without probability lie.
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())[:, 0]
    return ids.minimum(last).clamp(max=logits.shape[-1] - 1)  # of numbers that are none, any


def choose(
    logits: Tensor, samplings: Sequence[Sampling], generators: Sequence[np.random.Generator]
) -> tuple[Tensor, Tensor]:
    """Picks a token for each row of B × V, each in its own way: ids B, log-probabilities B.

    The log-probabilities are the model's own, before temperature and filters, in float32 through
    log-sum-exp: exponentials of raw logits would overflow. generators: the random numbers of each
    row, so that what it draws does not depend on the rows beside it.
    """
    logits = logits.float()
    ids = logits.argmax(-1)
    for row, (sampling, generator) in enumerate(zip(samplings, generators, strict=True)):
        if sampling.temperature > 0:
            ids[row] = _sample(logits[row : row + 1], sampling, generator)[0]
    return ids, logits.gather(-1, ids[:, None])[:, 0] - logits.logsumexp(-1)


def _sample(logits: Tensor, sampling: Sampling, generator: np.random.Generator) -> Tensor:
    # Relative to the likeliest: dividing by a tiny temperature then overflows to −inf alone. What
    # float32 has no number for would be 0 there, and 0 / 0 is none.
    temperature = max(sampling.temperature, torch.finfo(torch.float32).tiny)
    scaled = (logits - logits.amax(-1, keepdim=True)) / temperature
    if sampling.top_k is not None:
        scaled = keep_top_k(scaled, sampling.top_k)
    if sampling.top_p is not None:
        scaled = keep_top_p(scaled, sampling.top_p)
    return draw(scaled, torch.tensor([generator.random()]))
