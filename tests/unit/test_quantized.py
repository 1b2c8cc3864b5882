"""Whole models in int8: as close as int8 is, saved, loaded, refused in words."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import GEMMA2, TINY, make_batch, noise_picture, tiny_config, tiny_model

import paliglass
from paliglass.checkpoints.folder import load_model
from paliglass.checkpoints.memory import require_memory
from paliglass.checkpoints.saving import save_folder
from paliglass.errors import CheckpointError, PaliglassError
from paliglass.fast import accelerate
from paliglass.fast.int8 import Int8Head, Int8Linear
from paliglass.inspect.verify import verify
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration

CONFIGS = {"gemma": TINY, "gemma2": tiny_config(**GEMMA2)}


def saved(folder: Path, name: str = "gemma", dtype: torch.dtype = torch.float32) -> Path:
    save_folder(tiny_model(CONFIGS[name], std=0.05).to(dtype), folder)
    return folder


def loaded(
    folder: Path, quantize: str | None = None, dtype: str | None = None
) -> PaliGemmaForConditionalGeneration:
    return load_model(folder, "cpu", dtype, accelerate=accelerate, quantize=quantize)


def outputs(model: PaliGemmaForConditionalGeneration, gradients: bool = False) -> torch.Tensor:
    batch = make_batch(TINY, [5, 3])
    batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
    with torch.inference_mode(not gradients):
        return model(**batch).logits.float()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_an_int8_model_says_nearly_the_same(tmp_path: Path, name: str, dtype: str) -> None:
    folder = saved(tmp_path / "model", name)
    plain, small = (loaded(folder, method, dtype) for method in (None, "int8"))
    expected, found = outputs(plain), outputs(small)
    assert (found - expected).norm() < 0.05 * expected.norm()
    assert small.dtype == plain.dtype
    linear = [m for m in small.modules() if isinstance(m, torch.nn.Linear)]
    assert linear == []  # nothing was forgotten
    assert isinstance(small.language_model.lm_head, Int8Head)


@pytest.mark.usefixtures("int8_kernel")
@pytest.mark.parametrize("name", CONFIGS)
def test_a_packed_model_runs_where_gradients_are_on(tmp_path: Path, name: str) -> None:
    model = loaded(saved(tmp_path / "model", name), "int8")
    assert torch.equal(outputs(model, gradients=True), outputs(model))


def test_rows_of_the_head_are_columns_of_the_logits(tmp_path: Path) -> None:
    model = loaded(saved(tmp_path / "model"), "int8").language_model
    hidden = torch.randn(1, TINY.text_config.hidden_size)
    whole = model.logits(hidden)
    rows = torch.tensor([3, 77, 4])
    torch.testing.assert_close(model.logits(hidden, rows), whole[:, rows], atol=0.05, rtol=0.05)


def test_a_folder_in_int8_is_the_model_that_was_saved(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", dtype=torch.bfloat16)
    model = loaded(folder, "int8")
    save_folder(model, tmp_path / "int8")
    config = json.loads((tmp_path / "int8" / "config.json").read_text())
    assert config["quantization_config"]["bits"] == 8
    again = loaded(tmp_path / "int8")
    assert torch.equal(outputs(again), outputs(model))
    stored = load_file(tmp_path / "int8" / "model.safetensors")
    small = [tensor for tensor in stored.values() if tensor.dtype == torch.int8]
    others = [tensor for tensor in stored.values() if tensor.dtype != torch.int8]
    assert len(small) == sum(isinstance(m, Int8Linear) for m in model.modules())
    # Scales, norms, biases, the patches' convolution and the places.
    assert all(tensor.ndim == 1 or "embedding" in name for name, tensor in stored.items())
    assert all(tensor.is_floating_point() for tensor in others)


def in_rows(folder: Path, target: Path) -> Path:
    """A folder in panels as earlier versions, and processors without a kernel, write it."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    assert config["quantization_config"].pop("layout").startswith("panels")
    (target / "config.json").write_text(json.dumps(config))
    stored = load_file(target / "model.safetensors")
    for name, module in loaded(folder).named_modules():
        if isinstance(module, Int8Linear):
            rows = module.integers(torch.arange(module.out_features))
            stored[f"{name}.weight"] = rows.contiguous()
    save_file(stored, target / "model.safetensors")
    return target


def test_a_folder_in_rows_is_the_same_model(tmp_path: Path) -> None:
    model = loaded(saved(tmp_path / "model", dtype=torch.bfloat16), "int8")
    if any(m.matrix is None for m in model.modules() if isinstance(m, Int8Linear)):
        pytest.skip("matrices are kept row by row here")
    save_folder(model, tmp_path / "panels")
    again = loaded(in_rows(tmp_path / "panels", tmp_path / "rows"))
    assert torch.equal(outputs(again), outputs(model))


