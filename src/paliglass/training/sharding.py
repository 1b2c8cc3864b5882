"""Several processes: a model cut into shards (FSDP2, arXiv 2304.11277), checkpoints whole.

- each process holds a part of every weight, gradient and optimizer state; a layer is gathered when
  its turn comes, and let go after it
- what is written has one layout, however many processes wrote it: tensors are gathered one at a
  time for the first process. What all of a model's GPUs hold together would not fit onto each
- what is read is whole too, and each process keeps its part: a run begun on two goes on on one
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from paliglass.checkpoints.assembly import assemble
from paliglass.errors import CheckpointError, PaliglassError
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.training.recipes import Precision
from paliglass.training.runs import STATE, new_checkpoint

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = [
    "clip_gradients",
    "gather",
    "gathered",
    "gathered_model",
    "like",
    "load",
    "no_sync",
    "restore",
    "save",
    "shard",
    "transformer_layers",
    "whole",
]

WEIGHTS, OPTIMIZERS = "weights.safetensors", "optimizers.safetensors"


def transformer_layers(model: PaliGemmaForConditionalGeneration) -> list[nn.Module]:
    """Those of the vision tower, then the decoder's."""
    return [*model.vision_tower.vision_model.encoder.layers, *model.language_model.model.layers]


def shard(
    module: nn.Module, model: PaliGemmaForConditionalGeneration, precision: Precision | None
) -> None:
    """Cuts the weights of a module around a model into as many parts as there are processes.

    A shard has one dtype, float32; the model may be on the CPU with its file's dtype: a layer at a
    time becomes float32. precision: what it computes in; gradients are averaged in float32.

    Raises PaliglassError where there is one process only.
    """
    if not dist.is_initialized():
        raise PaliglassError("--shard is for several processes: torchrun --nproc-per-node 2 …")
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if precision == "bf16" else None, reduce_dtype=torch.float32
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for layer in transformer_layers(model):
        fully_shard(layer.float(), mesh=mesh, mp_policy=policy)
    for part in module.parameters():  # what no layer has
        if not isinstance(part, DTensor):
            part.data = part.data.float()
    fully_shard(module, mesh=mesh, mp_policy=policy)


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered, which takes every process; another as it is."""
    gathered: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return gathered


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, which every process has, sharded as a parameter is."""
    if not isinstance(parameter, DTensor):
        return tensor
    return distribute_tensor(
        tensor.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        src_data_rank=None,  # nothing is sent: each takes its part of its own
    )


def gather(tensors: Mapping[str, Tensor], accelerator: Accelerator) -> dict[str, Tensor]:
    """Tensors as a whole, on the CPU where they are shards, for the first process alone.

    Each process must ask; the others get nothing.
    """
    kept = {}
    for name, tensor in tensors.items():
        gathered = whole(tensor.detach())
        if accelerator.is_main_process:
            kept[name] = (gathered.cpu() if gathered is not tensor else gathered).contiguous()
    return kept


def gathered_model(
    model: PaliGemmaForConditionalGeneration,
    accelerator: Accelerator,
    name: str,
    dtype: torch.dtype,
) -> PaliGemmaForConditionalGeneration | None:
    """A model in one place and dtype for the first process, None for the others; all must ask.

    name: what an error is about.
    """
    state = gather(dict(model.named_parameters()), accelerator)
    if not accelerator.is_main_process:
        return None
    return assemble(model.config, ((k, k, tensor) for k, tensor in state.items()), name, dtype)


@torch.no_grad()
def restore(parameters: Mapping[str, Tensor], path: Path) -> None:
    """Gives parameters what `gather` made of them, from a safetensors file.

    Raises CheckpointError where the file is damaged, or its tensors are not these parameters.
    """
    with _open(path) as file:
        differ = {*file.keys()} ^ parameters.keys()
        if differ:
            raise CheckpointError(f"{path}: {min(differ)} is in one of model and file alone")
        for name, parameter in parameters.items():
            parameter.copy_(like(file.get_tensor(name), parameter))


def save(
    folder: Path,
    accelerator: Accelerator,
    parameters: Mapping[str, Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    state: Mapping[str, Any],
) -> None:
    """Writes `folder` whole or not at all; what was there is replaced.

    To be called by every process. The first one writes, and none goes on before it has: where one
    ends early, `torchrun` ends them all. state: for JSON.
    """
    weights = gather(parameters, accelerator)
    moments = gather(_moments(optimizers), accelerator)
    if accelerator.is_main_process:
        with new_checkpoint(folder) as new:
            save_file(weights, new / WEIGHTS)
            save_file(moments, new / OPTIMIZERS)
            (new / STATE).write_text(json.dumps(state), encoding="utf-8")
    accelerator.wait_for_everyone()


def load(
    folder: Path, parameters: Mapping[str, Tensor], optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Takes over the tensors that `save` wrote.

    Raises CheckpointError where they are damaged, or not those of these parameters.
    """
    restore(parameters, folder / WEIGHTS)
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    numbered = [[p for group in o.param_groups for p in group["params"]] for o in optimizers]
    with _open(folder / OPTIMIZERS) as file:
        for name in file.keys():
            place, number, moment = name.split(".")
            tensor: Tensor = file.get_tensor(name)
            if tensor.ndim:
                parameter = numbered[int(place)][int(number)]
                # `fused=True` goes through both in the order of memory, whatever their strides.
                tensor = torch.empty_like(parameter).copy_(like(tensor, parameter))
            states[int(place)].setdefault(int(number), {})[moment] = tensor
    for optimizer, state in zip(optimizers, states, strict=True):
        # Settings are the recipe's, and how an update is computed is this process's business.
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: is missing or damaged ({error})") from None


def _moments(optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """What optimizers keep, as `0.12.exp_avg`: optimizer's and parameter's number, and a name."""
    return {
        f"{place}.{number}.{name}": tensor
        for place, optimizer in enumerate(optimizers)
        for number, state in optimizer.state_dict()["state"].items()
        for name, tensor in state.items()
    }


def clip_gradients(parameters: Sequence[Tensor], step: int) -> None:
    """Scales gradients to a norm of 1 over all parameters, where it is above.

    Raises PaliglassError where it is not finite, before it reaches weights and checkpoint.
    """
    if not math.isfinite(whole(nn.utils.clip_grad_norm_(parameters, 1.0))):
        raise PaliglassError(
            f"step {step}: the gradient is not finite; a smaller learning rate may help"
        )


@contextmanager
def no_sync(module: nn.Module) -> Iterator[None]:
    """No exchange of gradients between processes in this block."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(False)
        yield
        module.set_requires_gradient_sync(True)
    else:
        with module.no_sync():  # type: ignore[operator]
            yield


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """What belongs to no layer of a sharded model is in one place in this block, as decoding needs.

    Layers are gathered when their turn comes, as in training: all processes decode the same.
    """
    if isinstance(module, FSDPModule):
        module.unshard()
    yield
    if isinstance(module, FSDPModule):
        module.reshard()
