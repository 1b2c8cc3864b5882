"""The decoder as one compiled function: what it reads, and the call.

`Decoder` takes packed matrices, norms and a configuration, and runs one to eight tokens over a
`KVCache` that the plain model has filled, or the last step has: embedding, every layer, final norm
and the wanted words' logits without a line of Python in between. The residual stream stays in
float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paliglass.config import GemmaConfig
from paliglass.fast.layout import BLOCK, SPAN
from paliglass.fast.matrix import KINDS, MOST_ROWS, PackedMatrix, tile_rows
from paliglass.fast.threads import COUNTERS, team
from paliglass.layers.kv_cache import KVCache
from paliglass.layers.rope import rotary_cos_sin


@dataclass(frozen=True)
class LayerMatrices:
    """The packed matrices of a layer."""

    q: PackedMatrix
    k: PackedMatrix
    v: PackedMatrix
    o: PackedMatrix
    gate: PackedMatrix
    up: PackedMatrix
    down: PackedMatrix


def fits(config: GemmaConfig) -> bool:
    """Whether the compiled decoder can run these shapes."""
    return config.hidden_size % BLOCK == 0 and config.head_dim % BLOCK == 0


class Decoder:
    """A decoder's packed matrices, ready to run.

    Args:
        config: the decoder's, for which `fits` is true.
        layers: each layer's matrices. q, k and v share bits, and so do gate and up.
        table: the embedding, which is the head as well.
        norms: the weights of each layer's norms by their names in the checkpoint, without
            `.weight`, as Gemma stores them (the gain is 1 + weight).
        final_norm: that of the last one.
        dtype: the model's: √D is rounded to it.
    """

    def __init__(
        self,
        config: GemmaConfig,
        layers: Sequence[LayerMatrices],
        table: PackedMatrix,
        norms: Sequence[Mapping[str, Tensor]],
        final_norm: Tensor,
        dtype: torch.dtype,
    ) -> None:
        assert fits(config)
        assert len(layers) * 8 + 1 <= COUNTERS
        for layer in layers:
            assert layer.q.bits == layer.k.bits == layer.v.bits and layer.gate.bits == layer.up.bits
        self.config = config
        self.matrices = (layers, table)  # kept alive
        self._descriptors = np.stack(
            [
                *(matrix.descriptor for layer in layers for matrix in vars(layer).values()),
                table.descriptor,
            ]
        )
        post = config.has_post_norms
        names = (
            "input_layernorm",
            "post_attention_layernorm" if post else "",
            "pre_feedforward_layernorm" if post else "post_attention_layernorm",
            "post_feedforward_layernorm" if post else "",
        )
        self._gains = [
            [(1 + layer[name].detach().float()).contiguous() if name else None for name in names]
            for layer in norms
        ]
        self._final_gain = (1 + final_norm.detach().float()).contiguous()
        rows = [[0 if g is None else g.data_ptr() for g in gains] for gains in self._gains]
        self._norms = np.array([*rows, [self._final_gain.data_ptr(), 0, 0, 0]], dtype=np.int64)
        self._shape = np.array(
            [
                config.hidden_size,
                config.num_attention_heads,
                config.num_key_value_heads,
                config.head_dim,
                len(layers),
                config.intermediate_size,
            ],
            dtype=np.int64,
        )
        self._factors = np.array(
            [
                config.rms_norm_eps,
                config.query_scale,
                config.attn_logit_softcapping or 0,
                float(torch.tensor(config.hidden_size**0.5, dtype=dtype)),
                config.final_logit_softcapping or 0,
            ],
            dtype=np.float32,
        )
        self._slots = 0
        self._room_key = (0, 0)
        self._all_words = np.arange(-(-table.rows // BLOCK), dtype=np.int64)

    def step(
        self, ids: Tensor, cache: KVCache, words: slice | Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Runs more tokens of each row: ids B × T, at most 8 in all.

        words: the ids whose logits are wanted: all (None), a slice, or U ascending ids; an empty
        slice for none. Returns logits, B × T × U, and what comes out of the last norm, B × T × D,
        float32. Every row takes T slots of the cache.
        """
        slots = cache.reserve(torch.ones_like(ids))
        return self.run(ids, slots, cache, words)

    def run(
        self, ids: Tensor, slots: Tensor, cache: KVCache, words: slice | Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`step` into slots that are reserved already, B × T; `cache.capacity` is padding's."""
        from paliglass.fast import step

        batch, length = ids.shape
        count = batch * length
        assert count <= MOST_ROWS
        tokens = np.empty((3, count), dtype=np.int64)
        tokens[0] = ids.reshape(-1).numpy()
        tokens[1] = np.repeat(np.arange(batch), length)
        tokens[2] = slots.reshape(-1).numpy()
        blocks, places = self._blocks(words)
        rows = tile_rows(count)
        room = self._room(rows, cache.capacity + 1)
        hidden = torch.empty(count, self.config.hidden_size)
        logits = torch.empty(rows, len(blocks) * BLOCK)
        team().run(
            step.decode,
            len(self._gains) * 8 + 1,
            self._shape,
            self._factors,
            self._descriptors,
            self._norms,
            room,
            self._caches(cache),
            np.array([cache.capacity + 1, KINDS[cache.keys[0].dtype]], dtype=np.int64),
            tokens,
            blocks,
            hidden.data_ptr(),
            logits.data_ptr(),
        )
        found = logits[:count] if places is None else logits[:count, places]
        return found.view(batch, length, -1), hidden.view(batch, length, -1)

    def _blocks(
        self, words: slice | Tensor | None
    ) -> tuple[NDArray[np.int64], slice | Tensor | None]:
        """The table's blocks that hold some words, and the words' places in them."""
        vocabulary = self.config.vocab_size
        if words is None:
            return self._all_words, slice(vocabulary)
        if isinstance(words, slice):
            first, last, _ = words.indices(vocabulary)
            start = first // BLOCK
            end = max(start, -(-last // BLOCK)) if last > first else start
            return self._all_words[start:end], slice(
                first - start * BLOCK, max(last, first) - start * BLOCK
            )
        ids = words.numpy()
        blocks, places = np.unique(ids // BLOCK, return_inverse=True)
        return blocks, torch.from_numpy(places * BLOCK + ids % BLOCK)

    def _caches(self, cache: KVCache) -> NDArray[np.int64]:
        pairs = zip(cache.keys, cache.values, strict=True)
        return np.array([[k.data_ptr(), v.data_ptr()] for k, v in pairs], dtype=np.int64)

    def _room(self, rows: int, slots: int) -> NDArray[np.int64]:
        """Memory for `rows` tokens over so many slots; kept for the next step."""
        config, threads = self.config, team().threads
        if self._room_key[0] == rows and self._room_key[1] >= slots:
            return self._addresses
        slots += 256
        positions = torch.arange(slots + 1)[None]
        rotary = rotary_cos_sin(positions, config.head_dim, config.rope_theta, torch.float32)
        self._rotary = [x[0, 0, :, : config.head_dim // 2].contiguous() for x in rotary]
        width = -(-config.hidden_size // SPAN) * SPAN
        attended = -(-config.num_attention_heads * config.head_dim // SPAN) * SPAN
        hidden = -(-config.intermediate_size // SPAN) * SPAN
        heads = config.num_attention_heads + 2 * config.num_key_value_heads
        most = max(width, attended)
        sizes = [
            4 * rows * heads * config.head_dim,
            4 * rows * attended,
            4 * rows * width,
            rows * hidden,
            rows * hidden // 8,
            rows * hidden // 8,
        ]
        own = 4 * rows * width + 4 * width + rows * most + rows * most // 4
        own += 4 * SPAN * 16 + 4 * (slots + 16)
        own = -(-own // 4096) * 4096
        starts = np.cumsum([0, *(-(-size // 4096) * 4096 for size in sizes)])
        self._memory = torch.zeros(int(starts[-1]) + own * threads + 64, dtype=torch.uint8)
        first = -(-self._memory.data_ptr() // 64) * 64
        self._addresses = np.array(
            [*(first + starts), own, *(x.data_ptr() for x in self._rotary)], dtype=np.int64
        )
        self._room_key = (rows, slots)
        return self._addresses
