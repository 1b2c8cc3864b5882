"""Folders written by one side and read by the other; the key layouts of published files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.parity.reference import logits_of, reference_config, reference_model
from tests.tiny import (
    GEMMA2,
    make_batch,
    noise_picture,
    tiny_config,
    tiny_model,
    tiny_processor,
    tiny_tokenizer,
    worded_config,
)

from paliglass import load_hf_model
from paliglass.checkpoints import save_folder, saving
from paliglass.checkpoints.config_json import gemma_from_json, paligemma_from_json
from paliglass.checkpoints.folder import load_model

decoders = pytest.mark.parametrize("decoder", [{}, GEMMA2], ids=["gemma", "gemma2"])


def read_by_transformers(folder: Path, **options: Any) -> Any:
    return transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        folder, attn_implementation="eager", local_files_only=True, **options
    )


@decoders
@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
def test_transformers_loads_what_we_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoder: dict[str, Any], shards: bool
) -> None:
    if shards:
        monkeypatch.setattr(saving, "MAX_SHARD_BYTES", 100_000)
    config = tiny_config(**decoder)
    ours = tiny_model(config)
    save_folder(ours, tmp_path / "model")
    assert (len(list((tmp_path / "model").glob("*.safetensors"))) > 1) == shards
    theirs, report = read_by_transformers(tmp_path / "model", output_loading_info=True)
    assert not any(report.values()), report
    batch = make_batch(config, [3, 9])
    torch.testing.assert_close(logits_of(theirs, batch), logits_of(ours, batch), atol=1e-4, rtol=0)
    again = load_model(tmp_path / "model", "cpu")
    assert torch.equal(logits_of(again, batch), logits_of(ours, batch))


@decoders
@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
def test_we_load_what_transformers_saves(
    tmp_path: Path, decoder: dict[str, Any], shards: bool
) -> None:
    config = tiny_config(**decoder)
    theirs = reference_model(config)
    theirs.save_pretrained(tmp_path, max_shard_size="100KB" if shards else "5GB")
    tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
    ours, _ = load_hf_model(tmp_path, "cpu")
    assert ours.config == config
    batch = make_batch(config, [3, 9])
    torch.testing.assert_close(logits_of(ours, batch), logits_of(theirs, batch), atol=1e-4, rtol=0)


LAYOUTS = {
    "a: as published": lambda key: key,
    "b: model. first": lambda key: (
        key.removeprefix("language_model.")
        if key.startswith("language_model.lm_head")
        else "model." + key.replace("language_model.model.", "language_model.", 1)
    ),
    "c: flat tower": lambda key: key.replace("vision_tower.vision_model.", "vision_tower.", 1),
}


@pytest.mark.parametrize("rename", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("head", [False, True], ids=["head left out", "head stored"])
def test_every_key_layout_loads(tmp_path: Path, rename: Any, head: bool) -> None:
    model = tiny_model()
    save_folder(model, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    state = load_file(file)
    if head:
        state["language_model.lm_head.weight"] = model.language_model.lm_head.weight.data.clone()
    save_file({rename(key): tensor for key, tensor in state.items()}, file, {"format": "pt"})
    loaded = load_model(tmp_path / "model", "cpu").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_survives_a_folder(tmp_path: Path, dtype: torch.dtype) -> None:
    save_folder(tiny_model().to(dtype), tmp_path / "model")
    assert load_model(tmp_path / "model", "cpu").dtype == dtype
    assert read_by_transformers(tmp_path / "model", dtype="auto").dtype == dtype


@decoders
def test_configurations_mean_the_same_on_both_sides(decoder: dict[str, Any]) -> None:
    config = tiny_config(**decoder)
    theirs = reference_config(config)
    assert paligemma_from_json(json.loads(theirs.to_json_string(use_diff=False))) == config
    assert paligemma_from_json(theirs.to_dict()) == config


def test_the_window_that_gemma2_files_inherit_means_full_attention() -> None:
    theirs = transformers.PaliGemmaConfig(text_config={"model_type": "gemma2"}).to_dict()
    text = theirs["text_config"]
    assert text["sliding_window"] == 4096
    assert gemma_from_json(text) == gemma_from_json({**text, "sliding_window": None})


def test_auto_processor_reads_our_folder_and_makes_our_batch(tmp_path: Path) -> None:
    processor = tiny_processor()
    save_folder(tiny_model(worded_config()), tmp_path / "model", processor)
    theirs = transformers.AutoProcessor.from_pretrained(tmp_path / "model", local_files_only=True)
    assert type(theirs).__name__ == "PaliGemmaProcessor"
    pictures = [noise_picture(), noise_picture(40, 30)]
    texts = ["cap en", "detect a dog in the picture"]
    expected = theirs(
        text=["<image>" + t for t in texts],
        images=[[p] for p in pictures],
        padding="longest",
        return_tensors="pt",
    )
    ours = processor(text=texts, images=pictures)
    assert torch.equal(ours["input_ids"], expected["input_ids"])
    assert torch.equal(ours["attention_mask"], expected["attention_mask"])
    torch.testing.assert_close(ours["pixel_values"], expected["pixel_values"], atol=1e-6, rtol=0)
