"""LoRA adapters (arXiv 2106.09685) in peft's format: W becomes W + scale · B·A, once, at loading.

    adapter_config.json         r, lora_alpha, …
    adapter_model.safetensors   base_model.model.<transformers' module>.lora_A.weight (r × in), …

A merged model runs as fast as it did before, and needs no peft.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from paliglass.checkpoints.folder import read_json
from paliglass.checkpoints.layouts import module_name
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


def merge_adapter(model: nn.Module, folder: Path) -> None:
    """Adds an adapter's updates to the weights of the layers that it names.

    The sum is made in float32 and rounded once, to the layer's dtype.

    Raises CheckpointError where the folder holds no LoRA adapter of plain linear layers, or one of
    another model: a layer that is not there, or of another shape.
    """
    config = read_json(folder / CONFIG)
    scale = _scale(config, folder / CONFIG)
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in _read(folder / WEIGHTS).items():
        layer, _, part = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        pairs.setdefault(module_name(layer), {})[part] = tensor
    modules = dict(model.named_modules())
    where = folder / WEIGHTS
    for layer, parts in pairs.items():
        linear = modules.get(layer)
        if not isinstance(linear, nn.Linear) or layer.endswith("lm_head"):
            raise CheckpointError(f"{where}: {layer} is no linear layer inside this model")
        if parts.keys() != {"lora_A", "lora_B"}:
            raise CheckpointError(
                f"{where}: {layer} has {', '.join(sorted(parts))}; it needs lora_A and lora_B"
            )
        down, up = parts["lora_A"].float(), parts["lora_B"].float()
        if (up.shape[0], down.shape[1]) != tuple(linear.weight.shape) or len(down) != up.shape[1]:
            raise CheckpointError(
                f"{where}: {layer} is {list(linear.weight.shape)} in this model, the adapter's "
                f"lora_B and lora_A are {list(up.shape)} and {list(down.shape)}"
            )
        weight = linear.weight.detach()
        merged = weight.float() + scale * (up @ down).to(weight.device)
        linear.weight = nn.Parameter(merged.to(weight.dtype), requires_grad=False)


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
