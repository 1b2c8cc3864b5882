"""The key/value cache: what attention keeps of the past, so that no token is computed twice.

- allocated once; a step writes into its slots and reads a view, nothing is concatenated
- rows have lengths of their own: a row's tokens lie in its slots 0, 1, 2 … without gaps, whether
  its prompt was padded on the left, on the right or not at all
- padding is written to one spare slot at the end that no mask ever shows
- `FixedCache` decodes with shapes that never change, which a CUDA graph asks for
"""

from __future__ import annotations

import torch
from torch import Tensor

from paliglass.config import GemmaConfig


class KVCache:
    """Keys and values of every layer, each B × K × (capacity + 1) × head_dim.

    Bytes: `2 · layers · B · K · capacity · head_dim · bytes per number`. With one key/value head
    (multi-query, arXiv 1911.02150) PaliGemma 3B needs 18 KiB a token in bfloat16; with as many as
    query heads it would be eight times that.
    """

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
        self.rows = torch.arange(batch_size, device=device)[:, None]
        self.lengths = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.slots = self.lengths[:, None]  # where the newest tokens go, B × T
        self.max_length = 0  # the longest row, known on the host: no device sync to find it

    def reserve(self, is_token: Tensor) -> Tensor:
        """Takes slots for new tokens. B × T (True = a token, False = padding) → B × T slots.

        Grows the cache when it is full; who knows the final length gives it as `capacity` and
        never pays for that.
        """
        is_token = is_token.bool()
        if self.max_length + is_token.shape[1] > self.capacity:
            self._grow(self.max_length + max(is_token.shape[1], self.capacity))
        slots = self.lengths[:, None] + is_token.long().cumsum(-1) - 1
        self.slots = slots.masked_fill(~is_token, self.capacity)
        self.lengths = self.lengths + is_token.sum(-1)
        self.max_length += is_token.shape[1]
        return self.slots

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Stores the new tokens' key and value, B × K × T × head_dim, in the reserved slots.

        Returns what the new tokens attend to: in a prefill themselves, as they lie in the batch
        with its padding; afterwards every slot in use, B × K × S × head_dim, as a view.
        """
        for stored, new in ((self.keys[layer], key), (self.values[layer], value)):
            new = new.detach().to(stored.dtype)  # another one under autocast
            # Not scatter_: of 16-bit numbers on a CPU it takes longer than copying all slots.
            stored.transpose(1, 2)[self.rows, self.slots] = new.transpose(1, 2)
        if self.max_length == key.shape[2]:
            return key, value
        used = slice(self.max_length)
        return self.keys[layer][:, :, used], self.values[layer][:, :, used]

    def _grow(self, capacity: int) -> None:
        extra = capacity - self.capacity
        for stored in (self.keys, self.values):
            for layer, old in enumerate(stored):
                stored[layer] = torch.nn.functional.pad(old, (0, 0, 0, extra))
        self.capacity = capacity


class FixedCache(KVCache):
    """A filled cache that goes on one token a row, in tensors that stay the same: for CUDA graphs.

    A step sees all slots, those still empty behind the mask, so no shape depends on how far it is.
    """

    def __init__(self, filled: KVCache) -> None:
        self.capacity = self.max_length = filled.capacity
        self.keys, self.values, self.rows = filled.keys, filled.values, filled.rows
        self.lengths = filled.lengths.clone()
        self.slots = self.lengths[:, None].clone()

    def reserve(self, is_token: Tensor) -> Tensor:
        """The next slot of each row, B × 1; there must be one."""
        self.slots.copy_(self.lengths[:, None])
        self.lengths += 1
        return self.slots
