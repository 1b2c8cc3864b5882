"""Attention weights and hidden states are those that transformers returns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.parity.reference import pair
from tests.tiny import GEMMA2, make_batch, tiny_config

import paliglass
from paliglass.inspect.tracing import DECODER_LAYERS, TOWER, TOWER_LAYERS


@pytest.mark.parametrize("decoder", [{}, GEMMA2], ids=["gemma", "gemma2"])
@pytest.mark.parametrize("suffix", [[0], [5]], ids=["prompt", "prompt and answer"])
def test_attention_equals_transformers(decoder: dict[str, Any], suffix: list[int]) -> None:
    config = tiny_config(**decoder)
    theirs, ours = pair(config)
    batch = make_batch(config, [7], suffix)
    batch.pop("labels")
    # Its PaliGemma hands on no pictures' attention; its parts do.
    with torch.inference_mode():
        expected = theirs(**batch, output_attentions=True, output_hidden_states=True)
        tower = theirs.model.vision_tower(
            batch["pixel_values"], output_attentions=True, output_hidden_states=True
        )
        with paliglass.trace(ours) as t:
            ours(**batch)
    [row], [picture] = t.rows, t.pictures
    for stack, prefix, found in (
        (picture, TOWER_LAYERS, tower),
        (row, DECODER_LAYERS, expected),
    ):
        assert len(found.attentions) == len(stack.attention_names)
        for layer, weights in enumerate(found.attentions):
            torch.testing.assert_close(
                stack.attention(f"{prefix}.{layer}.self_attn"), weights[0], atol=1e-5, rtol=0
            )
        # Its last hidden state is the normalised one.
        for layer, hidden in enumerate(found.hidden_states[1:-1]):
            close = {"atol": 1e-4, "rtol": 1e-5}
            torch.testing.assert_close(stack.hidden(f"{prefix}.{layer}"), hidden[0], **close)
    torch.testing.assert_close(
        picture.patch_embeddings, tower.hidden_states[0][0], atol=1e-5, rtol=0
    )
    assert picture.names[0] == f"{TOWER}.embeddings"
