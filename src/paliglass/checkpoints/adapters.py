"""LoRA adapters (arXiv 2106.09685) in peft's format: W becomes W + scale · B·A, once, at loading.

    adapter_config.json         r, lora_alpha, …
    adapter_model.safetensors   base_model.model.<transformers' module>.lora_A.weight (r × in), …

A merged model runs as fast as it did before, and needs no peft. What would make the sum another
than peft's is refused by name: the other kinds of adapters (DoRA …), those that start from a
changed base (PiSSA …), and files that lack a layer which their configuration names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from paliglass.checkpoints.hub import locate
from paliglass.checkpoints.layouts import EMBEDDING, HEAD, module_name, transformers_name
from paliglass.errors import CheckpointError
from paliglass.files import read_json
from paliglass.tensors import is_finite, open_tensors, read_tensor

__all__ = [
    "CONFIG",
    "PREFIX",
    "WEIGHTS",
    "Adapter",
    "base_model",
    "is_adapter",
    "read_adapter",
    "with_adapter",
    "with_base",
]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."

# Settings that change nothing in B·A, or say where and how it was trained.
_HARMLESS = frozenset(
    """
    auto_mapping base_model_name_or_path corda_config ensure_weight_tying eva_config exclude_modules
    inference_mode init_lora_weights layers_pattern layers_to_transform loftq_config lora_alpha
    lora_dropout lora_ga_config megatron_config megatron_core peft_type peft_version
    qalora_group_size r revision runtime_config target_modules task_type use_rslora velora_config
    """.split()
)
# How A and B began, where the base stays what it was; peft's others take a part out of it.
_STARTS = ("gaussian", "eva", "mica", "orthogonal")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").exists()


def base_model(folder: Path) -> str:
    """The folder or hub id of the model that an adapter is for.

    Raises CheckpointError where the adapter does not tell.
    """
    path = folder / CONFIG
    name = read_json(path).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise CheckpointError(
            f"{path}: base_model_name_or_path is {name!r}; name the model that the adapter is for, "
            "and this folder as its adapter"
        )
    return name


def with_base(model: Path, adapter: str | Path | None = None) -> tuple[Path, str | Path | None]:
    """(model, adapter) of what was named as a model: an adapter's folder stands for both.

    Raises CheckpointError where the adapter does not tell its base, where that is not there, and
    for an adapter of an adapter.
    """
    if not is_adapter(model):
        return model, adapter
    base = base_model(model)
    try:
        folder = locate(base)
    except CheckpointError as error:
        raise CheckpointError(f"{model}: is an adapter of {base}; {error}") from None
    if adapter is not None or is_adapter(folder):
        raise CheckpointError(f"{model}: is an adapter itself; merge one first (convert --adapter)")
    return folder, model


def with_adapter(
    tensors: Iterable[tuple[str, str, Tensor]], folder: Path, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, str, Tensor]]:
    """A checkpoint's (our name, the file's name, tensor) triples, an adapter's updates added.

    Sums are made in float32 and rounded once, to `dtype` or the tensor's own.

    Raises CheckpointError where the folder holds no LoRA adapter of plain linear layers, or one of
    another model: a layer that is not there, or of another shape; or where its configuration names
    other layers than it has.
    """
    path, where = folder / CONFIG, folder / WEIGHTS
    config, scale, pairs = read_adapter(folder)
    is_named = _named_layers(config, path)
    # Expressions may be written for names of other versions; lists of endings hold for all.
    lists_layers = isinstance(config.get("target_modules"), list) and not isinstance(
        config.get("exclude_modules"), str
    )
    lacking = [] if HEAD.removesuffix(".weight") in pairs or not is_named(HEAD) else [HEAD]
    for name, key, weight in tensors:
        layer = name.removesuffix(".weight")
        is_linear = weight.ndim == 2 and name not in (EMBEDDING, HEAD)
        parts = pairs.pop(layer, None) if is_linear else None
        if parts is None:
            if weight.ndim > 1 and name != HEAD and layer not in pairs and is_named(name):
                lacking.append(layer)
            yield name, key, weight
            continue
        if not weight.is_floating_point():
            raise CheckpointError(
                f"{where}: {key} is {weight.dtype} in this model; merge the adapter into the "
                "checkpoint that was quantised (`paliglass convert --adapter … --quantize …`)"
            )
        if lists_layers and not is_named(name):
            raise CheckpointError(
                f"{where}: has {layer}, which target_modules in {CONFIG} does not name, so that "
                "peft would leave it out; mend either"
            )
        update = _product(parts, weight, config["r"], layer, where)
        merged = (weight.float() + scale * update).to(dtype or weight.dtype)
        if not is_finite(merged):
            raise CheckpointError(f"{where}: {layer} overflows {merged.dtype} with the adapter")
        yield name, key, merged
    if pairs:
        raise CheckpointError(f"{where}: {min(pairs)} is no linear layer inside this model")
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise CheckpointError(
            f"{where}: lacks {min(lacking)}{more}, which target_modules in {CONFIG} names"
        )


def _product(
    parts: dict[str, Tensor], weight: Tensor, rank: int, layer: str, where: Path
) -> Tensor:
    """B·A, of the weight's shape."""
    if parts.keys() != {"lora_A", "lora_B"}:
        raise CheckpointError(
            f"{where}: {layer} has {', '.join(sorted(parts))}; it needs lora_A and lora_B"
        )
    down, up = parts["lora_A"].float(), parts["lora_B"].float()
    shape = (*up.shape[:1], *down.shape[1:])
    if down.ndim != 2 or up.ndim != 2 or shape != weight.shape or len(down) != up.shape[1]:
        raise CheckpointError(
            f"{where}: {layer} is {list(weight.shape)} in this model, the adapter's "
            f"lora_B and lora_A are {list(up.shape)} and {list(down.shape)}"
        )
    if len(down) != rank:
        raise CheckpointError(f"{where}: {layer} is of rank {len(down)}, {CONFIG} says r {rank}")
    return up @ down


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
    if not pairs:
        raise CheckpointError(f"{folder / WEIGHTS}: holds no tensors; it was not saved whole")
    return Adapter(settings, scale, pairs)


