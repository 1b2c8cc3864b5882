"""LoRA adapters (arXiv 2106.09685) in peft's format: W becomes W + scale · B·A, once, at loading.

    adapter_config.json         r, lora_alpha, …
    adapter_model.safetensors   base_model.model.<transformers' module>.lora_A.weight (r × in), …

A merged model runs as fast as it did before, and needs no peft.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from paliglass.checkpoints.files import read_json
from paliglass.checkpoints.layouts import EMBEDDING, HEAD, module_name
from paliglass.errors import CheckpointError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."

# What would make a merge wrong if it were passed over: the setting, and the value that is none.
_UNSUPPORTED: dict[str, tuple[Any, Any]] = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layer_replication": (None, []),
    "lora_bias": (False, None),
    "trainable_token_indices": (None, []),
    "target_parameters": (None, []),
}


def with_adapter(
    tensors: Iterable[tuple[str, str, Tensor]], folder: Path, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, str, Tensor]]:
    """A checkpoint's (our name, the file's name, tensor) triples, an adapter's updates added.

    Sums are made in float32 and rounded once, to `dtype` or the tensor's own.

    Raises CheckpointError where the folder holds no LoRA adapter of plain linear layers, or one of
    another model: a layer that is not there, or of another shape.
    """
    where = folder / WEIGHTS
    _, scale, pairs = read_adapter(folder)
    for name, key, weight in tensors:
        layer = name.removesuffix(".weight")
        is_linear = weight.ndim == 2 and name not in (EMBEDDING, HEAD)
        parts = pairs.pop(layer, None) if is_linear else None
        if parts is None:
            yield name, key, weight
            continue
        if parts.keys() != {"lora_A", "lora_B"}:
            raise CheckpointError(
                f"{where}: {layer} has {', '.join(sorted(parts))}; it needs lora_A and lora_B"
            )
        down, up = parts["lora_A"].float(), parts["lora_B"].float()
        if (up.shape[0], down.shape[1]) != tuple(weight.shape) or len(down) != up.shape[1]:
            raise CheckpointError(
                f"{where}: {layer} is {list(weight.shape)} in this model, the adapter's "
                f"lora_B and lora_A are {list(up.shape)} and {list(down.shape)}"
            )
        if not weight.is_floating_point():
            raise CheckpointError(
                f"{where}: {key} is {weight.dtype} in this model; merge the adapter into the "
                "checkpoint that was quantised (`paliglass convert --adapter … --quantize int8`)"
            )
        merged = weight.float() + scale * (up @ down)
        yield name, key, merged.to(dtype or weight.dtype)
    if pairs:
        raise CheckpointError(f"{where}: {min(pairs)} is no linear layer inside this model")


class Adapter(NamedTuple):
    """peft's settings, the scale of the updates, and by layer (our name) its lora_A and lora_B."""

    settings: dict[str, Any]
    scale: float
    layers: dict[str, dict[str, Tensor]]


def read_adapter(folder: Path) -> Adapter:
    """What a folder holds. Raises CheckpointError for all but LoRA of plain linear layers."""
    settings = read_json(folder / CONFIG)
    scale = _scale(settings, folder / CONFIG)
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in _read(folder / WEIGHTS).items():
        layer, _, part = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        pairs.setdefault(module_name(layer), {})[part] = tensor
    return Adapter(settings, scale, pairs)


def _scale(config: dict[str, Any], path: Path) -> float:
    if config.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{path}: peft_type is {config.get('peft_type')!r}; only LORA adapters are read"
        )
    for name, nothing in _UNSUPPORTED.items():
        if config.get(name, nothing[0]) not in nothing:
            raise CheckpointError(
                f"{path}: {name} is {config[name]!r}, which is not supported; merge the adapter "
                "with peft (merge_and_unload) and load the result"
            )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise CheckpointError(f"{path}: r is {rank!r} and lora_alpha {alpha!r}; they are numbers")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path.parent}: there is no {path.name}")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: is truncated or not safetensors ({error})") from None
    if not all(tensor.is_floating_point() for tensor in tensors.values()):
        raise CheckpointError(f"{path}: holds numbers that are no floats: it is no LoRA adapter")
    return tensors
