"""The cache changes nothing but the time; padding changes nothing at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import GEMMA2, make_batch, row_alone, tiny_config, tiny_model
from torch import Tensor

from paliglass.fast import accelerate
from paliglass.layers.kv_cache import KVCache
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration

decoders = pytest.mark.parametrize(
    "decoder",
    [{}, {"num_key_value_heads": 4}, GEMMA2],
    ids=["gemma MQA", "gemma MHA", "gemma2"],
)
sides = pytest.mark.parametrize("side", ["left", "right"])


def uncached(batch: dict[str, Tensor], row: int, words: Tensor) -> dict[str, Tensor]:
    """One row with answer tokens after its last one, without padding."""
    alone = row_alone(batch, row, [1] * len(batch["input_ids"]))
    ids = torch.cat((alone["input_ids"], words[None]), dim=1)
    types = torch.zeros_like(ids)
    types[:, -len(words) :] = 1
    pixels = alone["pixel_values"]
    return {"input_ids": ids, "token_type_ids": types, "pixel_values": pixels}


@torch.inference_mode()
def assert_cached_equals_uncached(
    model: PaliGemmaForConditionalGeneration,
    batch: dict[str, Tensor],
    steps: list[int],
    capacity: int,
) -> None:
    """Feeds answer tokens in pieces, as many at once as `steps` says."""
    rows, total = len(batch["input_ids"]), sum(steps)
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(3, 300, (rows, total), generator=generator)
    batch = {k: v for k, v in batch.items() if k != "token_type_ids"}
    cache = model.new_cache(rows, capacity)
    model(**batch, kv_cache=cache)
    done, pieces = 0, []
    for step in steps:
        pieces.append(model(words[:, done : done + step], kv_cache=cache).logits)
        done += step
    cached = torch.cat(pieces, dim=1)
    for row in range(rows):
        expected = model(**uncached(batch, row, words[row])).logits[0, -total:]
        torch.testing.assert_close(cached[row], expected, atol=1e-4, rtol=0)


@decoders
@sides
@pytest.mark.parametrize("capacity", [1, 64], ids=["growing cache", "large cache"])
def test_cached_equals_uncached_at_every_step(
    decoder: dict[str, Any], side: str, capacity: int
) -> None:
    config = tiny_config(**decoder)
    batch = make_batch(config, [3, 9, 6], side=side)
    assert_cached_equals_uncached(tiny_model(config), batch, [1] * 12, capacity)


@decoders
def test_several_tokens_at_once_equal_one_by_one(decoder: dict[str, Any]) -> None:
    config = tiny_config(**decoder)
    batch = make_batch(config, [3, 9])
    assert_cached_equals_uncached(tiny_model(config), batch, [3, 1, 4], capacity=40)


@settings(max_examples=20)
@given(
    lengths=st.lists(st.integers(1, 8), min_size=1, max_size=3),
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2), (6, 3)]),
    side=st.sampled_from(["left", "right"]),
    steps=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    capacity=st.integers(1, 40),
)
def test_cached_equals_uncached_for_any_shape(
    lengths: list[int], heads: tuple[int, int], side: str, steps: list[int], capacity: int
) -> None:
    config = tiny_config(
        num_attention_heads=heads[0], num_key_value_heads=heads[1], num_hidden_layers=2
    )
    batch = make_batch(config, lengths, side=side)
    assert_cached_equals_uncached(tiny_model(config), batch, steps, capacity)


@decoders
@sides
@torch.inference_mode()
def test_a_padded_batch_equals_single_runs(decoder: dict[str, Any], side: str) -> None:
    """Rows of 1, 2 and 0 pictures too: each must get its own."""
    config, pictures = tiny_config(**decoder), [1, 2, 0, 1]
    model = tiny_model(config)
    batch = make_batch(config, [3, 9, 6, 12], [2, 1, 4, 3], pictures, side)
    batch.pop("labels")
    together = model(**batch).logits
    for row in range(4):
        alone = row_alone(batch, row, pictures)
        alone.pop("attention_mask")
        if not pictures[row]:
            alone.pop("pixel_values")
        here = together[row][batch["attention_mask"][row].bool()]
        torch.testing.assert_close(here, model(**alone).logits[0], atol=1e-4, rtol=0)


@torch.inference_mode()
def test_what_padding_holds_changes_nothing() -> None:
    model = tiny_model()
    batch = make_batch(model.config, [3, 9])
    padding = batch["attention_mask"] == 0
    assert padding.any()
    before = model(**batch).logits[~padding]
    batch["input_ids"][padding] = 77
    assert torch.equal(model(**batch).logits[~padding], before)


@torch.inference_mode()
def test_padding_inside_a_decoded_step_is_invisible() -> None:
    """Rows may go on by different numbers of tokens."""
    model = tiny_model()
    batch = make_batch(model.config, [4, 4])
    batch.pop("token_type_ids")
    one, both = model.new_cache(2, 40), model.new_cache(2, 40)
    model(**batch, kv_cache=one)
    model(**batch, kv_cache=both)
    words = torch.tensor([[5, 6, 7], [8, 0, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    model(words, attention_mask=mask, kv_cache=both)
    last = model(torch.tensor([[9], [9]]), kv_cache=both).logits
    for row, tokens in enumerate([[5, 6, 7, 9], [8, 9]]):
        alone = model.new_cache(1, 40)
        model(**row_alone(batch, row, [1, 1]), kv_cache=alone)
        expected = model(torch.tensor([tokens]), kv_cache=alone).logits[0, -1]
        torch.testing.assert_close(last[row, -1], expected, atol=1e-4, rtol=0)


def test_a_cache_takes_the_bytes_its_formula_says() -> None:
    config = tiny_config(num_key_value_heads=2).text_config
    cache = KVCache(config, batch_size=3, capacity=9, dtype=torch.bfloat16)
    stored = sum(t.nbytes for t in [*cache.keys, *cache.values])
    per_slot = 2 * config.num_hidden_layers * 3 * 2 * config.head_dim * 2
    assert stored == per_slot * (9 + 1)  # and the spare slot for padding


def test_a_large_enough_cache_is_never_copied() -> None:
    model = tiny_model()
    batch = make_batch(model.config, [4])
    cache = model.new_cache(1, 30)
    before = [tensor.data_ptr() for tensor in cache.keys]
    with torch.inference_mode():
        model(**batch, kv_cache=cache)
        for _ in range(10):
            model(torch.tensor([[5]]), kv_cache=cache)
    assert [tensor.data_ptr() for tensor in cache.keys] == before


@decoders
@sides
@torch.inference_mode()
def test_an_accelerated_prompts_last_layer_works_for_its_last_token_alone(
    decoder: dict[str, Any], side: str
) -> None:
    model = tiny_model(tiny_config(**decoder))
    batch = make_batch(model.config, [3, 9], side=side)
    del batch["token_type_ids"]
    expected = model.prefill(**batch, last_only=True)
    accelerate(model)
    last, seen = model.language_model.model.layers[-1], []
    plain = last.mlp.forward
    last.mlp.forward = lambda x: seen.append(x.shape[:-1].numel()) or plain(x)
    torch.testing.assert_close(model.prefill(**batch, last_only=True), expected, atol=1e-5, rtol=0)
    hook = last.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(model.prefill(**batch, last_only=True), expected, atol=1e-5, rtol=0)
    hook.remove()
    assert seen == [2, batch["input_ids"].numel()]  # those who watch see it all


@pytest.mark.parametrize("share", [True, False], ids=["joining", "leaving"])
@decoders
@torch.inference_mode()
def test_rows_that_come_and_go_change_nothing_for_the_others(
    decoder: dict[str, Any], share: bool
) -> None:
    model = tiny_model(tiny_config(**decoder))
    batches = [make_batch(model.config, [3, 9]), make_batch(model.config, [14], seed=1)]
    words = torch.randint(3, 300, (3, 6), generator=torch.Generator().manual_seed(2))
    expected = []
    for i, batch in ((0, batches[0]), (1, batches[0]), (0, batches[1])):
        alone = row_alone(batch, i, [1, 1])
        cache = model.new_cache(1, 1)
        model.prefill(alone["input_ids"], alone["pixel_values"], kv_cache=cache)
        expected.append(model.extend(words[len(expected)][None], cache)[0])
    caches = [model.new_cache(len(b["input_ids"]), 2) for b in batches]
    for batch, cache in zip(batches, caches, strict=True):
        del batch["token_type_ids"]
        model.prefill(**batch, kv_cache=cache)
    running, new = caches
    ids = list(running.row_ids)
    before = model.extend(words[:2, :3], running)
    keep = [1, 0] if share else [1]
    running.replace_rows(keep, new if share else None)
    assert running.row_ids == [ids[i] for i in keep] + (new.row_ids if share else [])
    if share:  # the new row's first tokens go on beside the others' later ones
        after = model.extend(torch.stack((words[1, 3:], words[0, 3:], words[2, :3])), running)
        torch.testing.assert_close(after[2], expected[2][:3], atol=1e-4, rtol=0)
        torch.testing.assert_close(after[1], expected[0][3:], atol=1e-4, rtol=0)
    else:
        after = model.extend(words[1:2, 3:], running)
    torch.testing.assert_close(before[0], expected[0][:3], atol=1e-4, rtol=0)
    torch.testing.assert_close(after[0], expected[1][3:], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("held", "given"), [(2, 1), (1, 2), (3, 2), (2, 6)])
def test_a_cache_of_other_rows_is_refused(held: int, given: int) -> None:
    model = tiny_model()
    cache = model(**make_batch(model.config, [4] * held)).kv_cache
    said = f"holds {held} rows, the batch has {given}"
    words = torch.full((given, 1), 5)
    for run in (model, model.extend):
        with pytest.raises(ValueError, match=said):
            run(words, kv_cache=cache)
    batch = make_batch(model.config, [4] * given)
    for run in (model, model.prefill):
        with pytest.raises(ValueError, match=said):
            run(**batch, kv_cache=model.new_cache(held, 40))


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("kind", ["pixel_values", "image_features"])
def test_a_second_picture_into_a_filled_cache_is_refused(rows: int, kind: str) -> None:
    model = tiny_model()
    batch = make_batch(model.config, [4] * rows)
    cache = model(**batch).kv_cache
    pictures = {"pixel_values": batch.pop("pixel_values")}
    if kind == "image_features":
        pictures = {kind: model.get_image_features(**pictures)}
    with pytest.raises(ValueError, match="holds a prompt with its pictures"):
        model(**batch, **pictures, kv_cache=cache)
    for more in (pictures, {}):  # words alone begin no second prompt there either
        ids = batch["input_ids"] if more else torch.full((rows, 3), 5)
        with pytest.raises(ValueError, match="the cache is filled"):
            model.prefill(ids, **more, kv_cache=cache)
