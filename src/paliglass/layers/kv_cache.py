"""The key/value cache: what attention keeps of the past, so that no token is computed twice.

- a step writes into slots that are there already and reads a view, nothing is concatenated
- rows have lengths of their own: a row's tokens lie in its slots 0, 1, 2 … without gaps, whether
  its prompt was padded on the left, on the right or not at all
- padding is written to one spare slot at the end that no mask ever shows
- rows leave and others take their place while the rest go on: `replace_rows`
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import count

import torch
from torch import Tensor

from paliglass.config import GemmaConfig

__all__ = ["KVCache"]

_row_ids = count()


class KVCache:
    """Keys and values of every layer, each B × K × (capacity + 1) × head_dim.

    Bytes: `2 · layers · B · K · capacity · head_dim · bytes per number`. With one key/value head
    (multi-query, arXiv 1911.02150) PaliGemma 3B needs 18 KiB a token in bfloat16; with as many as
    query heads it would be eight times that.

    capacity: slots of a row to begin with; more are added as they are needed.
    lengths: B, how many slots each row has filled. row_ids: B numbers that no other row of any
    cache has, by which a row is known again when it has moved; copied_from: of a copied row, whose.
    """

    GROWTH = 64  # slots that are added at once

    def __init__(
        self,
        config: GemmaConfig,
        batch_size: int,
        capacity: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.capacity = capacity
        shape = (batch_size, config.num_key_value_heads, capacity + 1, config.head_dim)
        layers = range(config.num_hidden_layers)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in layers]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in layers]
        self.lengths = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.max_length = 0
        self.row_ids = [next(_row_ids) for _ in range(batch_size)]
        self.copied_from: dict[int, int] = {}
        self.slots = self.lengths[:, None]  # where the newest tokens go, B × T
        self.holds_prompt_only = True

    def __len__(self) -> int:
        """B, the number of rows."""
        return len(self.lengths)

    @property
    def num_bytes(self) -> int:
        return sum(stored.nbytes for stored in (*self.keys, *self.values))

    @property
    def is_empty(self) -> bool:
        return self.max_length == 0

    def reserve(self, is_token: Tensor) -> Tensor:
        """Takes slots for new tokens. B × T (True = a token, False = padding) → B × T slots.

        Raises ValueError for another number of rows than the cache has.
        """
        if len(is_token) != len(self):
            raise ValueError(f"the cache holds {len(self)} rows, the batch has {len(is_token)}")
        self.holds_prompt_only = self.is_empty
        counts = is_token.long().cumsum(-1)
        slots = self.lengths[:, None] + counts - 1
        self.lengths = self.lengths + counts[:, -1]
        self.max_length = int(self.lengths.max())
        if self.max_length > self.capacity:
            self._resize(self.max_length + self.GROWTH)
        self.slots = slots.masked_fill(~is_token, self.capacity)
        return self.slots

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Stores the new tokens' key and value, B × K × T × head_dim, in the reserved slots.

        Returns what the new tokens attend to: in a prefill themselves, as they lie in the batch
        with its padding; afterwards every slot in use, B × K × S × head_dim, as a view.
        """
        rows = torch.arange(len(self), device=key.device)[:, None]
        for stored, new in ((self.keys[layer], key), (self.values[layer], value)):
            new = new.detach().to(stored.dtype)  # another one under autocast
            # `scatter_` of 16-bit numbers on a CPU takes longer than copying all slots.
            stored.transpose(1, 2)[rows, self.slots] = new.transpose(1, 2)
        if self.holds_prompt_only:
            return key, value
        used = slice(self.max_length)
        return self.keys[layer][:, :, used], self.values[layer][:, :, used]

    def replace_rows(self, keep: Sequence[int], new: KVCache | None = None) -> None:
        """Keeps some rows, in this order, and takes those of another cache behind them."""
        caches = [(self, list(keep)), *([] if new is None else [(new, list(range(len(new))))])]
        caches = [(cache, rows) for cache, rows in caches if rows]
        lengths = torch.cat([c.lengths[rows] for c, rows in caches] or [self.lengths[:0]])
        self.row_ids = [c.row_ids[row] for c, rows in caches for row in rows]
        self.copied_from = {k: v for c, _ in caches for k, v in c.copied_from.items()}
        longest = int(lengths.max()) if len(lengths) else 0
        capacity = longest + self.GROWTH
        for layer, key in enumerate(self.keys):
            for name in ("keys", "values"):
                joined = key.new_zeros(len(lengths), key.shape[1], capacity + 1, key.shape[3])
                start = 0
                for cache, rows in caches:
                    used = getattr(cache, name)[layer][rows, :, : min(cache.max_length, longest)]
                    joined[start : start + len(rows), :, : used.shape[2]] = used
                    start += len(rows)
                getattr(self, name)[layer] = joined
        self.capacity, self.lengths, self.max_length = capacity, lengths, longest

    def copy_rows(self, which: Sequence[int]) -> KVCache:
        """Some rows, in this order, in memory of their own; a row may come several times."""
        other = copy.copy(self)
        other.keys, other.values = list(self.keys), list(self.values)
        other.replace_rows(which)
        other.row_ids = [next(_row_ids) for _ in which]
        other.copied_from = dict(
            zip(other.row_ids, (self.row_ids[row] for row in which), strict=True)
        )
        return other

    def _resize(self, capacity: int) -> None:
        extra = capacity - self.capacity
        for stored in (self.keys, self.values):
            for layer, old in enumerate(stored):
                stored[layer] = torch.nn.functional.pad(old, (0, 0, 0, extra))
        self.capacity = capacity