def test_panels_become_rows_where_there_is_no_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(saved(tmp_path / "model"), "int8")
    expected = outputs(model)
    save_folder(model, tmp_path / "int8")
    for name in ("has_kernel", "is_available"):
        monkeypatch.setattr(f"paliglass.fast.int8.{name}", lambda: False)
    monkeypatch.setattr("paliglass.fast.compiled_model.is_available", lambda: False)
    again = loaded(tmp_path / "int8")
    linears = [m for m in again.modules() if isinstance(m, Int8Linear)]
    assert all(m.matrix is None and m.packed is None for m in linears)
    assert (outputs(again) - expected).norm() < 0.05 * expected.norm()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_panels_are_read_where_they_lie_in_the_file(tmp_path: Path) -> None:
    save_folder(loaded(saved(tmp_path / "model"), "int8"), tmp_path / "int8")
    again = loaded(tmp_path / "int8")
    file = str(tmp_path / "int8" / "model.safetensors")
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [[int(end, 16) for end in m[0].split("-")] for m in maps if m[-1] == file]
    for module in again.modules():
        if isinstance(module, Int8Linear) and module.matrix is not None:
            address = module.matrix.weights.data_ptr()
            assert any(start <= address < end for start, end in spans)


def test_panels_that_are_cut_or_lie_otherwise_are_refused(tmp_path: Path) -> None:
    save_folder(loaded(saved(tmp_path / "model"), "int8"), tmp_path / "int8")
    file, about = tmp_path / "int8" / "model.safetensors", tmp_path / "int8" / "config.json"
    stored, config = load_file(file), json.loads(about.read_text())
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    save_file(stored | {name: stored[name][:-64]}, file)
    with pytest.raises(CheckpointError, match=r"up_proj.weight has shape"):
        loaded(tmp_path / "int8")
    save_file(stored, file)
    config["quantization_config"]["layout"] = "tiles of 32 rows"
    about.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="only those that `paliglass convert --quantize`"):
        loaded(tmp_path / "int8")


def test_an_output_layer_that_is_not_the_embedding_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    table = tensors["language_model.model.embed_tokens.weight"]
    tensors["language_model.lm_head.weight"] = table.clone()
    save_file(tensors, folder / "model.safetensors")
    loaded(folder, "int8")
    tensors["language_model.lm_head.weight"] = -table
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="output layer is its embedding"):
        loaded(folder, "int8")


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    with pytest.raises(PaliglassError, match="quantize 'int3' is unknown: choose int8"):
        loaded(folder, "int3")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(PaliglassError, match="only those that `paliglass convert"):
        load_model(folder)


def test_plain_modules_cannot_hold_an_int8_folder(tmp_path: Path) -> None:
    save_folder(loaded(saved(tmp_path / "model"), "int8"), tmp_path / "int8")
    with pytest.raises(CheckpointError, match=r"matrices are int8.*paliglass\.load"):
        load_model(tmp_path / "int8")


@pytest.mark.parametrize("name", CONFIGS)
def test_quantizing_while_reading_is_quantizing_afterwards(tmp_path: Path, name: str) -> None:
    folder = saved(tmp_path / "model", name)
    afterwards = load_model(folder, "cpu")
    accelerate(afterwards, "int8")
    assert torch.equal(outputs(loaded(folder, "int8")), outputs(afterwards))
    accelerate(afterwards, "int8")  # which is so already
    assert torch.equal(outputs(loaded(folder, "int8")), outputs(afterwards))


def test_verify_says_that_int8_is_not_transformers(tmp_path: Path) -> None:
    save_folder(loaded(saved(tmp_path / "model"), "int8"), tmp_path / "int8")
    with pytest.raises(CheckpointError, match="verify what it was made from"):
        verify(tmp_path / "int8")
    file = tmp_path / "int8" / "model.safetensors"
    stored = load_file(file)
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    stored[name].flatten()[-1] ^= 1  # one bit, of packed sums or of a weight
    save_file(stored, file)
    with pytest.raises(CheckpointError, match=f"{name}: is not what checksums.json records"):
        verify(tmp_path / "int8")


def test_a_copy_of_a_packed_model_says_the_same(tmp_path: Path) -> None:
    model = loaded(saved(tmp_path / "model"), "int8")
    expected = outputs(model)
    copied = copy.deepcopy(model)
    del model
    assert torch.equal(outputs(copied), expected)


def test_memory_is_counted_in_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paliglass.checkpoints.memory.available_memory", lambda device: 3_500_000)
    sizes = [(3_000_000, 2)]
    require_memory("it", sizes, None, torch.device("cpu"), "int8")
    with pytest.raises(PaliglassError, match="quantize int8 needs"):
        require_memory("it", sizes, None, torch.device("cpu"))


def test_mini_in_int8_detects_as_mini_does() -> None:
    picture = noise_picture()
    small = paliglass.load("mini", device="cpu", quantize="int8")
    layers = [m for m in small.model.modules() if isinstance(m, Int8Linear)]
    assert len(layers) > 20
    boxes = [model.detect(picture, ["dog"]) for model in (small, paliglass.load(device="cpu"))]
    assert len(boxes[0]) == len(boxes[1])
