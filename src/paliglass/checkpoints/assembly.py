"""Weights → model, strictly: built without memory, filled tensor by tensor, nothing left over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from paliglass.checkpoints.layouts import EMBEDDING, HEAD
from paliglass.config import PaliGemmaConfig
from paliglass.errors import CheckpointError, PaliglassError
from paliglass.fast.int8 import Int8Linear
from paliglass.fast.packed import pack_linears
from paliglass.fast.quantized import QUANTIZED, quantized, settle, speed_up, use_int8
from paliglass.fast.widened import widen
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration

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


class _Uninitialised(TorchFunctionMode):
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
    with torch.device("meta"), _Uninitialised():
        yield


def expected_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """What a checkpoint must hold. The tied head is the embedding and is not counted twice."""
    return {name: t.shape for name, t in model.state_dict(keep_vars=True).items() if name != HEAD}


def assemble(
    config: PaliGemmaConfig,
    tensors: Iterable[tuple[str, str, Tensor]],
    source: str,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    quantize: bool = False,
    pack: bool = False,
) -> PaliGemmaForConditionalGeneration:
    """Fills a PaliGemma with (our name, the file's name, tensor) triples, each used once.

    quantize: matrices become int8 as they come, so that one alone is held as it was. pack: on a
    CPU, matrices are laid out for its fastest kernels, for good (`fast.int8`, `fast.packed`).

    Raises CheckpointError as `fill` does, and where the output layer is not the embedding.
    """
    model = skeleton(config)
    if quantize:
        with weightless():
            use_int8(model)
        tensors = quantized(model, tensors, device, pack)
    head: Tensor | None = None

    def without_head() -> Iterator[tuple[str, str, Tensor]]:
        nonlocal head
        for name, key, tensor in tensors:
            if name == HEAD:
                head = tensor
            else:
                yield name, key, tensor

    fill(model, without_head(), source, dtype, device)
    if quantize:
        is_tied = settle(model, head)
    else:
        model.tie_weights()
        embedding = model.get_parameter(EMBEDDING)
        is_tied = head is None or torch.equal(head.to(embedding), embedding)
    if not is_tied:
        raise CheckpointError(
            f"{source}: lm_head.weight differs from embed_tokens.weight; "
            "PaliGemma's output layer is its embedding (tied weights)"
        )
    if pack and model.device.type == "cpu":
        if quantize:
            speed_up(model)
        else:
            pack_linears(model.language_model)
        widen(model, model.dtype)
    return model.eval()


def fill(
    model: nn.Module,
    tensors: Iterable[tuple[str, str, Tensor]],
    source: str,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> None:
    """Gives a weightless model its parameters and buffers: (our name, the file's name, tensor).

    Tensors that already have the dtype and device are taken as they are, so a memory-mapped file
    stays mapped and nothing is copied.

    Raises CheckpointError naming what is missing, left over or wrongly shaped (three at most).
    """
    missing = expected_shapes(model)
    parameters = {name for name, _ in model.named_parameters()}
    surplus: list[str] = []
    dtypes: dict[torch.dtype, str] = {}
    for name, key, tensor in tensors:
        if name not in missing:
            surplus.append(key)
            continue
        if tensor.shape != missing[name]:
            raise CheckpointError(
                f"{source}: {key} has shape {list(tensor.shape)}, "
                f"the configuration asks for {list(missing[name])}"
            )
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        own = QUANTIZED.get(leaf) if isinstance(module, Int8Linear) else None
        if tensor.dtype != own if own else not tensor.is_floating_point() or tensor.itemsize < 2:
            raise CheckpointError(
                f"{source}: {key} is {tensor.dtype}; of quantised checkpoints, only PaliGemmas "
                "that `paliglass convert --quantize int8` writes are read"
            )
        if own is None:
            dtypes.setdefault(dtype or tensor.dtype, key)
        del missing[name]
        value = tensor.to(device=device, dtype=own or dtype or tensor.dtype)
        setattr(module, leaf, nn.Parameter(value) if name in parameters else value)
    problems = [("lacks", sorted(missing)), ("holds, beyond the model,", sorted(surplus))]
    for what, names in problems:
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise CheckpointError(f"{source}: {what} {', '.join(names[:3])}{more}")
    if len(dtypes) > 1:
        mixture = ", ".join(f"{key} is {kind}" for kind, key in dtypes.items())
        raise CheckpointError(f"{source}: {mixture}; name one dtype for all, such as bfloat16")
