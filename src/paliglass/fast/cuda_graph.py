"""A decoded token as one CUDA graph: a GPU is told once what takes hundreds of calls.

    recorded step    tensors that stay where they are, for 1, 2, 4, 8 … rows and 512, 1024 … slots
    a cache          is lent them: its rows are copied in once, and lie there from then on

- a cache keeps its own slots, so that steps of several tokens, which run as ever, and replays of
  one token a row may alternate
- rows that join or leave, and a cache that grows, make tensors of their own again: the next step is
  lent a recorded step of that size, and what was recorded is used again by whoever comes next
- where nothing can be recorded, tokens are decoded as ever
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from paliglass.config import GemmaConfig
from paliglass.layers.kv_cache import KVCache
from paliglass.layers.masks import cached_mask
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration

__all__ = ["FixedCache", "GraphedPaliGemma", "GraphedStep", "Graphs", "record", "replace"]

SLOTS = 512  # a recorded step has a multiple of so many
IDLE_BYTES = 1 << 30  # of recorded steps' caches that nobody uses just now
DEVICES = ("cuda",)

_streams: dict[torch.device, torch.cuda.Stream] = {}
# A process records one graph at a time. None is replayed meanwhile: products that were recorded on
# a stream share its workspace.
_one_at_a_time = threading.Lock()


def record(step: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
    """Runs a step on a GPU and keeps its kernels: what runs them again, and what they write to.

    A kernel's first run may allocate, which a graph cannot hold, so that it runs twice before.
    Other threads may use the GPU meanwhile. On the default stream, as replays.

    Raises RuntimeError where there is too little memory, and for what a graph cannot hold.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        if device not in _streams:
            _streams[device] = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside = _streams[device]
        aside.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(aside):  # `torch.cuda.graph` alone stays on it after an error
                for _ in range(2):
                    step()
                with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
                    out = step()
        finally:  # what is let go of after an error may still be written to
            torch.cuda.current_stream().wait_stream(aside)
    return graph.replay, out


