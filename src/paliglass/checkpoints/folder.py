"""A folder in transformers' layout → model and tokenizer; a hub id is fetched into one first."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from paliglass.checkpoints.adapters import base_model, is_adapter, with_adapter
from paliglass.checkpoints.assembly import Accelerate, Shard, assemble, parse_device, parse_dtype
from paliglass.checkpoints.config_json import paligemma_from_json
from paliglass.checkpoints.hub import locate
from paliglass.checkpoints.layouts import EMBEDDING, HEAD, module_name
from paliglass.checkpoints.memory import require_memory
from paliglass.config import PaliGemmaConfig
from paliglass.errors import CheckpointError, ConfigError
from paliglass.files import read_json, reason, require_readable
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.tensors import open_tensors, read_tensor

__all__ = [
    "GENERATION",
    "INDEX",
    "IN_PANELS",
    "METHODS",
    "QUANTIZATION",
    "load_hf_model",
    "load_model",
    "load_tokenizer",
    "quantization",
    "read_config",
    "read_tensors",
    "require_layers",
    "tensor_names",
    "tensor_sizes",
    "weight_files",
]

INDEX = "model.safetensors.index.json"
GENERATION = "generation_config.json"
QUANTIZATION = "quantization_config"
# What config.json says of quantized matrices: the fewest bits, and what shares a scale.
METHODS: dict[str, dict[str, object]] = {
    "int8": {"quant_method": "paliglass", "bits": 8, "scale": "row"},
    "int4": {"quant_method": "paliglass", "bits": 4, "scale": "32 inputs of a row"},
}
# And how int8 ones lie, where that is not row by row: see `fast.layout`.
IN_PANELS = {"layout": "panels of 64 rows, four columns of each side by side"}
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
    tokenizer = load_tokenizer(folder)  # before the weights, which take longer to read
    return load_model(folder, device, dtype, **overrides), tokenizer


def load_model(
    folder: Path,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    adapter: str | Path | None = None,
    accelerate: Accelerate | None = None,
    quantize: str | None = None,
    shard: Shard | None = None,
    **overrides: Any,
) -> PaliGemmaForConditionalGeneration:
    """The model alone; see `load_hf_model`.

    adapter: a folder or hub id, see `with_adapter`. accelerate, quantize, shard: see `assemble`; a
    quantized folder can be read with the first alone, and not cut.
    """
    config = read_config(folder).replace(**overrides)
    on_device, in_dtype = parse_device(device), parse_dtype(dtype)
    stored = quantization(folder, quantize)
    if stored is not None and accelerate is None:
        raise CheckpointError(
            f"{folder}: its matrices are {stored}, which plain modules cannot hold; load the "
            "checkpoint that it was made from, or this one with paliglass.load(…, fast=True)"
        )
    quantize = quantize or stored
    sizes = tensor_sizes(folder)
    require_layers(folder, [config.text_config, config.vision_config], len(sizes))
    if shard is not None:
        if stored is not None:
            raise CheckpointError(
                f"{folder}: its matrices are {stored}, which several processes cannot share yet; "
                "name the checkpoint that it was made from"
            )
        sizes = [
            (shard.sharing * count // shard.parts, stored_bytes) for count, stored_bytes in sizes
        ]
    require_memory(folder.name, sizes, in_dtype, on_device, quantize)
    if shard is not None:
        shard.meet()  # all have looked what is free before one takes its part of it
    tensors = read_tensors(folder)
    if adapter is not None:
        tensors = with_adapter(tensors, locate(adapter, kind="adapter"), in_dtype)
    is_quantized = stored is not None
    return assemble(
        config, tensors, str(folder), in_dtype, on_device, accelerate, quantize, is_quantized, shard
    )


def require_layers(folder: Path, configs: Sequence[object], num_tensors: int) -> None:
    """Raises CheckpointError where a configuration has more layers than there are tensors.

    Asked before the layers are built: a million of them would fill the memory.
    """
    layers = sum(getattr(config, "num_hidden_layers", 0) for config in configs)
    layers += sum(sum(getattr(config, "depths", ())) for config in configs)
    if layers > num_tensors:
        raise CheckpointError(
            f"{folder}: config.json asks for {layers} layers, the weights are {num_tensors} tensors"
        )


def _read_config_json(folder: Path) -> dict[str, Any]:
    if is_adapter(folder):
        raise CheckpointError(
            f"{folder}: is an adapter of {base_model(folder)}, not a model; name that as the model "
            "and this folder as its adapter"
        )
    return read_json(folder / "config.json")


def read_config(folder: Path) -> PaliGemmaConfig:
    """config.json, checked, with the end tokens of generation_config.json where it has some."""
    path = folder / "config.json"
    data = _read_config_json(folder)
    data.pop(QUANTIZATION, None)  # see `quantization`
    try:
        config = paligemma_from_json(data)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    ends = _end_tokens(folder / GENERATION, config.text_config.vocab_size)
    return config if ends is None else config.replace(eos_token_id=ends)


def _end_tokens(path: Path, vocab_size: int) -> int | tuple[int, ...] | None:
    """What ends an answer, where the file says it: it decides over config.json in transformers."""
    if not path.is_file():
        return None
    found = read_json(path).get("eos_token_id")
    if found is None:
        return None
    ids = found if isinstance(found, list) else [found]
    if not ids or not all(type(i) is int and 0 <= i < vocab_size for i in ids):
        raise CheckpointError(
            f"{path}: eos_token_id is {found!r}; it must be a token's id below {vocab_size}, or a "
            "list of such"
        )
    return ids[0] if len(ids) == 1 else tuple(ids)


def quantization(folder: Path, asked: str | None = None) -> str | None:
    """What a folder's matrices are quantized to, of `METHODS`, or None; as `save_folder` says it.

    Raises CheckpointError for another program's quantization, and where another is asked for.
    """
    path = folder / "config.json"
    found = _read_config_json(folder).get(QUANTIZATION)
    if found is None:
        return None
    known = {name: (about, about | IN_PANELS) for name, about in METHODS.items()}
    method = next((name for name, ways in known.items() if found in ways), None)
    if method is None:
        raise CheckpointError(
            f"{path}: config key {QUANTIZATION!r} is {found!r}; of quantized checkpoints, only "
            "those that `paliglass convert --quantize` writes are read"
        )
    if asked not in (None, method):
        raise CheckpointError(
            f"{folder}: its matrices are {method} already; {asked} has to be made from the "
            "checkpoint that it was made from"
        )
    return method


def load_tokenizer(folder: Path) -> Tokenizer:
    """A folder's tokenizer.json, or the file itself."""
    path = folder / "tokenizer.json" if folder.is_dir() else folder
    if not path.exists():
        raise CheckpointError(
            f"{path.parent}: there is no {path.name} (a sentencepiece tokenizer.model alone is not "
            "read; transformers' AutoTokenizer.save_pretrained writes the other)"
        )
    require_readable(path)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises bare Exceptions
        raise CheckpointError(f"{path}: is not a tokenizer ({reason(error)})") from None


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


