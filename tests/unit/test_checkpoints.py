"""A checkpoint is loaded whole, or refused with a line that names key, file and expectation."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.edits import edit_json, edit_weights
from tests.tiny import (
    GEMMA2,
    tiny_model,
    tiny_processor,
    tiny_tokenizer,
    worded_config,
)
from torch import Tensor

from paliglass import PRESETS, load, load_hf_model
from paliglass.checkpoints import load_big_vision, save_folder, saving
from paliglass.checkpoints import memory as memory_module
from paliglass.checkpoints.assembly import parse_device, parse_dtype
from paliglass.checkpoints.config_json import paligemma_to_json
from paliglass.checkpoints.folder import INDEX, load_model
from paliglass.checkpoints.layouts import module_name
from paliglass.errors import CheckpointError, PaliglassError
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.processing_paligemma import PaliGemmaProcessor

FIXTURE = Path(__file__).parents[1] / "fixtures" / "big_vision" / "pg1_ckpt.npz"
NORM = "language_model.model.norm.weight"


def refusal(source: Path, **options: Any) -> str:
    """The one line with which loading is refused."""
    with pytest.raises(PaliglassError) as error:
        load(source, device="cpu", **options)
    message = str(error.value)
    assert "\n" not in message
    assert str(source) in message or source.name in message
    return message


def test_a_good_folder_loads_with_its_tokenizer(folder: Path) -> None:
    model, tokenizer = load_hf_model(folder, "cpu")
    assert tokenizer.token_to_id("<image>") == model.config.image_token_index
    assert not model.training
    assert load(folder, device="cpu").model.config == model.config


def test_loading_gives_back_every_number(folder: Path) -> None:
    loaded, original = load_model(folder, "cpu"), tiny_model(worded_config())
    for name, tensor in original.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_head_and_embedding_are_one_matrix(folder: Path) -> None:
    model = load_model(folder, "cpu")
    embedding = model.language_model.model.embed_tokens.weight
    assert model.language_model.lm_head.weight is embedding
    assert "language_model.lm_head.weight" not in load_file(folder / "model.safetensors")


def test_missing_weights_are_named(folder: Path) -> None:
    edit_weights(folder, lambda state: state.pop(NORM))
    assert f"lacks {NORM}" in refusal(folder)


def test_surplus_weights_are_named(folder: Path) -> None:
    edit_weights(folder, lambda state: state.update(extra=torch.zeros(1)))
    assert "extra" in refusal(folder)


def test_paligemma_2_is_never_loaded_as_paligemma(folder: Path, tmp_path: Path) -> None:
    """Gemma 2's further norms left aside, the model would print newlines and nothing else."""
    save_folder(tiny_model(worded_config(**GEMMA2)), tmp_path / "second")
    shutil.copy(folder / "tokenizer.json", tmp_path / "second")
    config = paligemma_to_json(worded_config(num_key_value_heads=2))
    (tmp_path / "second" / "config.json").write_text(json.dumps(config))
    assert "feedforward_layernorm" in refusal(tmp_path / "second")
    text = json.loads((folder / "config.json").read_text())["text_config"]
    gemma2 = {k: v for k, v in text.items() if k != "hidden_act"} | {"model_type": "gemma2"}
    edit_json(folder / "config.json", text_config=gemma2)
    assert "lacks language_model.model.layers.0.post_feedforward_layernorm" in refusal(folder)


def test_wrong_shapes_are_named_with_both_shapes(folder: Path) -> None:
    edit_weights(folder, lambda state: state.update({NORM: torch.zeros(7)}))
    message = refusal(folder)
    assert NORM in message
    assert "[7]" in message
    assert "[48]" in message


def test_an_untied_head_is_refused(folder: Path) -> None:
    def untie(state: dict[str, Tensor]) -> None:
        head = state["language_model.model.embed_tokens.weight"].clone()
        head[3, 3] += 1
        state["language_model.lm_head.weight"] = head

    edit_weights(folder, untie)
    assert "lm_head.weight differs" in refusal(folder)


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.999])
def test_a_truncated_file_is_refused(folder: Path, kept: float) -> None:
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(kept if kept >= 1 else kept * len(data))])
    assert "model.safetensors: is truncated" in refusal(folder)


@pytest.fixture
def sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(saving, "MAX_SHARD_BYTES", 100_000)
    save_folder(tiny_model(worded_config()), tmp_path / "shards", tiny_processor())
    return tmp_path / "shards"


