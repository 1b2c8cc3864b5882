"""The compiled decoder against the plain one, whose matrices are emulated."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from paliglass import load
from paliglass.fast import decode, threads
from paliglass.fast.decode import Decoder, fits
from paliglass.fast.matrix import PackedMatrix, bits_of, quantize
from paliglass.fast.threads import Team
from paliglass.layers.kv_cache import KVCache
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from tests.fast.emulation import decoder_matrices, decoder_norms, emulate
from tests.tiny import GEMMA2, make_batch, tiny_config, tiny_model

DECODERS: list[dict[str, Any]] = [
    {},
    {"num_key_value_heads": 4, "head_dim": 48, "hidden_size": 80, "intermediate_size": 144},
    GEMMA2,
    GEMMA2 | {"head_dim": 64},
]
IDS = ["gemma", "odd widths", "gemma2", "gemma2 wide heads"]
decoders = pytest.mark.parametrize("text", DECODERS, ids=IDS)
SCENE = Path(__file__).parents[2] / "assets" / "scene.png"
all_bits = pytest.mark.parametrize("bits", [(8, 8), (4, 8), (4, 4)], ids=str)


def pack(
    model: PaliGemmaForConditionalGeneration, bits: tuple[int, int]
) -> tuple[Decoder, dict[str, PackedMatrix]]:
    """bits: the layers' and the table's."""
    decoder = model.language_model
    matrices = {
        name: quantize(weight, bits[name == "embed_tokens"])
        for name, weight in decoder_matrices(decoder)
    }
    packed = Decoder(decoder.config, matrices, decoder_norms(decoder), model.dtype)
    return packed, matrices


def filled(
    model: PaliGemmaForConditionalGeneration, rows: int, dtype: torch.dtype = torch.float32
) -> KVCache:
    """A cache that holds prompts of different lengths."""
    cache = KVCache(model.config.text_config, rows, 40, dtype=dtype)
    batch = make_batch(model.config, [3 + 2 * i for i in range(rows)])
    del batch["token_type_ids"]
    model.prefill(**batch, kv_cache=cache)
    return cache


def step_of(
    packed: Decoder, ids: Tensor, cache: KVCache, words: slice | Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What comes out of the last norm, and logits."""
    hidden = packed.extend(ids, cache)
    return hidden, packed.logits(hidden, words)


def some_ids(rows: int, length: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 300, (rows, length), generator=generator)


@decoders
@all_bits
@torch.inference_mode()
def test_it_is_the_plain_decoder_with_rounded_numbers(
    text: dict[str, Any], bits: tuple[int, int]
) -> None:
    model = tiny_model(tiny_config(**text))
    packed, matrices = pack(model, bits)
    emulate(model.language_model, matrices)
    errors = []
    for rows in (1, 2, 3, 5, 8):
        cache = filled(model, rows)
        for step in range(3):
            ids, other = some_ids(rows, seed=step), copy.deepcopy(cache)
            hidden = model.extend(ids, cache)
            expected = model.language_model.logits(hidden)
            found_hidden, found = step_of(packed, ids, other)
            assert torch.equal(other.lengths, cache.lengths)
            for a, b in ((found, expected), (found_hidden, hidden)):
                errors.append((a - b).norm(dim=-1) / b.norm(dim=-1))
            slots = cache.slots[:, 0]
            key = other.keys[-1][torch.arange(rows), :, slots]
            expected_key = cache.keys[-1][torch.arange(rows), :, slots]
            errors.append(
                (key - expected_key).flatten(1).norm(dim=-1) / expected_key.flatten(1).norm(dim=-1)
            )
    every = torch.cat([error.flatten() for error in errors])
    # The last bit of a sum may decide which way a number is rounded: seldom, and by a step.
    assert every.quantile(0.75) < 1e-5
    assert every.max() < 0.05


