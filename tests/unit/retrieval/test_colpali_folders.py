"""ColPali out of folders of every layout, strictly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.edits import edit_json, edit_weights
from tests.tiny import noise_picture, tiny_model, tiny_processor, worded_config
from tests.tiny_colpali import PROJECTION, adapter_folder, colpali_folder

from paliglass import load
from paliglass.checkpoints import save_folder
from paliglass.checkpoints.layouts import module_name
from paliglass.contrastive.index import fingerprint
from paliglass.errors import CheckpointError, PaliglassError
from paliglass.retrieval import load_colpali, save_colpali
from paliglass.retrieval.folders import parts
from paliglass.retrieval.index import embed_pages, embed_query

PICTURES = [noise_picture(seed=1), noise_picture(50, 40, seed=2)]


def refusal(folder: Path) -> str:
    with pytest.raises(PaliglassError) as error:
        load_colpali(folder, device="cpu")
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)
    return str(error.value)


def test_both_layouts_are_one_model(tmp_path: Path) -> None:
    one = load_colpali(colpali_folder(tmp_path / "a", "hf"), device="cpu")
    two = load_colpali(colpali_folder(tmp_path / "b", "engine"), device="cpu")
    assert torch.equal(embed_pages(*one, PICTURES), embed_pages(*two, PICTURES))
    assert torch.equal(embed_query(*one, "a dog"), embed_query(*two, "a dog"))


@pytest.mark.parametrize("wrapper", ["", "vlm.", "model.", "model.model.", "vlm.model."])
def test_every_name_of_a_weight_is_known(wrapper: str) -> None:
    layer = "language_model.model.layers.0.mlp.up_proj.weight"
    tower = "vision_tower.vision_model.encoder.layers.0.layer_norm1.weight"
    assert module_name(wrapper + layer) == layer
    assert module_name(wrapper + layer.replace("model.layers", "layers")) == layer
    assert module_name(wrapper + tower) == tower
    assert module_name(wrapper + tower.replace("vision_model.", "")) == tower
    head = "language_model.lm_head.weight"
    assert {module_name(wrapper + h) for h in (head, "lm_head.weight")} == {head}
    projector = "multi_modal_projector.linear.bias"
    assert module_name(wrapper + projector) == projector


@pytest.mark.parametrize("layout", ["hf", "engine"])
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s, p: s.pop(f"{p}.bias"), "lacks embedding_proj_layer.bias"),
        (lambda s, p: s.update(extra=torch.zeros(1)), "holds, beyond the model, extra"),
        (
            lambda s, p: s.update({f"{p}.weight": torch.zeros(128, 3)}),
            r"weight has shape [128, 3], the configuration asks for [128, 48]",
        ),
        (
            lambda s, p: s.pop(next(k for k in s if "layers.1.mlp.up_proj" in k)),
            "lacks language_model.model.layers.1.mlp.up_proj.weight",
        ),
        (
            lambda s, p: s.update({f"{p}.bias": torch.full((128,), torch.nan)}),
            ".bias holds NaN",
        ),
        (
            lambda s, p: [s.pop(f"{p}.{leaf}") for leaf in ("weight", "bias")],
            "is a ColPali without embedding_proj_layer (custom_text_proj)",
        ),
    ],
)
def test_a_wrong_tensor_is_named(
    tmp_path: Path, layout: Any, edit: Callable[..., object], message: str
) -> None:
    folder = colpali_folder(tmp_path / "a", layout)
    edit_weights(folder, lambda state: edit(state, PROJECTION[layout]))
    assert message in refusal(folder)


def test_a_paligemma_is_refused(tmp_path: Path) -> None:
    save_folder(tiny_model(worded_config()), tmp_path / "a", tiny_processor())
    assert "is a PaliGemma and no ColPali" in refusal(tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedding_dim": 0}, "embedding_dim is 0"),
        ({"embedding_dim": "wide"}, "embedding_dim is 'wide'"),
        ({"pooling": "mean"}, "unknown key 'pooling'"),
        ({"vlm_config": None}, "vlm_config is None"),
        ({"vlm_config": {"model_type": "qwen2_vl"}}, "model_type is 'qwen2_vl'"),
        ({"model_type": "colqwen2"}, "model_type is 'colqwen2'"),
    ],
)
def test_a_wrong_configuration_is_named(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = colpali_folder(tmp_path / "a")
    edit_json(folder / "config.json", **change)
    assert message in refusal(folder)


def test_prompts_of_the_folder_are_heeded(tmp_path: Path) -> None:
    folder = colpali_folder(tmp_path / "a")
    edit_json(folder / "processor_config.json", query_prefix="Query: ", processor_class="X")
    assert load_colpali(folder, device="cpu")[1].query_prefix == "Query: "
    edit_json(folder / "processor_config.json", query_prefix=3)
    assert "query_prefix is 3" in refusal(folder)


@pytest.mark.parametrize("layout", ["hf", "engine"])
def test_plain_loading_says_what_to_do(tmp_path: Path, layout: Any) -> None:
    folder = colpali_folder(tmp_path / "a", layout)
    with pytest.raises(CheckpointError, match=r"is a ColPali.*paliglass search") as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_an_adapter_brings_its_base_and_needs_no_tokenizer_of_its_own(tmp_path: Path) -> None:
    base = colpali_folder(tmp_path / "base", "engine")
    adapter = adapter_folder(tmp_path / "adapter", base)
    model, processor = load_colpali(adapter, device="cpu")
    plain, _ = load_colpali(base, device="cpu")
    change = (
        embed_pages(model, processor, PICTURES) - embed_pages(plain, processor, PICTURES)
    ).abs()
    assert change.max() > 0.01
    assert parts(adapter) == [base, adapter]
    assert len({fingerprint(*parts(some)) for some in (base, adapter)}) == 2


def test_int8_is_near_to_float(tmp_path: Path) -> None:
    """Measured: cosines of .9987 in the mean and .990 at least; random weights are the worst."""
    folder = colpali_folder(tmp_path / "a")
    plain, processor = load_colpali(folder, device="cpu")
    small, _ = load_colpali(folder, device="cpu", quantize="int8")
    assert not any(isinstance(m, torch.nn.Linear) for m in small.vlm.modules())
    cosines = (
        embed_pages(plain, processor, PICTURES) * embed_pages(small, processor, PICTURES)
    ).sum(-1)
    assert cosines.mean() > 0.995
    assert cosines.min() > 0.97
    words = (embed_query(plain, processor, "a dog") * embed_query(small, processor, "a dog")).sum(
        -1
    )
    assert words.min() > 0.97


def test_bfloat16_gives_unit_vectors_of_float32(tmp_path: Path) -> None:
    model, processor = load_colpali(colpali_folder(tmp_path / "a"), device="cpu", dtype="bfloat16")
    vectors = embed_pages(model, processor, PICTURES)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(vectors.shape[:2]))


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_saved_and_loaded_is_the_same(tmp_path: Path, quantize: str | None) -> None:
    folder = colpali_folder(tmp_path / "a", "engine")
    edit_json(folder / "processor_config.json", query_prefix="Query: ")
    model, processor = load_colpali(folder, device="cpu", quantize=quantize)
    save_colpali(model, tmp_path / "b", processor)
    again, other = load_colpali(tmp_path / "b", device="cpu")
    assert torch.equal(embed_pages(again, other, PICTURES), embed_pages(model, processor, PICTURES))
    assert torch.equal(embed_query(again, other, "a dog"), embed_query(model, processor, "a dog"))
    with pytest.raises(CheckpointError, match="exists already"):
        save_colpali(model, tmp_path / "b", processor)


def test_another_programs_quantization_is_refused(tmp_path: Path) -> None:
    folder = colpali_folder(tmp_path / "a")
    edit_json(folder / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    assert "'quantization_config' is {'quant_method': 'bitsandbytes'}" in refusal(folder)
