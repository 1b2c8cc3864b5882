"""Model and processor → a folder in transformers' layout, written whole or not at all."""

from __future__ import annotations

import glob
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, ModuleType

import torch
from torch import Tensor

from paliglass.checkpoints.config_json import paligemma_to_json
from paliglass.checkpoints.folder import IN_PANELS, INDEX, METHODS, QUANTIZATION
from paliglass.checkpoints.layouts import HEAD
from paliglass.checkpoints.processor import write_processor
from paliglass.errors import CheckpointError
from paliglass.files import write_json
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.processing_paligemma import PaliGemmaProcessor
from paliglass.tensors import save_file

__all__ = [
    "CHECKSUMS",
    "digest",
    "new_folder",
    "quantization_of",
    "refuse_existing",
    "save_folder",
    "write_weights",
]

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:
    fcntl = None

CHECKSUMS = "checksums.json"
MAX_SHARD_BYTES = 5_000_000_000
UNFINISHED = ".unfinished"


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which appears under its name only when the block has ended well.

    Until then it lies beside it, hidden. What a process that was killed has left there of an
    earlier try is removed.

    Raises CheckpointError where something is there already: nothing is overwritten.
    """
    refuse_existing(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    pattern = f".{glob.escape(folder.name[:40])}.*{UNFINISHED}"
    for left in folder.parent.glob(pattern):
        with _locked(left) as is_ours:
            if is_ours:  # whoever made it holds it no longer
                shutil.rmtree(left, ignore_errors=True)
    unfinished = folder.with_name(f".{folder.name[:40]}.{secrets.token_hex(8)}{UNFINISHED}")
    try:
        unfinished.mkdir()  # raises where somebody has put something there
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from None
    try:
        with _locked(unfinished):
            yield unfinished
            os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Whether this process holds the lock of a folder in the block; a dead process holds none."""
    if fcntl is None:  # Windows: nothing is taken for abandoned there
        yield False
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_ours = True
    except OSError:
        is_ours = False
    try:
        yield is_ours
    finally:
        os.close(descriptor)


def refuse_existing(folder: Path) -> None:
    """Raises CheckpointError where there is a file, or a folder that holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: exists already; choose a new folder")


def save_folder(
    model: PaliGemmaForConditionalGeneration,
    folder: str | Path,
    processor: PaliGemmaProcessor | None = None,
    files: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Writes what transformers' `from_pretrained` and `paliglass.load` read.

    config.json, model.safetensors (or shards of up to 5 GB with their index), checksums.json (the
    SHA-256 of every tensor, for `paliglass verify`); with a processor also tokenizer.json and what
    AutoProcessor needs. The tied head is not stored twice. A quantized model is saved so, which
    transformers does not read. `files`, by name, are written beside.
    """
    with new_folder(Path(folder)) as target:
        state = {k: v.detach().contiguous() for k, v in model.state_dict().items() if k != HEAD}
        write_weights(target, state)
        dtype = str(model.dtype).removeprefix("torch.")
        about: dict[str, object] = {**paligemma_to_json(model.config), "dtype": dtype}
        write_json(target / "config.json", about | quantization_of(state.values()))
        if processor is not None:
            write_processor(processor, target)
        for name, content in files.items():
            (target / name).write_bytes(content)


def quantization_of(tensors: Iterable[Tensor]) -> dict[str, object]:
    """What config.json is to say of quantized tensors, to be read by `folder.quantization`."""
    kinds = {(tensor.dtype, tensor.ndim) for tensor in tensors}
    dtypes = {dtype for dtype, _ in kinds}
    if torch.int8 not in dtypes:
        return {}
    about = METHODS["int4" if torch.uint8 in dtypes else "int8"]
    return {QUANTIZATION: about | (IN_PANELS if (torch.int8, 1) in kinds else {})}


def write_weights(target: Path, state: dict[str, Tensor]) -> None:
    """model.safetensors, or shards of up to 5 GB with their index, and checksums.json."""
    shards = _shards(state)
    total = sum(tensor.nbytes for tensor in state.values())
    if len(shards) == 1:
        save_file(state, target / "model.safetensors", {"format": "pt"})
    else:
        weight_map = {}
        for i, names in enumerate(shards, 1):
            file = f"model-{i:05}-of-{len(shards):05}.safetensors"
            save_file({name: state[name] for name in names}, target / file, {"format": "pt"})
            weight_map.update(dict.fromkeys(names, file))
        metadata = {"total_size": total}
        write_json(target / INDEX, {"metadata": metadata, "weight_map": weight_map})
    write_json(target / CHECKSUMS, {name: digest(tensor) for name, tensor in state.items()})


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    return hashlib.sha256(data).hexdigest()


def _shards(state: dict[str, Tensor]) -> list[list[str]]:
    """Names in groups of at most MAX_SHARD_BYTES."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in state.items():
        if shards[-1] and size + tensor.nbytes > MAX_SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards
