"""A decoded token as one CUDA graph: a GPU is told once what takes thousands of calls.

Not used by `accelerate`: no GPU has measured it yet (`python -m workshop.gpu_day` will).
"""

from __future__ import annotations

import torch
from torch import Tensor

from paliglass.layers.kv_cache import KVCache
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration

__all__ = ["FixedCache", "GraphedStep"]


class FixedCache(KVCache):
    """A filled cache that goes on one token a row, in tensors that stay the same.

    A step sees all slots, those still empty behind the mask, so no shape depends on how far it is.
    """

    def __init__(self, filled: KVCache) -> None:
        self.capacity = self.max_length = filled.capacity
        self.keys, self.values, self.row_ids = filled.keys, filled.values, filled.row_ids
        self.lengths = filled.lengths.clone()
        self.slots = self.lengths[:, None].clone()
        self.holds_prompt_only = False

    def reserve(self, is_token: Tensor) -> Tensor:
        """The next slot of each row, B × 1; there must be one."""
        self.slots.copy_(self.lengths[:, None])
        self.lengths += 1
        return self.slots


class GraphedStep:
    """`extend` by one token a row on a filled cache, recorded.

    A kernel's first run may allocate, which a graph cannot hold, so two steps run before it is
    recorded, and are forgotten.
    """

    def __init__(self, model: PaliGemmaForConditionalGeneration, cache: KVCache) -> None:
        self.cache = FixedCache(cache)
        self.ids = torch.zeros_like(cache.lengths)[:, None]
        extend = PaliGemmaForConditionalGeneration.extend
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):
                extend(model, self.ids, self.cache)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.hidden = extend(model, self.ids, self.cache)
        self.cache.lengths.copy_(cache.lengths)

    def __call__(self, ids: Tensor) -> Tensor:
        """B × 1 → B × 1 × D, which the next step overwrites."""
        self.ids.copy_(ids)
        self.graph.replay()
        return self.hidden
