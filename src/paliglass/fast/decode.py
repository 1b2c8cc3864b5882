"""The decoder as one compiled function: what it reads, and the call.

`Decoder` takes packed matrices, norms and a configuration, and runs one to eight tokens over a
`KVCache` that the plain model has filled, or the last step has: embedding, every layer and the last
norm without a line of Python in between; the wanted words' logits are another call. The residual
stream stays in float32.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paliglass.config import GemmaConfig
from paliglass.fast.compiled import library
from paliglass.fast.layout import BLOCK, PANEL, SCRATCH, SPAN
from paliglass.fast.matrix import KINDS, MOST_ROWS, PackedMatrix, tile_rows
from paliglass.fast.threads import COUNTERS, team
from paliglass.layers.kv_cache import KVCache
from paliglass.layers.rope import rotary_cos_sin

PAGE = 4096  # bytes
Words = slice | Tensor | None
NO_PANELS = np.empty(0, dtype=np.int64)

MATRICES = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)


def fits(config: GemmaConfig, dtype: torch.dtype) -> bool:
    """Whether the compiled decoder can run these shapes over a cache of this dtype."""
    return config.hidden_size % BLOCK == config.head_dim % BLOCK == 0 and dtype in KINDS


class Decoder:
    """A decoder's packed matrices, ready to run.

    Args:
        config: the decoder's; `fits` is true of it.
        matrices: by their names in `GemmaModel`: "layers.0.self_attn.q_proj" …, "embed_tokens",
            which is the head as well. q, k and v have the same bits, and so do gate and up.
        norms: the norms' weights as Gemma stores them (the gain is 1 + weight), by names such as
            "layers.0.input_layernorm" and "norm".
        dtype: the model's; √D is rounded to it.
    """

    def __init__(
        self,
        config: GemmaConfig,
        matrices: Mapping[str, PackedMatrix],
        norms: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> None:
        layers = [f"layers.{i}." for i in range(config.num_hidden_layers)]
        assert 8 * len(layers) <= COUNTERS
        for layer in layers:
            for same in (MATRICES[:3], MATRICES[4:6]):
                assert len({matrices[layer + name].bits for name in same}) == 1
        self.config = config
        table = matrices["embed_tokens"]
        self.matrices = [matrices[layer + name] for layer in layers for name in MATRICES]
        self.matrices.append(table)
        self._descriptors = np.stack([matrix.descriptor for matrix in self.matrices])
        # What a token reads, if all words' logits are wanted.
        self.nbytes = sum(matrix.nbytes for matrix in self.matrices)
        post = config.has_post_norms
        names = (
            "input_layernorm",
            "post_attention_layernorm" if post else "",
            "pre_feedforward_layernorm" if post else "post_attention_layernorm",
            "post_feedforward_layernorm" if post else "",
        )
        self._gains = [
            _gain(norms[layer + name]) if name else torch.empty(0)
            for layer in layers
            for name in names
        ]
        self._gains.append(_gain(norms["norm"]))
        gains = [gain.data_ptr() if len(gain) else 0 for gain in self._gains]
        self._norms = np.array(gains, dtype=np.int64)
        factors = {
            "epsilon": config.rms_norm_eps,
            "query_scale": config.query_scale,
            "attention_cap": config.attn_logit_softcapping or 0.0,
            "embedding_scale": float(torch.tensor(config.hidden_size**0.5, dtype=dtype)),
            "final_cap": config.final_logit_softcapping or 0.0,
        }
        self._factors = torch.tensor(list(factors.values()))
        self._all_panels = np.arange(-(-table.rows // PANEL), dtype=np.int64)
        self._rooms: dict[int, _Room] = {}  # by rows of a tile
        self._lock = threading.Lock()  # of the rooms

    def __deepcopy__(self, memo: object) -> Decoder:
        """Itself: what a copied model would change is not in here."""
        return self

    def extend(self, ids: Tensor, cache: KVCache, attention_mask: Tensor | None = None) -> Tensor:
        """Runs more tokens of each row over a filled cache: ids B × T, any number of them.

        attention_mask: B × T, 0 on padding, whose results are 0. Returns what comes out of the last
        norm, B × T × D, float32. Eight tokens go through the matrices together.
        """
        _require_within(ids, self.config.vocab_size)
        is_token = torch.ones_like(ids) if attention_mask is None else attention_mask
        slots = cache.reserve(is_token.bool())
        # A row's earlier tokens come first: later ones see them.
        columns, rows = is_token.T.nonzero(as_tuple=True)
        tokens = torch.stack((ids[rows, columns], rows, slots[rows, columns]))
        pairs = zip(cache.keys, cache.values, strict=True)
        caches = np.array([[k.data_ptr(), v.data_ptr()] for k, v in pairs], dtype=np.int64)
        about = cache.capacity + 1, KINDS[cache.keys[0].dtype], caches.ctypes.data
        out = torch.empty(len(rows), self.config.hidden_size)
        counters = self.config.num_hidden_layers * 8
        with self._lock:
            for some, found in zip(
                torch.split(tokens, MOST_ROWS, 1), torch.split(out, MOST_ROWS), strict=True
            ):
                self._run("decode", counters, found, about, some.contiguous())
        if len(rows) == ids.numel():
            return out.view(*ids.T.shape, -1).transpose(0, 1)
        hidden = torch.zeros(*ids.shape, self.config.hidden_size)
        hidden[rows, columns] = out
        return hidden

    def logits(self, hidden: Tensor, words: Words = None) -> Tensor:
        """… × D → … × U, float32, Gemma 2's capped.

        words: the ids whose logits are wanted: all of the vocabulary (None), a slice of it, or U
        ids. Only the panels of 64 rows that they are in are read.
        """
        panels, places = self._panels(words)
        tokens = hidden.reshape(-1, hidden.shape[-1]).float().contiguous()
        with self._lock:
            found = [
                self._run("score", 1, some, (1, 0, 0), None, panels)
                for some in torch.split(tokens, MOST_ROWS)
            ]
        return torch.cat(found)[:, places].view(*hidden.shape[:-1], -1)

    def _run(
        self,
        name: str,
        counters: int,
        hidden: Tensor,
        cache: tuple[int, int, int],
        tokens: Tensor | None,
        panels: NDArray[np.int64] = NO_PANELS,
    ) -> Tensor:
        """A function of `step` for up to eight tokens; hidden: M × D, what it makes or reads.

        cache: its slots, kind and addresses. tokens: 3 × M, each one's id, row and slot. Returns
        logits, M × panels · 64.
        """
        config, count, threads = self.config, len(hidden), team().threads
        rows = tile_rows(count)
        room = self._rooms.get(rows)
        if room is None or not room.holds(cache[0], threads):
            room = self._rooms[rows] = _Room(config, rows, cache[0] + 256, threads)
        logits = torch.empty(rows, len(panels) * PANEL)
        job = [
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.num_hidden_layers,
            *cache[:2],
            count,
            rows,
            len(panels),
            self._factors.data_ptr(),
            self._descriptors.ctypes.data,
            self._norms.ctypes.data,
            cache[2],
            0 if tokens is None else tokens.data_ptr(),
            panels.ctypes.data,
            *room.addresses,
            hidden.data_ptr(),
            logits.data_ptr(),
        ]
        team().run(library()[name], counters, np.array(job, dtype=np.int64), self.nbytes)
        return logits[:count]

    def _panels(self, words: Words) -> tuple[NDArray[np.int64], slice | Tensor]:
        """The table's panels that hold some words, and the words' places in them."""
        vocabulary = self.config.vocab_size
        if words is None:
            return self._all_panels, slice(vocabulary)
        if isinstance(words, slice):
            first, last, _ = words.indices(vocabulary)
            panels = self._all_panels[first // PANEL : max(-(-last // PANEL), first // PANEL)]
            skipped = first - first % PANEL
            return panels, slice(first - skipped, max(last - skipped, 0))
        _require_within(words, vocabulary)
        ids = words.cpu().numpy()
        panels, places = np.unique(ids // PANEL, return_inverse=True)
        return panels, torch.from_numpy(places * PANEL + ids % PANEL)


def _require_within(ids: Tensor, vocabulary: int) -> None:
    """Raises IndexError, as `nn.Embedding` does: memory behind the table would be read."""
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        raise IndexError(f"an id is outside the table of {vocabulary} words")


def _gain(weight: Tensor) -> Tensor:
    return (1 + weight.detach().float()).contiguous()


class _Room:
    """Memory for `rows` tokens over so many slots of a cache, used again by every step.

    addresses: from `cos` to `own_bytes`, as `step.JOB` lists them.
    """

    def __init__(self, config: GemmaConfig, rows: int, slots: int, threads: int) -> None:
        self._slots, self._threads = slots, threads
        positions = torch.arange(slots + 1)[None]
        rotary = rotary_cos_sin(positions, config.head_dim, config.rope_theta, torch.float32)
        self._rotary = [x[0, 0, :, : config.head_dim // 2].contiguous() for x in rotary]
        heads = config.num_attention_heads + 2 * config.num_key_value_heads
        width, attended, hidden = (
            -(-size // SPAN) * SPAN
            for size in (
                config.hidden_size,
                config.num_attention_heads * config.head_dim,
                config.intermediate_size,
            )
        )
        # Integers, and for every 32 of them at most a scale and a sum.
        own = 8 * rows * width + rows * max(width, attended) * 5 // 4 + SCRATCH + 4 * (slots + 16)
        sizes = [
            4 * rows * heads * config.head_dim,
            4 * rows * attended,
            4 * rows * width,
            rows * hidden,
            rows * hidden // 8,
            rows * hidden // 8,
        ]
        sizes, own = [-(-size // PAGE) * PAGE for size in sizes], -(-own // PAGE) * PAGE
        self._memory = torch.zeros(sum(sizes) + own * threads + PAGE, dtype=torch.uint8)
        first = -(-self._memory.data_ptr() // PAGE) * PAGE
        starts = [first, *(first + size for size in itertools.accumulate(sizes))]
        self.addresses = [*(x.data_ptr() for x in self._rotary), *starts, own]

    def holds(self, slots: int, threads: int) -> bool:
        return self._slots >= slots and self._threads == threads