@decoders
@pytest.mark.usefixtures("team")
@torch.inference_mode()
def test_a_row_alone_is_a_row_among_others(text: dict[str, Any]) -> None:
    model = tiny_model(tiny_config(**text))
    packed, _ = pack(model, (4, 8))
    cache, ids = filled(model, 5), some_ids(5)
    alone = []
    for row in range(5):
        own = copy.deepcopy(cache)
        own.replace_rows([row])
        alone.append(step_of(packed, ids[row, None], own)[1])
    together = step_of(packed, ids, cache)[1]
    assert torch.equal(together, torch.cat(alone))


@torch.inference_mode()
def test_several_tokens_at_once_are_as_one_by_one_and_padding_is_nobody() -> None:
    model = tiny_model(tiny_config(**GEMMA2))
    packed, _ = pack(model, (8, 8))
    lengths = torch.tensor([3, 1, 6, 0])
    ids, mask = some_ids(4, 6), torch.arange(6) < lengths[:, None]
    cache, other = filled(model, 4), filled(model, 4)
    hidden = packed.extend(ids, cache, mask)
    assert torch.equal(cache.lengths, other.lengths + lengths)
    assert (hidden[~mask] == 0).all()
    for step in range(6):
        one = packed.extend(ids[:, step, None], other, mask[:, step, None])
        assert torch.equal(one, hidden[:, step, None])


@torch.inference_mode()
def test_more_than_eight_rows_go_in_parts() -> None:
    model = tiny_model()
    packed, _ = pack(model, (8, 8))
    cache, ids = filled(model, 11), some_ids(11)
    part = copy.deepcopy(cache)
    part.replace_rows(range(8, 11))
    hidden = packed.extend(ids, cache)
    assert torch.equal(hidden[8:], packed.extend(ids[8:], part))


# Widths that fill no panel, no block or no span of inputs: hidden_size, head_dim, query and key
# heads, intermediate_size, vocab_size.
ODD_SHAPES = [
    (16, 16, 1, 1, 1, 321),
    (48, 80, 3, 1, 33, 334),
    (80, 32, 4, 2, 65, 400),
    (112, 16, 6, 3, 127, 383),
    (144, 112, 2, 2, 200, 449),
]