def _scale(config: dict[str, Any], path: Path) -> float:
    if config.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{path}: peft_type is {config.get('peft_type')!r}; only LORA adapters are read"
        )
    start = config.get("init_lora_weights")
    harmless = {*_HARMLESS, *(["bias"] if config.get("bias") == "none" else [])}
    changes = [name for name in config if name not in harmless and config[name]]
    if not (start is None or isinstance(start, bool) or str(start).lower() in _STARTS):
        changes.insert(0, "init_lora_weights")
    if changes:
        raise CheckpointError(
            f"{path}: {changes[0]} is {config[changes[0]]!r}, which is not supported; merge the "
            "adapter with peft (merge_and_unload) and load the result"
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float):
        raise CheckpointError(f"{path}: r is {rank!r} and lora_alpha {alpha!r}; they are numbers")
    try:
        return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
    except OverflowError:
        raise CheckpointError(f"{path}: lora_alpha or r is too large") from None


def _named_layers(config: dict[str, Any], path: Path) -> Callable[[str], bool]:
    """Whether peft, told so, gives the layer of a weight an adapter; see its `target_modules`."""
    wanted, left_out = config.get("target_modules"), config.get("exclude_modules")
    numbers = config.get("layers_to_transform")
    for key, value in (("target_modules", wanted), ("exclude_modules", left_out)):
        names = value if isinstance(value, list) else [value or ""]
        if not all(isinstance(name, str) for name in names):
            raise CheckpointError(f"{path}: {key} is {value!r}; it is a list of layers' names")
    if wanted in ("all-linear", ["all-linear"]):
        wanted = r".*(_proj|mlp\.fc[12]|projector\.linear)"
    if not all(map(_is_quick, (wanted, left_out))):
        return lambda name: False  # nobody can tell how long that would take
    numbers = [numbers] if isinstance(numbers, int) else numbers

    def is_named(name: str) -> bool:
        ours = name.removesuffix(".weight")
        if numbers and isinstance(wanted, list):
            number = re.search(r"\.(\d+)\.", ours)
            if number is None or int(number[1]) not in numbers:
                return False
        names = ours, transformers_name(ours)
        return any(_matches(wanted, n) for n in names) and not any(
            _matches(left_out, n) for n in names
        )

    return is_named


def _matches(pattern: str | list[str] | None, layer: str) -> bool:
    """A regular expression for the whole name, or a list of names or of their ends."""
    if isinstance(pattern, str):
        return re.fullmatch(pattern, layer) is not None
    return any(layer == end or layer.endswith(f".{end}") for end in pattern or ())


def _is_quick(pattern: object) -> bool:
    """Whether a regular expression is valid, and cannot take time without end to match a name.

    Such have repetitions within repetitions, or many that could share the same letters.
    """
    if not isinstance(pattern, str):
        return True
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    bare = re.sub(r"\\.", "", pattern)
    repeats = sum(map(bare.count, "*+{"))
    return len(pattern) < 1000 and repeats <= 3 and not re.search(r"\)[*+{]", bare)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path.parent}: there is no {path.name}")
    with open_tensors(path) as file:
        tensors = {key: read_tensor(file, key, path) for key in file.keys()}
    if not all(tensor.is_floating_point() for tensor in tensors.values()):
        raise CheckpointError(f"{path}: holds numbers that are no floats: it is no LoRA adapter")
    return tensors
