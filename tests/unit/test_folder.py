"""Folders and .npz files as they come, or are made to come: read, or refused in one line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.edits import edit_json, edit_weights
from tests.tiny import tiny_processor
from torch import Tensor

from paliglass import load, load_hf_model
from paliglass.checkpoints import load_big_vision, save_folder
from paliglass.checkpoints.folder import (
    GENERATION,
    INDEX,
    load_model,
    read_config,
    tensor_sizes,
)
from paliglass.checkpoints.hub import locate
from paliglass.checkpoints.layouts import EMBEDDING, HEAD
from paliglass.checkpoints.processor import load_processor
from paliglass.errors import CheckpointError, PaliglassError

FIXTURE = Path(__file__).parents[1] / "fixtures" / "big_vision" / "pg1_ckpt.npz"
NORM = "language_model.model.norm.weight"


def refusal(read: Callable[[], object]) -> str:
    with pytest.raises(PaliglassError) as error:
        read()
    assert "\n" not in str(error.value)
    return str(error.value)


# Weights


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("key", [NORM, EMBEDDING, "vision_tower.vision_model.post_layernorm.bias"])
def test_one_weight_that_is_no_number_is_named(
    folder: Path, key: str, dtype: torch.dtype | None, value: float
) -> None:
    def spoil(state: dict[str, Tensor]) -> None:
        for name, tensor in state.items():
            state[name] = tensor.to(dtype or tensor.dtype)
        state[key].view(-1)[-1] = value

    edit_weights(folder, spoil)
    for read in (lambda: load(folder, device="cpu"), lambda: load_hf_model(folder, "cpu")):
        message = refusal(read)
        assert key in message
        assert "holds" in message


def test_numbers_beyond_float16_are_not_written(folder: Path, tmp_path: Path) -> None:
    edit_weights(folder, lambda state: state[NORM].fill_(1e6))
    model = load_model(folder, "cpu", "float16")
    message = refusal(lambda: save_folder(model, tmp_path / "half"))
    assert NORM in message
    assert "bfloat16" in message
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


@pytest.mark.parametrize("head", [HEAD, "lm_head.weight"])
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_the_tied_matrix_may_be_there_as_head_alone(
    folder: Path, head: str, quantize: str | None
) -> None:
    """Savers that store a shared tensor once store it under whichever name comes first."""
    sizes = sorted(tensor_sizes(folder))
    expected = load(folder, device="cpu", quantize=quantize).model.state_dict()
    edit_weights(folder, lambda state: state.update({head: state.pop(EMBEDDING)}))
    assert sorted(tensor_sizes(folder)) == sizes
    found = load(folder, device="cpu", quantize=quantize).model.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_both_of_the_tied_matrix_count_once(folder: Path) -> None:
    sizes = sorted(tensor_sizes(folder))
    edit_weights(folder, lambda state: state.update({HEAD: state[EMBEDDING].clone()}))
    assert sorted(tensor_sizes(folder)) == sizes
    load(folder, device="cpu")


@pytest.mark.parametrize(
    ("count", "said"), [(200, "layers, the weights are"), (1_000_000, "at most 256 is read")]
)
def test_layers_that_the_file_has_not_are_not_built(
    folder: Path, monkeypatch: pytest.MonkeyPatch, count: int, said: str
) -> None:
    monkeypatch.setattr(
        "paliglass.checkpoints.folder.assemble", lambda *_a, **_k: pytest.fail("it is built")
    )
    for part in ("text_config", "vision_config"):
        config = json.loads((folder / "config.json").read_text())
        edit_json(folder / "config.json", **{part: config[part] | {"num_hidden_layers": count}})
        assert said in refusal(lambda: load_model(folder, "cpu"))
        edit_json(folder / "config.json", **config)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_unreadable_weights_are_not_called_truncated(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    real = Path.open

    def refuse(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name == name:
            raise OSError(number, os.strerror(number), str(self))
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    message = refusal(lambda: load_model(folder, "cpu"))
    assert message == f"{folder / name}: cannot be read ({os.strerror(number)})"


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "preprocessor_config.json", "model.safetensors"]
)
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert name in refusal(lambda: load(folder, device="cpu"))


def test_the_tokenizer_is_looked_for_before_the_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "tokenizer.json").unlink()
    monkeypatch.setattr(
        "paliglass.checkpoints.folder.read_tensors", lambda _folder: pytest.fail("weights are read")
    )
    assert "there is no tokenizer.json" in refusal(lambda: load_hf_model(folder, "cpu"))


@pytest.mark.parametrize(
    "weight_map",
    [None, [], {"a": 3}, {"a": "../x.safetensors"}, {"a": "/etc/passwd"}, {"a": ""}, {"a": "\0"}],
)
def test_an_index_that_is_none_is_refused(folder: Path, weight_map: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert str(folder) in refusal(lambda: load_model(folder, "cpu"))


# End tokens


@pytest.mark.parametrize(
    ("written", "ends"), [(7, (7,)), ([1, 12], (1, 12)), ([5], (5,)), (None, (1,))]
)
def test_the_end_tokens_of_the_generation_file_are_honoured(
    folder: Path, tmp_path: Path, written: Any, ends: tuple[int, ...]
) -> None:
    edit_json(folder / GENERATION, eos_token_id=written, bos_token_id=2, do_sample=False)
    assert read_config(folder).text_config.eos_token_ids == ends
    model = load_model(folder, "cpu")
    save_folder(model, tmp_path / "again", tiny_processor())
    assert read_config(tmp_path / "again").text_config.eos_token_ids == ends


@pytest.mark.parametrize("written", ["1", [], [1, "2"], [1, None], -1, 10**9, True, 1.0, {"a": 1}])
def test_end_tokens_that_are_none_are_refused(folder: Path, written: Any) -> None:
    edit_json(folder / GENERATION, eos_token_id=written)
    assert f"{GENERATION}: eos_token_id is" in refusal(lambda: read_config(folder))


# Pictures' settings


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_std", [0, 0, 0]),
        ("image_std", [0.5, 0.5, 0]),
        ("image_std", [0.5, -0.5, 0.5]),
        ("image_std", [1e-300, 1, 1]),
        ("image_std", [True, True, True]),
        ("image_mean", [1e39, 0, 0]),
        ("image_mean", ["0.5"] * 3),
        ("image_mean", [0.5, 0.5]),
        ("image_mean", None),
        ("rescale_factor", "1/255"),
        ("rescale_factor", [1]),
        ("rescale_factor", None),
        ("rescale_factor", True),
        ("resample", True),
        ("resample", [3]),
        ("resample", None),
        ("size", 3),
        ("size", None),
        ("do_resize", "yes"),
    ],
)
def test_settings_that_would_spoil_every_picture_are_named(
    folder: Path, key: str, value: Any
) -> None:
    edit_json(folder / "preprocessor_config.json", **{key: value})
    config = read_config(folder)
    assert f"preprocessor_config.json: {key} is" in refusal(lambda: load_processor(folder, config))


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999"])
def test_settings_that_are_no_numbers_are_refused(folder: Path, value: str) -> None:
    path = folder / "preprocessor_config.json"
    path.write_text(f'{{"image_mean": [0.5, 0.5, {value}]}}')
    config = read_config(folder)
    assert "is no number" in refusal(lambda: load_processor(folder, config))


@pytest.mark.parametrize("value", [[], 3, "a", None])
def test_an_image_processor_that_is_none_is_refused(folder: Path, value: Any) -> None:
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": value}))
    config = read_config(folder)
    assert "image_processor is" in refusal(lambda: load_processor(folder, config))
    (folder / "processor_config.json").write_text(json.dumps([value]))
    assert "is not a JSON object" in refusal(lambda: load_processor(folder, config))


# Places


@pytest.mark.parametrize("named", ["big.npz", "big.npz.part0", "big.npz.part10"])
def test_an_npz_in_parts_is_told_how_to_join(tmp_path: Path, named: str) -> None:
    for number in range(11):
        (tmp_path / f"big.npz.part{number}").touch()
    message = refusal(lambda: locate(tmp_path / named))
    order = " ".join(f"big.npz.part{number}" for number in range(11))
    assert message.endswith(f"comes in 11 parts; join them: cat {order} > big.npz")
    (tmp_path / "big.npz").touch()
    assert locate(tmp_path / "big.npz") == tmp_path / "big.npz"


@pytest.mark.parametrize("name", ["nano", "a\0b", "x" * 5000, "\ud800", "../no", ""])
def test_a_model_that_is_not_there_is_one_line(name: str, tmp_path: Path) -> None:
    if name:
        assert len(refusal(lambda: locate(name))) < 6000
        assert refusal(lambda: load(name))


def test_where_a_model_lies_is_known_without_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys\n"
        "from paliglass.checkpoints.hub import locate\n"
        "from paliglass.files import replacing, read_json\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# big_vision .npz


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with np.load(FIXTURE) as file:
        return {key: file[key] for key in file.files}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("as_void", [False, True])
def test_an_array_with_what_is_no_number_is_named(
    tmp_path: Path, arrays: dict[str, np.ndarray], value: float, as_void: bool
) -> None:
    key = "params/llm/layers/mlp/linear"
    array = arrays[key].copy()
    array[-1, -1, -1] = value
    if as_void:
        array = torch.from_numpy(array).bfloat16().view(torch.int16).numpy().view("V2")
    np.savez(tmp_path / "a.npz", **(arrays | {key: array}))
    message = refusal(
        lambda: load_big_vision(tmp_path / "a.npz", device="cpu", image_token_index=512)
    )
    assert "llm/layers/mlp/linear holds" in message


def member(shape: tuple[int, ...], data: bytes = b"") -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data


@pytest.mark.parametrize("shape", [(2**40,), (2**31, 2**31), (-1, 5), (3,)])
def test_a_shape_beyond_its_bytes_is_refused_before_memory_is_taken(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("params/llm/final_norm/scale.npy", member(shape, bytes(8)))
    assert "a.npz: is not a big_vision" in refusal(
        lambda: load_big_vision(tmp_path / "a.npz", device="cpu")
    )


def test_a_million_layers_of_an_npz_are_not_built(
    tmp_path: Path, arrays: dict[str, np.ndarray]
) -> None:
    key = "params/img/Transformer/encoderblock/MultiHeadDotProductAttention_0/query/kernel"
    np.savez_compressed(
        tmp_path / "a.npz", **(arrays | {key: np.zeros((1_000_000, 1, 1, 1), np.int8)})
    )
    assert "claims to have 1000000 layers" in refusal(
        lambda: load_big_vision(tmp_path / "a.npz", device="cpu")
    )


def test_an_unreadable_npz_is_not_called_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(FIXTURE, tmp_path / "a.npz")

    def refuse(self: Path, *_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match=r"cannot be read \(Permission denied\)"):
        load_big_vision(tmp_path / "a.npz", device="cpu")