class FixedCache(KVCache):
    """A cache for one token a row in tensors that stay the same; `slots` says where, B × 1.

    A step sees all slots, those still empty behind the mask, so no shape depends on how far it is.
    """

    def __init__(
        self,
        config: GemmaConfig,
        batch_size: int,
        capacity: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(config, batch_size, capacity, device, dtype)
        self.max_length, self.holds_prompt_only = capacity, False
        self.slots = torch.zeros(batch_size, 1, dtype=torch.long, device=device)
        self.rows = torch.arange(batch_size, device=device)[:, None]

    def reserve(self, is_token: Tensor) -> Tensor:
        """Those that `slots` holds already."""
        return self.slots

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """As `KVCache.update`, of all slots."""
        for stored, new in ((self.keys[layer], key), (self.values[layer], value)):
            stored.transpose(1, 2)[self.rows, self.slots] = new.transpose(1, 2)
        used = slice(self.capacity)
        return self.keys[layer][:, :, used], self.values[layer][:, :, used]


class GraphedStep:
    """`extend` by one token a row, recorded for so many rows and slots."""

    def __init__(self, model: PaliGemmaForConditionalGeneration, rows: int, capacity: int) -> None:
        decoder, dtype = model.language_model.model, model.dtype
        with torch.inference_mode(False):
            cache = FixedCache(decoder.config, rows, capacity, model.device, dtype)
            ids = torch.zeros_like(cache.slots)
        self.cache, self.ids = cache, ids
        tables = [t for m in decoder.modules() for t in (m._modules, m._parameters, m._buffers)]
        self._parts = [(table, name, part) for table in tables for name, part in table.items()]
        weights = [part for _, _, part in self._parts if isinstance(part, Tensor)]
        self._places = [(weight, weight.data_ptr()) for weight in weights]
        self._owner: Callable[[], KVCache | None] = lambda: None
        self._lent: Tensor | None = None

        def step() -> Tensor:
            seen = cached_mask(cache.slots, capacity)
            # Added to the scores: made once, where layers would each make it of what may be seen.
            bias = torch.zeros_like(seen, dtype=dtype)
            bias.masked_fill_(~seen, torch.finfo(dtype).min)
            return decoder(decoder.embed(ids), cache.slots + 1, bias, cache)

        with torch.inference_mode(), _one_at_a_time:
            self._replay, self._hidden = record(step, model.device)

    def __call__(self, ids: Tensor, slots: Tensor) -> Tensor:
        """The rows' tokens and their slots, B × 1 each → B × 1 × D."""
        count = len(ids)
        with torch.inference_mode():
            self.ids[:count] = ids
            self.cache.slots[:count] = slots
            with _one_at_a_time:
                self._replay()
        return self._hidden[:count].clone()  # the next step writes to the same place

    @property
    def num_bytes(self) -> int:
        return self.cache.num_bytes

    def is_current(self) -> bool:
        """Whether the decoder has the modules and weights that it had, where they lay."""
        return all(table.get(name) is part for table, name, part in self._parts) and all(
            weight.data_ptr() == place for weight, place in self._places
        )

    def holds(self, cache: KVCache) -> bool:
        """Whether a cache's tensors are these."""
        return cache.values[-1] is self._lent

    def is_free(self) -> bool:
        """Whether no cache's tensors are these: it is gone, or its rows have moved elsewhere."""
        owner = self._owner()
        return owner is None or not self.holds(owner)

    @torch.inference_mode(False)
    @torch.no_grad()
    def lend(self, cache: KVCache) -> None:
        """Moves a cache's rows in here: its tensors are then these."""
        count, used, own = len(cache), cache.max_length, self.cache
        own.slots.zero_()  # of rows that nobody has
        for mine, theirs in ((own.keys, cache.keys), (own.values, cache.values)):
            for layer, stored in enumerate(theirs):
                mine[layer].zero_()  # the last owner's may be NaN, which a weight of 0 keeps
                mine[layer][:count, :, :used] = stored[:, :, :used]
                theirs[layer] = mine[layer][:count]
        cache.capacity = own.capacity
        self._owner, self._lent = weakref.ref(cache), cache.values[-1]


class Graphs:
    """A model's recorded steps. Threads may use it together, each with caches of its own.

    recorded: how many were made. failed: rows and slots of those that could not be.
    """

    def __init__(self) -> None:
        self.recorded = 0
        self.failed: set[tuple[int, int]] = set()
        self._steps: list[GraphedStep] = []  # the last lent one last
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Graphs], tuple[()]]:
        """Nothing: a copied model has to record its own."""
        return Graphs, ()

    def step_for(
        self, model: PaliGemmaForConditionalGeneration, cache: KVCache
    ) -> GraphedStep | None:
        """What runs one more token of each row of a cache, whose tensors it then holds.

        None where it could not be recorded; a warning tells the first time.
        """
        with self._lock:
            room = cache.max_length + 1
            for step in self._steps:
                if step.holds(cache) and room <= step.cache.capacity and step.is_current():
                    return step
            rows, capacity = 1 << (len(cache) - 1).bit_length(), -(-room // SLOTS) * SLOTS
            found = self._take(rows, capacity)
            if found is None and (rows, capacity) not in self.failed:
                try:
                    found = GraphedStep(model, rows, capacity)
                    self.recorded += 1
                except RuntimeError as error:  # torch's: of memory, of capturing
                    self._fail(rows, capacity, error)
            if found is not None:
                found.lend(cache)
                self._steps.append(found)
                self._trim(IDLE_BYTES)
            return found

    def _take(self, rows: int, capacity: int) -> GraphedStep | None:
        """A recorded step of this size that nobody uses."""
        self._steps = [step for step in self._steps if step.is_current()]
        for i, step in enumerate(self._steps):
            if (len(step.cache), step.cache.capacity) == (rows, capacity) and step.is_free():
                return self._steps.pop(i)
        return None

    def _fail(self, rows: int, capacity: int, error: RuntimeError) -> None:
        if not self.failed:
            why = str(error).partition("\n")[0]
            warnings.warn(
                f"no CUDA graph for {rows} rows of {capacity} tokens ({why}): they are decoded "
                "without, which is slower",
                RuntimeWarning,
                stacklevel=2,
            )
        self.failed.add((rows, capacity))
        self._trim(0)

    def _trim(self, limit: int) -> None:
        """Lets go of steps that nobody uses and that were used longest ago, down to a limit."""
        idle = [step for step in self._steps if step.is_free()]
        kept = sum(step.num_bytes for step in idle)
        for step in idle:
            if kept <= limit:
                return
            self._steps.remove(step)
            kept -= step.num_bytes


class GraphedPaliGemma(PaliGemmaForConditionalGeneration):
    """A `PaliGemmaForConditionalGeneration` whose tokens are replayed, one a row."""

    graphs: Graphs
    hooks: Sequence[Mapping[int, Callable[..., object]]]  # of all of the decoder's modules

    def extend(
        self, input_ids: Tensor, kv_cache: KVCache, attention_mask: Tensor | None = None
    ) -> Tensor:
        """As `PaliGemmaForConditionalGeneration.extend`."""
        step = None
        if input_ids.shape == (len(kv_cache), 1) and self._can_replay(kv_cache):
            step = self.graphs.step_for(self, kv_cache)
        if step is None:
            return super().extend(input_ids, kv_cache, attention_mask)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        return step(input_ids, kv_cache.reserve(attention_mask[:, -1:].bool()))

    def _can_replay(self, cache: KVCache) -> bool:
        """Whether nobody learns or looks at modules, the cache is one of this model's, and work is
        queued on the default stream: work on several would not wait for each other.
        """
        keys = cache.keys[0]
        return (
            keys.device.type in DEVICES
            and not (cache.is_empty or self.training or torch.is_grad_enabled() or any(self.hooks))
            and type(cache) is KVCache
            and (keys.dtype, keys.device) == (self.dtype, self.device)
            and not torch.is_autocast_enabled(keys.device.type)
            and _is_on_default_stream(keys.device)
        )


def _is_on_default_stream(device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    return torch.cuda.current_stream(device) == torch.cuda.default_stream(device)


def replace(model: PaliGemmaForConditionalGeneration) -> None:
    """Makes a model one of these, after `fused.replace`: it keeps its modules."""
    modules = [*model.language_model.modules()]
    model.__class__ = GraphedPaliGemma
    assert isinstance(model, GraphedPaliGemma)
    model.graphs = Graphs()
    model.hooks = [hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]
