"""A trace holds what the model computed, by the checkpoint's names, and leaves nothing behind."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from tests.tiny import GEMMA2, make_batch, noise_picture, row_alone, tiny_config, tiny_model

import paliglass
from paliglass import PaliglassError
from paliglass.inspect.bench import greedy
from paliglass.inspect.tracing import DECODER, INPUTS, TOWER, TracedRow
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration

DECODERS: dict[str, dict[str, Any]] = {
    "gemma": {},
    "gemma2": GEMMA2,
}
decoders = pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS.keys())
sides = pytest.mark.parametrize("side", ["left", "right"])
PICTURES = [1, 2, 1]


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=5e-5, rtol=1e-4)


def traced_generation(
    model: PaliGemmaForConditionalGeneration, side: str, tokens: int = 5
) -> tuple[list[TracedRow], list[list[int]], dict[str, torch.Tensor]]:
    batch = make_batch(model.config, [3, 9, 6], pictures=PICTURES, side=side)
    with paliglass.trace(model) as t:
        steps = list(greedy(model, batch, tokens))
    return t.rows, torch.stack(steps, 1).tolist(), batch


def test_a_trace_tells_what_it_has_seen() -> None:
    model = tiny_model(tiny_config(eos_token_id=319))
    batch = make_batch(model.config, [3, 9, 6], pictures=PICTURES)
    with paliglass.trace(model) as t:
        assert repr(t) == "<Trace of 0 pictures; prompts with their tokens: none yet>"
        list(greedy(model, batch, 2))
    lengths = ", ".join(str(len(row)) for row in t.rows)
    assert repr(t) == (
        f"<Trace of {len(t.pictures)} pictures; prompts with their tokens: {lengths}>"
    )
    assert len(t.pictures) > 1


@decoders
@sides
def test_prefill_and_steps_join_to_the_row_in_one_piece(decoder: dict[str, Any], side: str) -> None:
    """Cached, padded, batched: all intermediates equal those of the row alone without a cache."""
    model = tiny_model(tiny_config(**decoder, eos_token_id=319))
    rows, answers, batch = traced_generation(model, side)
    assert len(rows) == 3
    for number, row in enumerate(rows):
        alone = row_alone(batch, number, PICTURES)
        said = torch.tensor([answers[number][:-1]])  # the last word does not go through
        ids = torch.cat((alone["input_ids"], said), 1)
        types = torch.cat((torch.zeros_like(alone["input_ids"]), torch.ones_like(said)), 1)
        with paliglass.trace(model) as t, torch.inference_mode():
            out = model(ids, alone["pixel_values"], token_type_ids=types)
        [whole] = t.rows
        assert row.ids.tolist() == whole.ids.tolist() == ids[0].tolist()
        assert row.passes == [alone["input_ids"].shape[1], 1, 1, 1, 1]
        assert row.names == whole.names
        for name in row.names:
            close(row.hidden(name), whole.hidden(name))
        for layer, name in enumerate(row.attention_names):
            assert name == f"language_model.model.layers.{layer}.self_attn"
            for kind in ("query", "key", "value", "attention"):
                close(getattr(row, kind)(name), getattr(whole, kind)(layer))
            assert row.mask(name).equal(whole.mask(name))
        close(row.logits(), out.logits[0])
        close(row.norms[f"{DECODER}.layers.1"], whole.hidden(f"{DECODER}.layers.1").norm(dim=-1))


def test_a_prompt_that_several_ask_is_run_once_and_traced_for_each() -> None:
    model = paliglass.load("mini", fast=False)
    picture = noise_picture()
    with paliglass.trace(model) as t:
        answers = model.generate(picture, ["caption en", "caption en"], max_new_tokens=5)
        rows = t.rows
        assert rows[-1].lens(1)  # read inside the block, which keeps what was traced
        assert [candidates[0].id for candidates in rows[-1].top(1)]
    assert answers[0] == answers[1]
    assert len(rows) >= 2
    assert rows[-1].passes[0] > model.model.config.num_image_tokens
    assert rows[-1].passes[1:] == [1] * (len(rows[-1].passes) - 1)


@decoders
def test_attention_weighs_the_values_to_the_layers_output(decoder: dict[str, Any]) -> None:
    model = tiny_model(tiny_config(**decoder))
    batch = make_batch(model.config, [4])
    outputs = []
    layer = model.language_model.model.layers[1].self_attn
    hook = layer.attention.register_forward_hook(lambda _m, _i, out: outputs.append(out))
    with paliglass.trace(model) as t, torch.inference_mode():
        model(**batch)
    hook.remove()
    [row] = t.rows
    weights, values = row.attention(1), row.value(1)
    values = values.repeat_interleave(len(weights) // len(values), 0)
    close((weights @ values).transpose(0, 1).flatten(1), outputs[0][0])
    close(weights.sum(-1), torch.ones(weights.shape[:2]))
    assert not weights.masked_select(~row.mask(1)).any()
    close(row.attention(1, heads=[2, 0]), weights[[2, 0]])


def test_pictures_are_traced_through_the_tower() -> None:
    model = tiny_model()
    batch = make_batch(model.config, [3, 5], pictures=[2, 1])
    with paliglass.trace(model) as t, torch.inference_mode():
        model(**batch)
        features = model.vision_tower(batch["pixel_values"])
    assert len(t.pictures) == 6  # the second call is seen too
    first, again = t.pictures[1], t.pictures[4]
    assert len(first) == model.config.num_image_tokens
    assert first.pixels.equal(batch["pixel_values"][1])
    close(first.hidden(f"{TOWER}.post_layernorm"), features[1])
    close(first.patch_embeddings, again.patch_embeddings)
    assert first.attention(0).shape == (4, 16, 16)
    assert first.mask().all()


def test_what_a_row_says_of_itself() -> None:
    model = tiny_model(tiny_config(eos_token_id=319))
    rows, answers, _ = traced_generation(model, "left")
    row = rows[1]  # two pictures of 16 patches
    assert row.is_picture.tolist() == [True] * 32 + [False] * 13
    looks = row.picture_attention(layers=[0, -1])
    assert looks.shape == (45, 2, 4, 4)
    both = torch.stack([row.attention(0), row.attention(2)]).mean((0, 1))
    close(looks.flatten(1), both[:, row.is_picture])
    # 3 layers, keys and values, one head of 16 float32
    assert row.cache[0] == (41, 41 * 3 * 2 * 16 * 4)
    assert [size.tokens for size in row.cache] == [41, 42, 43, 44, 45]
    top = row.top(3)
    assert [candidates[0].id for candidates in top] == answers[1]
    assert all(a.probability >= b.probability for c in top for a, b in pairwise(c))
    # After the last layer there is nothing left to look through.
    for early, final in zip(row.lens(-1, 3), top, strict=True):
        assert [c.id for c in early] == [c.id for c in final]
    assert row.lens(0) != row.lens(-1)
    close(row.picture_attention([0, -1], positions=row.answer), looks[40:])
    assert row.hidden(INPUTS).shape == (45, 48)
    assert len(rows[0].top()) == 5


def test_only_the_layers_asked_for_are_kept() -> None:
    model = tiny_model()
    with paliglass.trace(model, layers=[-1]) as t, torch.inference_mode():
        model(**make_batch(model.config, [3]))
    [row] = t.rows
    assert row.attention_names == ["language_model.model.layers.2.self_attn"]
    close(row.attention(-1), row.attention(2))
    assert t.pictures[0].attention_names == [f"{TOWER}.encoder.layers.1.self_attn"]
    with pytest.raises(PaliglassError, match=r"layers\.0\.self_attn was not traced; there are"):
        row.attention(0)


def test_a_layer_that_is_not_there() -> None:
    with (
        pytest.raises(PaliglassError, match="no layer 7: the tower has 2, the decoder 3"),
        paliglass.trace(tiny_model(), layers=[7]),
    ):
        pass


def test_a_prompt_that_began_before() -> None:
    model = tiny_model()
    with torch.inference_mode():
        out = model(**make_batch(model.config, [3]))
        ids = torch.tensor([[5]])
        with paliglass.trace(model), pytest.raises(PaliglassError, match="from its beginning"):
            model(ids, kv_cache=out.kv_cache)


def test_nothing_stays_behind_and_nothing_changes() -> None:
    model = tiny_model()
    batch = make_batch(model.config, [3])
    with torch.inference_mode():
        before = model(**batch).logits
        with paliglass.trace(model):
            assert model(**batch).logits.equal(before)
    with pytest.raises(ValueError, match="this tower takes"), paliglass.trace(model):
        model(**batch | {"pixel_values": torch.zeros(1, 3, 8, 8)})
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    assert not any(getattr(module, name) for module in model.modules() for name in hooks)
