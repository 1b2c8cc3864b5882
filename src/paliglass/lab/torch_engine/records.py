"""What a run keeps, to be asked about later.

All tensors are of one prompt, without a batch's dimension: T × D, or heads × T × head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paliglass.layers.attention import attend_reference

__all__ = ["Edits", "Heads", "Layer", "Mask", "Stream", "Tower"]

Edits = Mapping[str, Any]
Mask = Callable[[Tensor, Tensor], Tensor]
"""Rows and columns, T × 1 and 1 × S → T × S, True = may look."""


@dataclass
class Heads:
    """What a layer's attention is computed from. q: H × T × d; k, v: K × S × d."""

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    cap: float | None = None
    mask: Tensor | None = None

    def attend(self) -> tuple[Tensor, Tensor]:
        """The heads' output, H × T × d, and weights, H × T × S."""
        mask = None if self.mask is None else self.mask[None, None]
        q, k, v = self.q[None], self.k[None], self.v[None]
        out, weights = attend_reference(q, k, v, mask, self.scale, self.cap)
        return out[0], weights[0]

    def row(self, token: int) -> Heads:
        """The same for a single query."""
        mask = None if self.mask is None else self.mask[token : token + 1]
        return Heads(self.q[:, token : token + 1], self.k, self.v, self.scale, self.cap, mask)

    def scores(self, head: int) -> Tensor:
        """A head's scores before the softmax, T × S in float32; −inf where it may not look."""
        key = head * len(self.k) // len(self.q)
        scores = self.q[head].float() @ self.k[key].float().T * self.scale
        if self.cap:
            scores = (scores / self.cap).tanh() * self.cap
        return scores if self.mask is None else scores.masked_fill(~self.mask, -torch.inf)


@dataclass
class Layer:
    """One layer of a stream: its heads' q, k, v, the stream after attention, and after the MLP."""

    q: Tensor
    k: Tensor
    v: Tensor
    middle: Tensor
    output: Tensor

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in vars(self).values())

    def cut(self, count: int) -> Layer:
        """The first tokens alone."""
        q, k, v = (x[:, :count] for x in (self.q, self.k, self.v))
        return Layer(q, k, v, self.middle[:count], self.output[:count])


@dataclass
class Stream:
    """Tokens on their way through the decoder, and its cache. inputs, final: T × D."""

    inputs: Tensor
    final: Tensor
    layers: list[Layer]

    @property
    def length(self) -> int:
        return len(self.inputs)

    @property
    def nbytes(self) -> int:
        return self.inputs.nbytes + self.final.nbytes + sum(one.nbytes for one in self.layers)

    def cut(self, count: int) -> Stream:
        """The first tokens alone."""
        layers = [layer.cut(count) for layer in self.layers]
        return Stream(self.inputs[:count], self.final[:count], layers)


@dataclass
class Tower:
    """A picture on its way through the vision tower. pixels: 3 × S × S; inputs, features: P × D."""

    pixels: Tensor
    inputs: Tensor
    layers: list[Layer]
    scale: float
    features: Tensor

    @property
    def nbytes(self) -> int:
        own = self.pixels.nbytes + self.inputs.nbytes + self.features.nbytes
        return own + sum(layer.nbytes for layer in self.layers)
