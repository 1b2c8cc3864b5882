"""Weights → model, strictly: built without memory, filled tensor by tensor, nothing left over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from paliglass.checkpoints.layouts import EMBEDDING, HEAD
from paliglass.config import PaliGemmaConfig
from paliglass.errors import CheckpointError, PaliglassError
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration

__all__ = [
    "DTYPES",
    "Accelerate",
    "DeviceName",
    "DtypeName",
    "Shard",
    "Tensors",
    "assemble",
    "expected_shapes",
    "fill",
    "num_gpus",
    "parse_device",
    "parse_dtype",
    "require_shape",
    "skeleton",
    "weightless",
]

Tensors = Iterable[tuple[str, str, Tensor]]
"""(our name, the file's name, tensor) of each tensor that a checkpoint holds."""

Accelerate = Callable[[nn.Module, str | None], object]
"""`fast.accelerate`, for who wants it: told of each layer that is filled, then of the model."""

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
DeviceName = Literal["auto", "cpu", "cuda", "mps"]  # "cuda:1" is a device too


class Shard(Protocol):
    """A process's part of a model that several hold: one of so many `parts`.

    sharing: how many of the processes share one memory.
    """

    parts: int
    sharing: int

    def meet(self) -> None:
        """Waits for the other processes."""
        ...

    def __call__(self, model: PaliGemmaForConditionalGeneration, tensors: Tensors) -> Tensors:
        """Leaves a weightless model its part of every module, and cuts the tensors for it."""
        ...


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A dtype or its name; None and "auto" stand for the checkpoint's own."""
    if dtype is None or dtype == "auto":
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise PaliglassError(f"dtype {name!r} is unknown: choose auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def parse_device(device: str | torch.device) -> torch.device:
    """A device or its name; "auto" takes cuda, then mps, then cpu. Absent ones are refused."""
    mps = torch.backends.mps.is_available()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        parsed = torch.device(device)
    except (RuntimeError, TypeError):
        parsed = None
    if parsed is None or parsed.type not in ("cpu", "cuda", "mps"):
        raise PaliglassError(f"device {str(device)!r} is unknown: choose auto, cpu, cuda, mps")
    if parsed.type == "cuda" and (parsed.index or 0) >= torch.cuda.device_count():
        raise PaliglassError(f"device {parsed}: this torch sees no such GPU; cpu always works")
    if parsed.type == "mps" and not mps:
        raise PaliglassError("device mps: this torch sees no Apple GPU; cpu always works")
    return parsed


def num_gpus(device: str, there_are_some: bool) -> int:
    """How many GPUs a model on a device takes, for who hands them out on other machines: 0 or 1."""
    return int(device.startswith("cuda") or (device == "auto" and there_are_some))


class _Uninitialized(TorchFunctionMode):
    """Skips `normal_`, which has nothing to fill on the meta device.

    Its form for that device imports torch's compiler first: a second, half of a cold start.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        return kwargs["tensor"] if function is nn.init.normal_ else function(*args, **kwargs)


def skeleton(config: PaliGemmaConfig) -> PaliGemmaForConditionalGeneration:
    """The model on torch's meta device: every shape, no memory."""
    with weightless():
        return PaliGemmaForConditionalGeneration(config)


@contextmanager
def weightless() -> Iterator[None]:
    """Modules made in this block are on torch's meta device: shapes without numbers."""
    with torch.device("meta"), _Uninitialized():
        yield


def expected_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """What a checkpoint must hold. The tied head is the embedding and is not counted twice."""
    return {name: t.shape for name, t in model.state_dict(keep_vars=True).items() if name != HEAD}


def assemble(
    config: PaliGemmaConfig,
    tensors: Tensors,
    source: str,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    accelerate: Accelerate | None = None,
    quantize: str | None = None,
    is_quantized: bool = False,
    shard: Shard | None = None,
) -> PaliGemmaForConditionalGeneration:
    """Fills a PaliGemma with a checkpoint's tensors, each used once.

    accelerate: what is told of each layer once it is filled, so that of a model that is to be
    quantized one layer at a time is held as it was. quantize: what it is told to do. is_quantized:
    whether the tensors are so already. shard: what leaves of the model a part.

    Raises CheckpointError as `fill` does, and where the output layer is not the embedding.
    """
    model = skeleton(config)
    if shard is not None:
        tensors = shard(model, tensors)
    if accelerate is not None and is_quantized:
        with weightless():
            accelerate(model, quantize)
    head: tuple[str, Tensor] | None = None
    table: Tensor | None = None
    # Of a table that is let go of as soon as it is quantized, some rows are kept to compare.
    rows = slice(None) if quantize is None else slice(None, None, 1009)

    def without_head() -> Iterator[tuple[str, str, Tensor]]:
        nonlocal head, table
        for name, key, tensor in tensors:
            if name == HEAD:
                head = key, tensor
                continue
            if name == EMBEDDING:
                table = tensor if quantize is None else tensor[rows].clone()
            yield name, key, tensor
        if head is not None and table is None:  # the tied matrix, saved under its other name
            yield EMBEDDING, *head

    def told(layer: nn.Module) -> None:
        if accelerate is not None and quantize is not None:
            accelerate(layer, quantize)

    fill(model, without_head(), source, dtype, device, told)
    if head is not None and table is not None and not torch.equal(head[1][rows], table):
        raise CheckpointError(
            f"{source}: lm_head.weight differs from embed_tokens.weight; "
            "PaliGemma's output layer is its embedding (tied weights)"
        )
    if isinstance(model.language_model.model.embed_tokens, nn.Embedding):
        model.tie_weights()
    if accelerate is not None:
        accelerate(model, quantize)
    return model.eval()


def fill(
    model: nn.Module,
    tensors: Tensors,
    source: str,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    told: Callable[[nn.Module], object] = lambda layer: None,
) -> None:
    """Gives a weightless model its parameters and buffers.

    Tensors that already have the dtype and device are taken as they are, so a memory-mapped file
    stays mapped and nothing is copied. Buffers keep the model's dtype. told: is told of each member
    of a list of layers, and of the table, once all of it is there.

    Raises CheckpointError naming what is missing, left over or wrongly shaped (three at most).
    """
    missing = expected_shapes(model)
    parameters = {name for name, _ in model.named_parameters()}
    buffers = {  # quantized modules' stay as they are, BatchNorm's take the model's dtype
        f"{path}.{leaf}": buffer.dtype
        for path, module in model.named_modules()
        if not all(buffer.is_floating_point() for buffer in module.buffers(recurse=False))
        for leaf, buffer in module.named_buffers(recurse=False)
    }
    layers = _Layers(model, missing)
    surplus: list[str] = []
    dtypes: dict[torch.dtype, str] = {}
    for name, key, tensor in tensors:
        if name not in missing:
            surplus.append(key)
            continue
        path, _, leaf = name.rpartition(".")
        # A quantized matrix may come packed; its module says in what shape.
        packed = getattr(model.get_submodule(path), "packed_shapes", {}).get(leaf)
        if packed is None or tensor.shape != packed:
            require_shape(source, key, tensor, missing[name])
        own = buffers.get(name)
        if own is not None and own.is_floating_point and tensor.is_floating_point():
            own = own if tensor.dtype == own else None  # a norm's statistics, as its parameters
        if tensor.dtype != own if own else not tensor.is_floating_point() or tensor.itemsize < 2:
            raise CheckpointError(
                f"{source}: {key} is {tensor.dtype}; of quantised checkpoints, only PaliGemmas "
                "that `paliglass convert --quantize` writes are read"
            )
        if own is None:
            dtypes.setdefault(dtype or tensor.dtype, key)
        del missing[name]
        value = tensor.to(device=device, dtype=own or dtype or tensor.dtype)
        setattr(
            model.get_submodule(path), leaf, nn.Parameter(value) if name in parameters else value
        )
        del tensor, value
        layer = layers.complete(name)
        if layer is not None:
            told(layer)
    problems = [("lacks", sorted(missing)), ("holds, beyond the model,", sorted(surplus))]
    for what, names in problems:
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise CheckpointError(f"{source}: {what} {', '.join(names[:3])}{more}")
    if len(dtypes) > 1:
        mixture = ", ".join(f"{key} is {kind}" for kind, key in dtypes.items())
        raise CheckpointError(f"{source}: {mixture}; name one dtype for all, such as bfloat16")


def require_shape(source: str, key: str, tensor: Tensor, shape: torch.Size) -> None:
    """Raises CheckpointError where a tensor has not the shape that the configuration asks for."""
    if tensor.shape != shape:
        raise CheckpointError(
            f"{source}: {key} has shape {list(tensor.shape)}, "
            f"the configuration asks for {list(shape)}"
        )


class _Layers:
    """Which layers of a model's lists, and whether its table, are complete.

    names: of all tensors to come.
    """

    def __init__(self, model: nn.Module, names: Collection[str]) -> None:
        stacks = [
            name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)
        ]
        self.layers = {
            f"{stack}.{number}.": layer
            for stack in stacks
            for number, layer in model.get_submodule(stack).named_children()
        }
        table = EMBEDDING.removesuffix("weight")
        if EMBEDDING in names:
            self.layers[table] = model.get_submodule(table.removesuffix("."))
        self.left = Counter(prefix for name in names if (prefix := self._prefix(name)))

    def _prefix(self, name: str) -> str | None:
        """The layer that a tensor is part of."""
        parts = name.split(".")
        starts = (".".join(parts[:i]) + "." for i in range(1, len(parts)))
        return next((start for start in starts if start in self.layers), None)

    def complete(self, name: str) -> nn.Module | None:
        """The layer that this tensor completes."""
        prefix = self._prefix(name)
        if prefix is None:
            return None
        self.left[prefix] -= 1
        return None if self.left[prefix] else self.layers[prefix]
