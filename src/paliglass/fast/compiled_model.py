"""A quantized model whose decoding is one compiled function, held to the plain methods by tests.

Prompts stay with the modules. So does everything where somebody looks at modules (hooks, as a trace
has them), in training, and where the cache is one that compiled code does not know.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace as with_changes

import torch
from torch import Tensor

from paliglass.fast.decode import Decoder, fits
from paliglass.fast.int4 import Int4Linear
from paliglass.fast.int8 import Int8Linear
from paliglass.fast.matrix import KINDS, PackedMatrix, is_available
from paliglass.fast.timings import LayerTimes, remember
from paliglass.layers.kv_cache import KVCache
from paliglass.layers.masks import cached_mask
from paliglass.layers.rope import rotary_cos_sin
from paliglass.modeling_gemma import GemmaDecoderLayer, GemmaForCausalLM, GemmaModel
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration

__all__ = ["CompiledCausalLM", "CompiledPaliGemma", "replace"]


class CompiledCausalLM(GemmaForCausalLM):
    """A `GemmaForCausalLM` whose rows' logits are compiled, in float32."""

    compiled: Decoder
    hooks: Sequence[Mapping[int, Callable[..., object]]]  # of all of its modules

    def logits(self, hidden: Tensor, token_ids: Tensor | None = None) -> Tensor:
        """As `GemmaForCausalLM.logits`; a prompt's, B × T × D, stay with the modules."""
        rows = hidden if hidden.ndim == 2 else hidden[:, :1]
        wants_gradient = hidden.requires_grad and torch.is_grad_enabled()
        if rows.numel() != hidden.numel() or wants_gradient or not self.is_compiled():
            return super().logits(hidden, token_ids)
        return self.compiled.logits(hidden, token_ids)

    def is_compiled(self) -> bool:
        """Whether nobody wants to see the modules run."""
        return not (self.training or any(self.hooks))


class CompiledPaliGemma(PaliGemmaForConditionalGeneration):
    """A `PaliGemmaForConditionalGeneration` that is extended by the compiled decoder."""

    def extend(
        self, input_ids: Tensor, kv_cache: KVCache, attention_mask: Tensor | None = None
    ) -> Tensor:
        """As `PaliGemmaForConditionalGeneration.extend`; what comes out at padding is 0."""
        decoder = self.language_model
        assert isinstance(decoder, CompiledCausalLM)
        keys = kv_cache.keys[0]
        if keys.dtype not in KINDS or keys.device.type != "cpu" or not decoder.is_compiled():
            return super().extend(input_ids, kv_cache, attention_mask)
        if attention_mask is not None:
            attention_mask = attention_mask[:, -input_ids.shape[1] :]
        return decoder.compiled.extend(input_ids, kv_cache, attention_mask).to(self.dtype)


def replace(model: PaliGemmaForConditionalGeneration) -> None:
    """Makes a quantized model one of these where it gains: models keep their modules.

    int4 always gains; of int8, a layer is run both ways.
    """
    decoder = model.language_model
    config = decoder.config
    if not is_available() or not fits(config, model.dtype):
        return
    matrices = dict(_matrices(decoder.model))
    norms: dict[str, Tensor] = {
        name.removesuffix(".weight"): weight
        for name, weight in decoder.model.named_parameters()
        if name.endswith("norm.weight")
    }
    is_int8 = all(matrix.bits == 8 for matrix in matrices.values())
    if is_int8 and not _is_faster(decoder.model, matrices, norms, model.dtype):
        return
    decoder.__class__ = CompiledCausalLM
    assert isinstance(decoder, CompiledCausalLM)
    decoder.compiled = Decoder(config, matrices, norms, model.dtype)
    modules = [*decoder.modules()]
    decoder.hooks = [hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]
    model.__class__ = CompiledPaliGemma


def _matrices(decoder: GemmaModel) -> Sequence[tuple[str, PackedMatrix]]:
    return [
        (name, module.matrix)
        for name, module in decoder.named_modules()
        if isinstance(module, Int8Linear | Int4Linear) and module.matrix is not None
    ]


def _is_faster(
    decoder: GemmaModel,
    matrices: dict[str, PackedMatrix],
    norms: dict[str, Tensor],
    dtype: torch.dtype,
) -> bool:
    """Whether a token gets through the first layer sooner compiled: a few steps each, in turn.

    What was measured is kept for `explain`.
    """
    config = with_changes(decoder.config, num_hidden_layers=1)
    layer, one = decoder.layers[0], Decoder(config, matrices, norms, dtype)
    assert isinstance(layer, GemmaDecoderLayer)
    ids, position = torch.zeros(1, 1, dtype=torch.long), torch.full((1, 1), STEPS + 2)
    x = torch.zeros(1, 1, config.hidden_size, dtype=dtype)
    caches = [KVCache(config, 1, 4 * STEPS, dtype=dtype) for _ in range(2)]
    for cache in caches:
        cache.reserve(torch.ones(1, STEPS, dtype=torch.bool))

    def plain() -> object:
        slots = caches[0].reserve(torch.ones_like(ids, dtype=torch.bool))
        rotary = rotary_cos_sin(position, config.head_dim, config.rope_theta, dtype)
        return layer(x, rotary, cached_mask(slots, caches[0].max_length), caches[0])

    def compiled() -> object:
        return one.extend(ids, caches[1])

    times: dict[Callable[[], object], list[float]] = {plain: [], compiled: []}
    with torch.inference_mode():
        for _ in range(STEPS):
            for step, own in times.items():
                start = time.perf_counter()
                step()
                own.append(time.perf_counter() - start)
    by_modules, by_code = (1e3 * statistics.median(times[step]) for step in (plain, compiled))
    found = LayerTimes(by_modules, by_code)
    remember(config, found)
    return found.is_compiled_faster


STEPS = 5