@pytest.mark.parametrize("shape", ODD_SHAPES, ids=str)
@pytest.mark.parametrize("bits", [(8, 8), (4, 4)], ids=str)
@torch.inference_mode()
def test_odd_widths_and_any_number_of_rows_and_threads(
    shape: tuple[int, ...], bits: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eleven threads are more than the tasks of most steps, and than most machines' cores."""
    names = ("hidden_size", "head_dim", "num_attention_heads", "num_key_value_heads")
    names += ("intermediate_size", "vocab_size")
    model = tiny_model(tiny_config(**dict(zip(names, shape, strict=True))))
    packed, matrices = pack(model, bits)
    caches = {rows: filled(model, rows) for rows in (*range(1, 10), 17)}
    monkeypatch.setattr(threads, "WORTH_A_THREAD", 1)
    found = []
    for team in (Team(1), Team(11)):
        monkeypatch.setattr(decode, "team", lambda team=team: team)
        found.append(
            [
                step_of(packed, some_ids(rows), copy.deepcopy(cache))
                for rows, cache in caches.items()
            ]
        )
    emulate(model.language_model, matrices)
    for rows, alone, together in zip(caches, *found, strict=True):
        assert torch.equal(alone[0], together[0])
        assert torch.equal(alone[1], together[1])
        expected = model.language_model.logits(model.extend(some_ids(rows), caches[rows]))
        off = (alone[1] - expected).norm(dim=-1) / expected.norm(dim=-1)
        # A number that is rounded the other way changes all that follows, in some rows.
        assert off.median() < 1e-5
        assert off.max() < 0.05


@pytest.mark.parametrize("head_bits", [8, 4])
@pytest.mark.parametrize("text", [{}, GEMMA2], ids=["gemma", "gemma2"])
@torch.inference_mode()
def test_some_words_logits_are_all_words_at_their_places(
    text: dict[str, Any], head_bits: int
) -> None:
    model = tiny_model(tiny_config(**text))
    packed, _ = pack(model, (8, head_bits))
    cache, ids = filled(model, 3), some_ids(3)
    hidden, every = step_of(packed, ids, copy.deepcopy(cache))
    assert every.shape == (3, 1, model.config.text_config.vocab_size)
    for words in (slice(30, 77), slice(64, 65), slice(0), torch.tensor([0, 5, 17, 300, 319])):
        _, some = step_of(packed, ids, copy.deepcopy(cache), words=words)
        assert torch.equal(some, every[..., words])
        assert torch.equal(packed.logits(hidden, words), every[..., words])
    many = hidden.expand(3, 7, -1)
    assert torch.equal(packed.logits(many), every.expand(3, 7, -1))


@torch.inference_mode()
def test_a_cache_grows_under_way() -> None:
    model = tiny_model()
    packed, _ = pack(model, (8, 8))
    small, large = filled(model, 2), KVCache(model.config.text_config, 2, 400)
    large.replace_rows([], filled(model, 2))
    for step in range(120):
        ids = some_ids(2, seed=step)
        small_hidden, large_hidden = packed.extend(ids, small), packed.extend(ids, large)
        assert torch.equal(small_hidden, large_hidden)


@torch.inference_mode()
def test_a_bfloat16_cache_holds_what_a_float32_one_does() -> None:
    model = tiny_model(tiny_config(**GEMMA2))
    packed, _ = pack(model, (8, 8))
    fine, coarse = filled(model, 3), filled(model, 3, torch.bfloat16)
    ids = some_ids(3)
    a, b = packed.extend(ids, fine), packed.extend(ids, coarse)
    assert (a - b).norm() < 0.02 * a.norm()
    assert coarse.keys[0].dtype == torch.bfloat16
    rows = torch.arange(3), slice(None), fine.slots[:, 0]
    assert torch.equal(coarse.values[0][rows], fine.values[0][rows].bfloat16())


def test_shapes_that_do_not_fit_are_told() -> None:
    config = tiny_config().text_config
    assert fits(config, torch.float32)
    assert not fits(config, torch.float16)
    assert not fits(tiny_config(head_dim=12).text_config, torch.float32)


@pytest.mark.parametrize("method", ["int8", "int4"])
@torch.inference_mode()
def test_mini_says_about_the_same(method: str) -> None:
    """As far from the plain decoder as rounding takes that, and nearly always rounding's words."""
    mini = load("mini", device="cpu", dtype="float32")
    model, decoder = mini.model, mini.model.language_model
    prefix = "language_model.model."
    matrices = {
        name: quantize(weight, bits_of(prefix + name, method))
        for name, weight in decoder_matrices(decoder)
    }
    packed = Decoder(decoder.config, matrices, decoder_norms(decoder), model.dtype)
    rounded = copy.deepcopy(model)
    emulate(rounded.language_model, matrices)
    cache = model.new_cache(2, 100)
    batch = dict(mini.processor(["caption en", "describe en"], [SCENE] * 2))
    hidden = model.prefill(**batch, kv_cache=cache, last_only=True)
    same, ours, roundings = 0, 0.0, 0.0
    for _ in range(20):
        ids = decoder.logits(hidden).argmax(-1, keepdim=True).view(2, 1)
        _, found = step_of(packed, ids, copy.deepcopy(cache))
        seen = rounded.extend(ids, copy.deepcopy(cache))
        emulated = rounded.language_model.logits(seen)
        hidden = model.extend(ids, cache)
        expected = decoder.logits(hidden)
        ours += float((found - expected).norm())
        roundings += float((emulated - expected).norm())
        same += int((found.argmax(-1) == emulated.argmax(-1)).sum())
    assert ours == pytest.approx(roundings, rel=0.02)
    assert same >= 36
    for ids in ([[decoder.config.vocab_size], [3]], [[3], [-1]]):  # as `nn.Embedding` says
        with pytest.raises(IndexError, match="outside the table"):
            step_of(packed, torch.tensor(ids), copy.deepcopy(cache))
    with pytest.raises(IndexError, match="outside the table"):
        packed.logits(hidden, torch.tensor([3, decoder.config.vocab_size]))
