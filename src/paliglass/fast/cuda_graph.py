"""A decoded token as one CUDA graph: a GPU is told once what takes thousands of calls.

Not used by itself: no GPU has measured it yet. `use_graph(model)` switches it on.
"""

from __future__ import annotations

from types import MethodType

import torch
from torch import Tensor

from paliglass.layers.kv_cache import KVCache
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration

__all__ = ["FixedCache", "GraphedStep", "use_graph"]

WORTH_A_GRAPH = 4  # steps on one cache after which the next ones are recorded, which takes three


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


def use_graph(model: PaliGemmaForConditionalGeneration) -> None:
    """Makes `model.extend` record a graph once the same rows go on for some steps of one token."""
    state: dict[str, object] = {"key": None, "steps": 0, "graph": None}

    def extend(
        self: PaliGemmaForConditionalGeneration,
        input_ids: Tensor,
        kv_cache: KVCache,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        plain = PaliGemmaForConditionalGeneration.extend
        key = (id(kv_cache), id(kv_cache.keys[0]))  # other rows, or more slots: other tensors
        full = kv_cache.max_length >= kv_cache.capacity
        single = input_ids.shape[1] == 1 and (attention_mask is None or bool(attention_mask.all()))
        if not single or full or key != state["key"]:
            state.update(key=key, steps=0, graph=None)
            return plain(self, input_ids, kv_cache, attention_mask)
        state["steps"] = int(state["steps"]) + 1  # type: ignore[call-overload]
        if int(state["steps"]) < WORTH_A_GRAPH:  # type: ignore[call-overload]
            return plain(self, input_ids, kv_cache, attention_mask)
        if state["graph"] is None:
            state["graph"] = GraphedStep(self, kv_cache)
        step = state["graph"]
        assert isinstance(step, GraphedStep)
        hidden = step(input_ids).clone()
        kv_cache.lengths = kv_cache.lengths + 1
        kv_cache.max_length += 1
        return hidden

    model.extend = MethodType(extend, model)  # type: ignore[method-assign]