def tensor_sizes(folder: Path) -> list[tuple[int, int]]:
    """(how many numbers, bytes of each) of every tensor, from the headers.

    The tied matrix counts once, whether it is there as table, as head or as both.
    """
    sizes = {}
    for file in weight_files(folder):
        with open_tensors(file) as shard:
            for key in shard.keys():
                part = shard.get_slice(key)
                bits = re.search(r"\d+", part.get_dtype())  # F32, BF16, I8; BOOL has none
                stored = int(bits[0]) // 8 if bits else 1
                sizes[module_name(key)] = math.prod(part.get_shape()), stored
    if EMBEDDING in sizes:
        sizes.pop(HEAD, None)
    return list(sizes.values())


def tensor_names(folder: Path) -> set[str]:
    """Our names of all tensors, from the headers."""
    names: set[str] = set()
    for file in weight_files(folder):
        with open_tensors(file) as shard:
            names.update(map(module_name, shard.keys()))
    return names


def read_tensors(folder: Path) -> Iterator[tuple[str, str, Tensor]]:
    """(our name, the file's name, memory-mapped tensor) for every tensor of every shard.

    Raises CheckpointError where a small one (a norm, a bias) holds NaN or an infinity. Large ones
    are not read for that, which would double the time to load 3B: what they break, the loop names.

    Each large tensor has a mapping of its own, which goes when the tensor goes: who keeps none of
    them never has more than one in memory. The largest, the table, comes first in its shard.
    """
    for file in weight_files(folder):
        with open_tensors(file) as shard:
            for key in sorted(shard.keys(), key=lambda key: module_name(key) != EMBEDDING):
                if math.prod(shard.get_slice(key).get_shape()) < LARGE:
                    yield module_name(key), key, read_tensor(shard, key, file)
                else:
                    with open_tensors(file) as own:
                        yield module_name(key), key, read_tensor(own, key, file, check=False)
