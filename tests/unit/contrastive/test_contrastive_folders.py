"""Dual encoders in and out of folders, and their tower into PaliGemma."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.edits import edit_json, edit_weights
from tests.tiny import TINY, noise_picture, tiny_tokenizer
from tests.tiny_dual import CONFIGS, SIGLIP, VIT, dual_batch, dual_model

from paliglass.checkpoints import save_folder
from paliglass.checkpoints.saving import digest
from paliglass.contrastive.folders import (
    initialize_vision_tower,
    load_contrastive,
    save_contrastive,
    start_from_paligemma,
    vision_weights,
)
from paliglass.contrastive.processing import ContrastiveProcessor
from paliglass.errors import CheckpointError
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.modeling_siglip import interpolate_positions


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_contrastive(dual_model(), tmp_path / "dual", tiny_tokenizer())
    return tmp_path / "dual"


@pytest.mark.parametrize("name", CONFIGS)
def test_saved_and_loaded_is_the_same(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    model = dual_model(config)
    save_contrastive(model, tmp_path / "dual", tiny_tokenizer())
    loaded, processor = load_contrastive(tmp_path / "dual", "cpu")
    assert loaded.config == config
    assert not loaded.training
    assert {p.requires_grad for p in loaded.parameters()} == {True}
    batch = dual_batch(config)
    with torch.inference_mode():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    assert (processor.image_size, processor.max_length) == (32, 12)
    assert processor.padding == config.text.padding

    state = load_file(tmp_path / "dual" / "model.safetensors")
    checksums = json.loads((tmp_path / "dual" / "checksums.json").read_text())
    assert checksums == {key: digest(tensor) for key, tensor in state.items()}


def test_saving_in_bfloat16_leaves_the_model_alone(tmp_path: Path) -> None:
    model = dual_model()
    save_contrastive(model, tmp_path / "dual", tiny_tokenizer(), dtype="bfloat16")
    assert model.dtype == torch.float32
    loaded, _ = load_contrastive(tmp_path / "dual", "cpu")
    assert loaded.dtype == torch.bfloat16
    wide, _ = load_contrastive(tmp_path / "dual", "cpu", "float32")
    assert {p.dtype for p in wide.parameters()} == {torch.float32}


def test_nothing_is_overwritten(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="exists already"):
        save_contrastive(dual_model(), saved, tiny_tokenizer())


def test_the_processor_comes_back_as_it_was(tmp_path: Path) -> None:
    processor = ContrastiveProcessor(
        tiny_tokenizer(), 32, 12, padding="max_length", canonical=True, image_mean=(0.1, 0.2, 0.3)
    )
    save_contrastive(dual_model(), tmp_path / "dual", processor)
    _, loaded = load_contrastive(tmp_path / "dual", "cpu")
    texts = ["A  DOG, with cap!", "", "en " * 20]
    ours, theirs = processor.words(texts), loaded.words(texts)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    picture = noise_picture()
    assert torch.equal(processor.pixels(picture), loaded.pixels(picture))


HEAD = "vision_model.head.probe"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(HEAD), "lacks image_encoder.head.probe"),
        (lambda state: state.update(extra=torch.zeros(1)), "holds, beyond the model, extra"),
        (lambda s: s.update({HEAD: torch.zeros(1, 1, 5)}), r"probe has shape \[1, 1, 5\]"),
        (
            lambda s: s.update({HEAD: s[HEAD].to(torch.int8)}),
            "of quantised checkpoints, only PaliGemmas",
        ),
        (lambda s: s.update({HEAD: s[HEAD].half()}), "name one dtype for all"),
    ],
)
def test_weights_that_do_not_fit_are_named(saved: Path, change: Any, message: str) -> None:
    edit_weights(saved, change)
    with pytest.raises(CheckpointError, match=message):
        load_contrastive(saved, "cpu")


def test_a_missing_running_mean_is_missed(tmp_path: Path) -> None:
    save_contrastive(dual_model(CONFIGS["resnet-cbow-clip"]), tmp_path / "dual", tiny_tokenizer())
    edit_weights(tmp_path / "dual", lambda s: s.pop("image_encoder.stem.1.running_mean"))
    with pytest.raises(CheckpointError, match=r"lacks image_encoder\.stem\.1\.running_mean"):
        load_contrastive(tmp_path / "dual", "cpu")


def test_a_wrong_configuration_is_named_with_its_file(saved: Path) -> None:
    edit_json(saved / "config.json", model_type="paligemma")
    with pytest.raises(CheckpointError, match=r"config\.json: model_type is 'paligemma'"):
        load_contrastive(saved, "cpu")


def test_pickles_and_truncated_files_are_refused(saved: Path) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="truncated or not safetensors"):
        load_contrastive(saved, "cpu")
    weights.rename(saved / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="is a pickle"):
        load_contrastive(saved, "cpu")


def test_a_tokenizer_with_too_many_words_is_refused(saved: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["more"])
    tokenizer.save(str(saved / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="the tokenizer has 365 tokens, the text encoder 364"):
        load_contrastive(saved, "cpu")


def test_a_tokenizer_without_its_padding_is_refused(saved: Path) -> None:
    edit_json(saved / "tokenizer_config.json", pad_token={"content": "[PAD]"})
    with pytest.raises(CheckpointError, match=r"has no \[PAD\]"):
        load_contrastive(saved, "cpu")


def test_siglips_own_tokenizer_settings_are_heeded(saved: Path) -> None:
    """It pads with its end of text, and reads texts in lower case without punctuation."""
    (saved / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "SiglipTokenizer",
                "pad_token": {"content": "<eos>", "lstrip": True},
                "eos_token": "<eos>",
            }
        )
    )
    _, processor = load_contrastive(saved, "cpu")
    ids = processor.words(["Dog!", "dog"])["input_ids"]
    assert torch.equal(ids[0], ids[1])
    assert ids[0].tolist()[1:] == [1] * 11


# ------------------------------------------------------------- to PaliGemma


def paligemma(**vision: Any) -> PaliGemmaForConditionalGeneration:
    tower = dataclasses.replace(VIT, **vision)
    return PaliGemmaForConditionalGeneration(dataclasses.replace(TINY, vision_config=tower))


@pytest.mark.parametrize("name", ["siglip", "mean"])
def test_the_tower_moves_into_paligemma(name: str, tmp_path: Path) -> None:
    dual, model = dual_model(CONFIGS[name]), paligemma()
    assert vision_weights(dual).keys() == model.vision_tower.state_dict().keys()
    save_contrastive(dual, tmp_path / "dual", tiny_tokenizer(), dtype="bfloat16")
    before = model.language_model.model.embed_tokens.weight.clone()
    initialize_vision_tower(model, tmp_path / "dual")
    for key, weight in model.vision_tower.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, vision_weights(dual)[key].bfloat16().float()), key
    assert torch.equal(model.language_model.model.embed_tokens.weight, before)


def test_the_tower_moves_back_into_a_dual_encoder(tmp_path: Path) -> None:
    model = paligemma()
    save_folder(model, tmp_path / "model")
    dual = dual_model()
    head = dual.image_encoder.head.probe.clone()
    start_from_paligemma(dual, tmp_path / "model")
    for key, weight in model.vision_tower.state_dict().items():
        assert torch.equal(weight, vision_weights(dual)[key]), key
    assert torch.equal(dual.image_encoder.head.probe, head)
    with pytest.raises(CheckpointError, match="is a ResNet"):
        start_from_paligemma(dual_model(CONFIGS["resnet-cbow-clip"]), tmp_path / "model")


def test_towers_of_two_shapes_do_not_mix(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tower's patch_size is 8, here it is 16"):
        initialize_vision_tower(paligemma(patch_size=16), saved)


def test_a_tower_moves_into_one_for_larger_pictures(tmp_path: Path) -> None:
    small, large = dual_model(), paligemma(image_size=48)
    save_contrastive(small, tmp_path / "dual", tiny_tokenizer())
    initialize_vision_tower(large, tmp_path / "dual")
    name = "vision_model.embeddings.position_embedding.weight"
    moved, theirs = large.vision_tower.state_dict(), vision_weights(small)
    assert torch.equal(moved[name], interpolate_positions(theirs[name], 6))
    rest = theirs.keys() - {name}
    assert all(torch.equal(moved[key], theirs[key]) for key in rest)
    save_folder(large, tmp_path / "model")
    start_from_paligemma(small, tmp_path / "model")
    side = VIT.patches_per_side
    assert torch.equal(vision_weights(small)[name], interpolate_positions(moved[name], side))


def test_a_resnet_is_no_tower(tmp_path: Path) -> None:
    save_contrastive(dual_model(CONFIGS["resnet-cbow-clip"]), tmp_path / "dual", tiny_tokenizer())
    with pytest.raises(CheckpointError, match="is a ResNet"):
        initialize_vision_tower(paligemma(), tmp_path / "dual")


def test_a_saved_siglip_is_named_as_theirs(saved: Path) -> None:
    keys = load_file(saved / "model.safetensors").keys()
    prefixes = {key.split(".")[0] for key in keys}
    assert prefixes == {"vision_model", "text_model", "logit_scale", "logit_bias"}
    assert SIGLIP.is_siglip_model
