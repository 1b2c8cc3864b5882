"""The bare greedy loop on tensors, for what measures the model itself: no rows come or go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration


@torch.inference_mode()
def greedy(
    model: PaliGemmaForConditionalGeneration, batch: Mapping[str, Tensor], steps: int
) -> Iterator[Tensor]:
    """The likeliest next tokens of a processor's batch, B at each step, whatever they end."""
    prompt = {name: batch[name] for name in ("input_ids", "pixel_values", "attention_mask")}
    rows, length = prompt["input_ids"].shape
    cache = model.new_cache(rows, length + steps)
    last = model.prefill(**prompt, kv_cache=cache, last_only=True)
    for step in range(steps):
        ids = model.language_model.logits(last)[:, : model.config.real_vocab_size].argmax(-1)
        yield ids
        if step + 1 < steps:
            last = model.extend(ids[:, None], cache)[:, -1]
