"""The original implementation's own numbers (google-research/big_vision, JAX, float32).

tests/fixtures/big_vision holds tiny random models under the published files' names, and what the
original computed from them: `pg1` like PaliGemma, `pg2` like PaliGemma 2, with low softcaps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from paliglass.checkpoints.big_vision import load_big_vision
from paliglass.inspect.bench import greedy
from paliglass.layers.masks import prefix_lm_mask
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration

FIXTURES = Path(__file__).parents[1] / "fixtures" / "big_vision"
IMAGE_TOKEN = 512  # outside the table: the original has no such id, it prepends the picture
TOLERANCE = 2e-5
OVERRIDES: dict[str, dict[str, Any]] = {
    "pg1": {},
    "pg2": {
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 12,
    },
}


@pytest.fixture(params=OVERRIDES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(name: str) -> PaliGemmaForConditionalGeneration:
    path = FIXTURES / f"{name}_ckpt.npz"
    return load_big_vision(path, device="cpu", image_token_index=IMAGE_TOKEN, **OVERRIDES[name])


@pytest.fixture
def numbers(name: str) -> dict[str, Tensor]:
    with np.load(FIXTURES / f"{name}_io.npz", allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def pictures(numbers: dict[str, Tensor]) -> Tensor:
    return numbers["image"].permute(0, 3, 1, 2)


def with_image(model: PaliGemmaForConditionalGeneration, text: Tensor, fill: int) -> Tensor:
    places = torch.full((len(text), model.config.num_image_tokens), fill)
    return torch.cat((places, text.long()), dim=1)


def same(ours: Tensor, original: Tensor) -> None:
    torch.testing.assert_close(ours, original, atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_vision_tower(model: PaliGemmaForConditionalGeneration, numbers: dict[str, Tensor]) -> None:
    outputs: dict[str, Tensor] = {}
    tower = model.vision_tower.vision_model
    parts = {
        "img_with_posemb": tower.embeddings,
        "img_block00": tower.encoder.layers[0],
        "img_block01": tower.encoder.layers[1],
        "img_encoded": tower.post_layernorm,
    }
    for key, part in parts.items():
        part.register_forward_hook(lambda _m, _i, output, key=key: outputs.update({key: output}))
    same(model.get_image_features(pictures(numbers)), numbers["zimg"])
    for key in parts:
        same(outputs[key], numbers[key])


@torch.inference_mode()
def test_text_embeddings(
    model: PaliGemmaForConditionalGeneration, numbers: dict[str, Tensor]
) -> None:
    same(model.language_model.model.embed(numbers["text"].long()), numbers["ztxt"])


def test_attention_mask(
    model: PaliGemmaForConditionalGeneration, numbers: dict[str, Tensor]
) -> None:
    """The original counts padding as causal tokens, or, in a second mask, hides it."""
    is_autoregressive = with_image(model, numbers["mask_ar"], 0)
    everything = torch.ones_like(is_autoregressive)
    mask = prefix_lm_mask(is_autoregressive, everything)[:, 0]
    assert torch.equal(mask, numbers["attn_mask"])
    is_token = with_image(model, numbers["mask_input"], 1).bool()
    hidden = prefix_lm_mask(is_autoregressive, is_token)[:, 0]
    assert not is_token.all()
    assert torch.equal(hidden[is_token], numbers["attn_mask_padmasked"][is_token])


@torch.inference_mode()
def test_teacher_forcing(
    model: PaliGemmaForConditionalGeneration, numbers: dict[str, Tensor], name: str
) -> None:
    inputs = {
        "input_ids": with_image(model, numbers["text"], IMAGE_TOKEN),
        "token_type_ids": with_image(model, numbers["mask_ar"], 0),
        "pixel_values": pictures(numbers),
    }
    last_layer: list[Tensor] = []
    model.language_model.model.layers[-1].register_forward_hook(
        lambda _module, _inputs, output: last_layer.append(output)
    )
    hidden = model.prefill(**inputs)
    scale = numbers["llm_encoded"].abs().max()  # before the last norm, sums grow to some 20
    same(last_layer[0] / scale, numbers["llm_encoded"] / scale)
    same(hidden, numbers["llm_pre_logits"])
    same(model.language_model.lm_head(hidden), numbers["logits_nocap"])
    same(model(**inputs).logits, numbers["logits"])
    assert torch.equal(numbers["logits"], numbers["logits_nocap"]) == (name == "pg1")


def decoding_batch(
    model: PaliGemmaForConditionalGeneration, numbers: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Two prompts of different length, padded on the right as the original pads."""
    return {
        "input_ids": with_image(model, numbers["dec_text"], IMAGE_TOKEN),
        "attention_mask": with_image(model, numbers["dec_mask_input"], 1),
        "pixel_values": pictures(numbers),
    }


def test_12_greedy_tokens(
    model: PaliGemmaForConditionalGeneration, numbers: dict[str, Tensor]
) -> None:
    expected = numbers["dec_tokens"]
    assert not torch.isin(expected, torch.tensor(model.config.text_config.eos_token_ids)).any()
    steps = list(greedy(model, decoding_batch(model, numbers), 12))
    assert torch.stack(steps, 1).tolist() == expected.tolist()


@torch.inference_mode()
def test_logits_of_every_decoded_token(
    model: PaliGemmaForConditionalGeneration, numbers: dict[str, Tensor]
) -> None:
    tokens, expected = numbers["dec_tokens"].long(), numbers["dec_logits"].clone()
    cap = model.config.text_config.final_logit_softcapping
    if cap:  # the original leaves the cap out of the first token's logits, and there alone
        expected[:, 0] = (expected[:, 0] / cap).tanh() * cap
    cache = model.new_cache(len(tokens), capacity=4)  # too small: it has to grow
    logits = model.language_model.logits
    last = model.prefill(**decoding_batch(model, numbers), kv_cache=cache, last_only=True)
    same(logits(last), expected[:, 0])
    for step in range(tokens.shape[1] - 1):
        hidden = model.extend(tokens[:, step : step + 1], cache)
        same(logits(hidden[:, -1]), expected[:, step + 1])
