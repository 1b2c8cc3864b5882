"""A folder in transformers' layout → model and tokenizer; a hub id is fetched into one first."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor

from paliglass.checkpoints.adapters import with_adapter
from paliglass.checkpoints.assembly import assemble, parse_device, parse_dtype
from paliglass.checkpoints.files import read_json
from paliglass.checkpoints.hub import locate
from paliglass.checkpoints.layouts import HEAD, module_name
from paliglass.checkpoints.memory import require_memory
from paliglass.config import PaliGemmaConfig
from paliglass.errors import CheckpointError, ConfigError
from paliglass.fast.quantized import parse_quantize, take_config
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration

INDEX = "model.safetensors.index.json"
LARGE = 1 << 20  # numbers of a tensor that is worth a mapping of its own
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def load_hf_model(
    model_path: str | Path,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    **overrides: Any,
) -> tuple[PaliGemmaForConditionalGeneration, Tokenizer]:
    """Model and tokenizer of a transformers folder, of a hub id, or of "mini".

    Strict: a missing, surplus or wrongly shaped tensor is an error that names it. The weights are
    memory-mapped; they take memory as they are touched, about the file's size in all.

    Args:
        model_path: the folder (one safetensors file or shards with their index), or a hub id.
        device: "auto" (cuda, mps, cpu), or one of them.
        dtype: None or "auto" keeps the file's; or a dtype or its name to convert to.
        overrides: settings to change in config.json's, by name (see `PaliGemmaConfig.replace`).

    Raises CheckpointError, ConfigError: what is wrong, where, and what to do.
    """
    folder = locate(model_path)
    return load_model(folder, device, dtype, **overrides), load_tokenizer(folder)


def load_model(
    folder: Path,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    quantize: str | None = None,
    pack: bool = False,
    adapter: str | Path | None = None,
    **overrides: Any,
) -> PaliGemmaForConditionalGeneration:
    """The model alone; see `load_hf_model`.

    quantize: "int8" makes its matrices int8; None leaves them as the folder has them. pack: see
    `assemble`. adapter: a folder or hub id, see `with_adapter`.
    """
    config = read_config(folder).replace(**overrides)
    target, wanted = parse_device(device), parse_dtype(dtype)
    int8 = parse_quantize(quantize) or is_int8(folder)
    require_memory(folder.name, tensor_sizes(folder), torch.int8 if int8 else wanted, target)
    tensors = read_tensors(folder, one_by_one=int8 or pack)
    if adapter is not None:
        tensors = with_adapter(tensors, locate(adapter), wanted)
    return assemble(config, tensors, str(folder), wanted, target, int8, pack)


def read_config(folder: Path) -> PaliGemmaConfig:
    """config.json, checked."""
    path = folder / "config.json"
    data = read_json(path)
    try:
        take_config(data)
        return PaliGemmaConfig.from_dict(data)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def is_int8(folder: Path) -> bool:
    """Whether a folder's matrices are int8."""
    return take_config(read_json(folder / "config.json"))


def load_tokenizer(folder: Path) -> Tokenizer:
    """A folder's tokenizer.json, or the file itself."""
    path = folder / "tokenizer.json" if folder.is_dir() else folder
    if not path.is_file():
        raise CheckpointError(
            f"{path.parent}: there is no {path.name} (a sentencepiece tokenizer.model alone is not "
            "read; transformers' AutoTokenizer.save_pretrained writes the other)"
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises bare Exceptions
        raise CheckpointError(f"{path}: is not a tokenizer ({error})") from None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, all present; pickles are refused, never opened."""
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(
            isinstance(v, str) for v in weight_map.values()
        ):
            raise CheckpointError(f"{folder / INDEX}: weight_map does not name files")
        files = [folder / name for name in sorted(set(weight_map.values()))]
        if any(file.parent != folder for file in files):
            raise CheckpointError(f"{folder / INDEX}: names files outside its folder")
    else:
        files = [folder / "model.safetensors"]
    absent = [file.name for file in files if not file.is_file()]
    pickles = [file.name for file in files if file.suffix in PICKLES]
    if not absent and not pickles:
        return files
    pickles += sorted(p.name for p in folder.glob("*") if p.suffix in PICKLES)
    if pickles:
        raise CheckpointError(
            f"{folder}: {pickles[0]} is a pickle, which can run code when opened; paliglass reads "
            "safetensors only (transformers' save_pretrained writes them)"
        )
    raise CheckpointError(f"{folder}: there is no {', '.join(absent)}")


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file}: is truncated or not safetensors ({error}); copy or download it again"
        ) from None


def tensor_sizes(folder: Path) -> list[tuple[int, int]]:
    """(how many numbers, bytes of each) of every tensor, from the headers; the tied head not."""
    sizes = []
    for file in weight_files(folder):
        with _open(file) as shard:
            for key in shard.keys():
                if module_name(key) != HEAD:
                    part = shard.get_slice(key)
                    bits = re.search(r"\d+", part.get_dtype())  # F32, BF16, I8; BOOL has none
                    stored = int(bits[0]) // 8 if bits else 1
                    sizes.append((math.prod(part.get_shape()), stored))
    return sizes


def read_tensors(folder: Path, one_by_one: bool = False) -> Iterator[tuple[str, str, Tensor]]:
    """(our name, the file's name, memory-mapped tensor) for every tensor of every shard.

    one_by_one: each large tensor has a mapping of its own, which goes when it goes, and the largest
    comes first. Who keeps none of them then never has more than one in memory.
    """
    for file in weight_files(folder):
        with _open(file) as shard:
            sizes = {key: math.prod(shard.get_slice(key).get_shape()) for key in shard.keys()}
            large = [key for key in sizes if one_by_one and sizes[key] >= LARGE]
            for key in sorted(large, key=lambda key: -sizes[key]):
                with _open(file) as own:
                    yield module_name(key), key, own.get_tensor(key)
            for key in (key for key in sizes if key not in large):
                yield module_name(key), key, shard.get_tensor(key)