def test_shards_are_whole(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 2
    assert all((sharded / file).stat().st_size for file in files)
    load_model(sharded, "cpu")


def test_a_missing_shard_is_named(sharded: Path) -> None:
    victim = sorted(sharded.glob("model-*.safetensors"))[1]
    victim.unlink()
    assert victim.name in refusal(sharded)


def test_a_truncated_shard_is_named(sharded: Path) -> None:
    victim = sorted(sharded.glob("model-*.safetensors"))[1]
    victim.write_bytes(victim.read_bytes()[:-100])
    assert victim.name in refusal(sharded)


def test_an_index_may_not_lead_out_of_its_folder(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"][NORM] = "../model.safetensors"
    (sharded / INDEX).write_text(json.dumps(index))
    assert "outside" in refusal(sharded)


class Trap:
    """What would run if anyone unpickled it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was opened",))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", "weights.pkl"])
def test_pickles_are_refused_unopened(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Trap()))
    message = refusal(folder)
    assert f"{name} is a pickle" in message


def test_pickled_arrays_in_an_npz_are_refused_unopened(tmp_path: Path) -> None:
    np.savez(tmp_path / "trap.npz", embedding=np.array([Trap()], dtype=object))
    with pytest.raises(CheckpointError, match=r"trap\.npz: is not"):
        load_big_vision(tmp_path / "trap.npz", device="cpu")
    with np.load(FIXTURE) as file:
        arrays = {key: file[key] for key in file.files}
    arrays["params/llm/final_norm/scale"] = np.array([Trap()], dtype=object)
    np.savez(tmp_path / "half.npz", **arrays)
    with pytest.raises(CheckpointError, match=r"half\.npz"):
        load_big_vision(tmp_path / "half.npz", device="cpu")


def test_a_wrong_model_type_is_refused(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="llava")
    message = refusal(folder)
    assert "config.json" in message
    assert "'llava'" in message


def test_an_unknown_key_is_refused(folder: Path) -> None:
    edit_json(folder / "config.json", num_experts=8)
    assert "'num_experts'" in refusal(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_type": "paligemma"}'])
def test_a_broken_config_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert "config.json" in refusal(folder)


def test_wrongly_typed_sizes_are_refused(folder: Path) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    edit_json(folder / "config.json", text_config=text | {"hidden_size": "48"})
    assert "hidden_size" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"there is no {name}" in refusal(folder)


def test_a_broken_tokenizer_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    assert "tokenizer.json: is not a tokenizer" in refusal(folder)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "nothing")


def test_a_model_too_large_for_the_memory_is_refused_before_loading(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values())
    monkeypatch.setattr(memory_module, "available_memory", lambda _device: int(weights * 0.7))
    monkeypatch.setattr(
        "paliglass.checkpoints.folder.assemble",
        lambda *_args: pytest.fail("loading has begun"),
    )
    message = refusal(folder)
    assert f"the weights need {memory_module.gigabytes(weights)}, cpu has" in message
    assert f"dtype bfloat16 needs {memory_module.gigabytes(weights / 2)}," in message


def test_a_smaller_dtype_fits_where_the_files_does_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = (folder / "model.safetensors").stat().st_size
    monkeypatch.setattr(memory_module, "available_memory", lambda _device: int(weights * 0.7))
    assert load(folder, device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16


def test_saving_overwrites_nothing(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="exists already"):
        save_folder(tiny_model(seed=1), folder)
    assert (folder / "model.safetensors").read_bytes() == before


def test_saving_leaves_nothing_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_args: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(saving, "write_json", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_folder(tiny_model(), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_unknown_keys_keep_their_name() -> None:
    assert module_name("something.else") == "something.else"


@pytest.mark.parametrize("name", ["float31", "int4"])
def test_an_unknown_dtype_is_refused_with_the_choices(name: str) -> None:
    with pytest.raises(PaliglassError, match=r"float32.*bfloat16"):
        parse_dtype(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_an_absent_device_is_refused() -> None:
    with pytest.raises(PaliglassError, match="cuda"):
        parse_device("cuda")
    with pytest.raises(PaliglassError, match="unknown"):
        parse_device("tpu9000")


# big_vision .npz


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with np.load(FIXTURE) as file:
        return {key: file[key] for key in file.files}


def from_arrays(path: Path, arrays: dict[str, np.ndarray]) -> PaliGemmaForConditionalGeneration:
    np.savez(path, **arrays)
    return load_big_vision(path, device="cpu", image_token_index=512)


def test_the_params_prefix_is_optional(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    assert all(key.startswith("params/") for key in arrays)
    bare = {key.removeprefix("params/"): array for key, array in arrays.items()}
    one, two = from_arrays(tmp_path / "a.npz", arrays), from_arrays(tmp_path / "b.npz", bare)
    for name, tensor in one.state_dict().items():
        assert torch.equal(two.state_dict()[name], tensor), name


def test_bfloat16_comes_as_two_void_bytes(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    expected = from_arrays(tmp_path / "a.npz", arrays).bfloat16().state_dict()
    void = {
        key: torch.from_numpy(array).bfloat16().view(torch.int16).numpy().view("V2")
        for key, array in arrays.items()
    }
    model = from_arrays(tmp_path / "b.npz", void)
    assert model.dtype == torch.bfloat16
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("key", ["llm/final_norm/scale", "img/head/bias", "img/embedding/kernel"])
def test_a_missing_array_is_named(tmp_path: Path, arrays: dict[str, np.ndarray], key: str) -> None:
    rest = {name: array for name, array in arrays.items() if name != f"params/{key}"}
    with pytest.raises(CheckpointError, match=key):
        from_arrays(tmp_path / "a.npz", rest)


def test_a_surplus_array_is_named(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    with pytest.raises(CheckpointError, match="llm/extra"):
        from_arrays(tmp_path / "a.npz", arrays | {"params/llm/extra": np.zeros(3)})


@pytest.mark.parametrize("kept", [0, 100, 100_000])
def test_a_truncated_npz_is_refused(tmp_path: Path, kept: int) -> None:
    (tmp_path / "half.npz").write_bytes(FIXTURE.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"half\.npz: is not a big_vision \.npz"):
        load_big_vision(tmp_path / "half.npz", device="cpu")


def test_a_single_array_is_no_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    with pytest.raises(CheckpointError, match="is not a big_vision"):
        load_big_vision(tmp_path / "array.npz", device="cpu")


def test_an_unknown_setting_of_an_npz_is_refused() -> None:
    with pytest.raises(PaliglassError, match="num_experts"):
        load_big_vision(FIXTURE, device="cpu", num_experts=8)


def test_an_npz_needs_a_tokenizer(tmp_path: Path) -> None:
    shutil.copy(FIXTURE, tmp_path)
    assert "tokenizer.json" in refusal(tmp_path / FIXTURE.name)


def test_a_folder_has_its_own_tokenizer(folder: Path) -> None:
    assert "has its own tokenizer.json" in refusal(folder, tokenizer=folder)


def test_settings_of_a_folder_can_be_overridden(folder: Path) -> None:
    model = load(folder, device="cpu", rope_theta=5.0).model
    assert model.config.text_config.rope_theta == 5.0
    with pytest.raises(PaliglassError, match="num_experts"):
        load(folder, device="cpu", num_experts=8)


def edit_pictures(folder: Path, **settings: Any) -> None:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_the_folders_picture_settings_decide(folder: Path) -> None:
    edit_pictures(folder, image_mean=[0, 0, 0], image_std=[1, 1, 1], resample=0)
    picture = Image.new("RGB", (2, 2), "black")
    picture.putpixel((1, 1), (255, 255, 255))
    pixels = load(folder, device="cpu").processor.pixels(picture)
    assert set(pixels.unique().tolist()) == {0.0, 1.0}  # nearest neighbour makes no greys


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", {"height": 448, "width": 448}),
        ("size", {"shortest_edge": 56}),
        ("do_resize", False),
        ("do_normalize", False),
        ("rescale_factor", 1.0),
        ("resample", 9),
        ("image_mean", 0.5),
    ],
)
def test_picture_settings_the_model_does_not_have_are_refused(
    folder: Path, key: str, value: Any
) -> None:
    edit_pictures(folder, **{key: value})
    assert f"preprocessor_config.json: {key} is {value!r}" in refusal(folder)


def test_a_tokenizer_whose_image_token_is_another_is_refused(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<another>"])
    PaliGemmaProcessor(tokenizer, 16, 56).tokenizer.save(str(folder / "tokenizer.json"))
    assert "image_token_index" in refusal(folder)


def test_npz_to_folder_and_back_keeps_every_number(tmp_path: Path) -> None:
    model = load_big_vision(FIXTURE, device="cpu", image_token_index=512)
    save_folder(model, tmp_path / "model")
    again = load_model(tmp_path / "model", "cpu")
    assert again.config == dataclasses.replace(PRESETS["tiny"], **vars(model.config))
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
