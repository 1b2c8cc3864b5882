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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from paliglass.checkpoints.assembly import assemble
from paliglass.errors import PaliglassError
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.training.runs import Precision, check_same, new_checkpoint

if TYPE_CHECKING:
    from accelerate import Accelerator


def transformer_layers(model: PaliGemmaForConditionalGeneration) -> list[nn.Module]:
    """Those of the vision tower, then the decoder's."""
    return [*model.vision_tower.vision_model.encoder.layers, *model.language_model.model.layers]


def shard(
    module: nn.Module, model: PaliGemmaForConditionalGeneration, precision: Precision
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
    """Gives parameters what `gather` made of them, from a safetensors file."""
    tensors = load_file(path)
    for name, parameter in parameters.items():
        parameter.copy_(like(tensors[name], parameter))


def save(
    folder: Path,
    accelerator: Accelerator,
    parameters: Mapping[str, Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    about: dict[str, Any],
) -> None:
    """Writes `folder` whole or not at all; what was there is replaced.

    To be called by every process. The first one writes, and none goes on before it has: where one
    ends early, `torchrun` ends them all. about: for JSON, with the run's "recipe".
    """
    weights = gather(parameters, accelerator)
    states = [
        {number: gather(state, accelerator) for number, state in o.state_dict()["state"].items()}
        for o in optimizers
    ]
    if accelerator.is_main_process:
        with new_checkpoint(folder) as new:
            save_file(weights, new / "weights.safetensors")
            torch.save(states, new / "optimizers.pt")
            (new / "state.json").write_text(json.dumps(about), encoding="utf-8")
    accelerator.wait_for_everyone()


def resume(
    folder: Path,
    parameters: Mapping[str, Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    recipe: dict[str, Any],
) -> dict[str, Any]:
    """Takes over what `save` wrote; returns its `about`, without the recipe.

    Raises CheckpointError where it was written with another recipe: the losses would be those of
    neither.
    """
    about: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    check_same(folder, about.pop("recipe"), recipe)
    restore(parameters, folder / "weights.safetensors")
    states = torch.load(folder / "optimizers.pt", map_location="cpu", weights_only=True, mmap=True)
    for optimizer, state in zip(optimizers, states, strict=True):
        numbered = [p for group in optimizer.param_groups for p in group["params"]]
        sharded = {
            number: {k: like(t, numbered[number]) if t.ndim else t for k, t in moments.items()}
            for number, moments in state.items()
        }
        # Settings are the recipe's, and how an update is computed is this process's business.
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": sharded, "param_groups": groups})
    return about


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
