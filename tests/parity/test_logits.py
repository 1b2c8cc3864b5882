"""transformers and we compute the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.parity.reference import NEVER, logits_of, pair
from tests.tiny import GEMMA2, make_batch, tiny_config

from paliglass.checkpoints.layouts import module_name
from paliglass.inspect.bench import greedy

DECODERS: dict[str, dict[str, Any]] = {
    "gemma MQA": {"num_key_value_heads": 1},
    "gemma GQA": {"num_key_value_heads": 2},
    "gemma MHA": {"num_key_value_heads": 4},
    "gemma heads wider than width": {"head_dim": 32},
    "gemma2 GQA": GEMMA2,
    "gemma2 MQA": GEMMA2 | {"num_key_value_heads": 1},
    "gemma2 without final cap": GEMMA2 | {"final_logit_softcapping": None},
}
decoders = pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS.keys())
sides = pytest.mark.parametrize("side", ["left", "right"])


@decoders
@sides
@pytest.mark.parametrize("suffixes", [None, [4, 2, 5]], ids=["prompts", "prompts and answers"])
def test_logits_equal_transformers(
    decoder: dict[str, Any], side: str, suffixes: list[int] | None
) -> None:
    config = tiny_config(**decoder)
    theirs, ours = pair(config)
    batch = make_batch(config, [3, 9, 6], suffixes, pictures=[1, 2, 1], side=side)
    batch.pop("labels", None)
    torch.testing.assert_close(logits_of(ours, batch), logits_of(theirs, batch), atol=1e-4, rtol=0)


@sides
def test_logits_equal_transformers_fused_attention(side: str) -> None:
    config = tiny_config(num_key_value_heads=2)
    theirs, ours = pair(config, attention="sdpa")
    batch = make_batch(config, [3, 9], [4, 2], side=side)
    batch.pop("labels")
    torch.testing.assert_close(logits_of(ours, batch), logits_of(theirs, batch), atol=1e-4, rtol=0)


@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_no_token_type_ids_means_all_prefix(side: str) -> None:
    """transformers changes its mind here with backend and padding; zeros say what we mean."""
    config = tiny_config()
    theirs, ours = pair(config)
    lengths = [5, 5] if side == "none" else [3, 8]
    batch = make_batch(config, lengths, side="left" if side == "none" else side)
    assert not batch["token_type_ids"].any()
    expected = logits_of(theirs, batch)
    del batch["token_type_ids"]
    torch.testing.assert_close(logits_of(ours, batch), expected, atol=1e-4, rtol=0)


@decoders
@pytest.mark.parametrize("lengths", [[4], [3, 9, 6]], ids=["one row", "three padded rows"])
def test_64_greedy_tokens_equal_transformers(decoder: dict[str, Any], lengths: list[int]) -> None:
    config = tiny_config(eos_token_id=NEVER, **decoder)
    theirs, ours = pair(config)
    batch = make_batch(config, lengths)
    tokens = theirs.generate(
        **batch,
        max_new_tokens=64,
        do_sample=False,
        eos_token_id=NEVER,
        pad_token_id=0,
        suppress_tokens=[NEVER],
    )[:, batch["input_ids"].shape[1] :]
    assert len(tokens[0].unique()) > 3  # not one word over and over, which any bug could say
    assert torch.stack(list(greedy(ours, batch, 64)), 1).tolist() == tokens.tolist()


@pytest.mark.parametrize("decoder", [DECODERS["gemma MQA"], GEMMA2], ids=["gemma", "gemma2"])
@sides
def test_loss_and_every_gradient_equal_transformers(decoder: dict[str, Any], side: str) -> None:
    config = tiny_config(**decoder)
    theirs, ours = pair(config, std=0.1)
    batch = make_batch(config, [3, 9, 6], [4, 2, 5], side=side)
    theirs_loss, ours_loss = theirs(**batch).loss, ours(**batch).loss
    torch.testing.assert_close(ours_loss, theirs_loss, atol=1e-4, rtol=0)
    theirs_loss.backward()
    ours_loss.backward()
    compared = 0
    parameters = dict(ours.named_parameters())
    for key, parameter in theirs.named_parameters():
        gradient = parameters[module_name(key)].grad
        assert gradient is not None, key
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-4, rtol=1e-4, msg=key)
        compared += 1
    assert compared == len(parameters)


def test_bfloat16_differs_from_transformers_less_than_its_own_kernels_differ() -> None:
    config = tiny_config(num_key_value_heads=2)
    batch = make_batch(config, [3, 9, 6], [4, 2, 5])
    batch.pop("labels")
    eager, ours = pair(config)
    fused, _ = pair(config, attention="sdpa")
    by_eager, by_fused, by_us = (logits_of(m.bfloat16(), batch) for m in (eager, fused, ours))
    between = (by_eager - by_fused).abs()
    ours_to_nearer = torch.minimum((by_us - by_eager).abs(), (by_us - by_fused).abs())
    assert between.mean() > 0  # else the comparison says nothing
    assert ours_to_nearer.mean() <= between.mean()
    assert ours_to_nearer.max() <= between.max()


@pytest.mark.parametrize("decoder", [DECODERS["gemma GQA"], GEMMA2], ids=["gemma", "gemma2"])
def test_bfloat16_is_as_near_to_float32_as_transformers(decoder: dict[str, Any]) -> None:
    config = tiny_config(**decoder)
    batch = make_batch(config, [3, 9, 6], [4, 2, 5])
    batch.pop("labels")
    theirs, ours = pair(config)
    theirs.bfloat16()
    ours.bfloat16()
    by_them, by_us = logits_of(theirs, batch), logits_of(ours, batch)
    truth = logits_of(theirs.float(), batch)  # the same rounded weights
    their_error, our_error = (by_them - truth).abs(), (by_us - truth).abs()
    assert our_error.mean() <= 1.2 * their_error.mean()
    assert our_error.max() <= 1.5 * their_error.max()
