"""Tensor parallelism (arXiv 1909.08053): each process computes with a part of every large matrix.

- attention and MLP: the first matrices are cut by what comes out of them (whole heads, whole
  channels), the last one by what goes in; what comes out of that is a summand, and the processes
  add theirs up: two sums a layer, in the vision tower as in the decoder
- the table of words is cut by words: a lookup is a sum too, logits are put side by side
- key/value heads that are fewer than the processes are held by several of them
- norms, the projector, the patches' convolution and positions are small: each process has them

The parts are plain modules of plain tensors, so that what makes a CPU fast works on them as on the
whole. torch's own `ColwiseParallel` and `RowwiseParallel` would make them DTensors, whose dispatch
costs several times a small layer's own time at every token; see docs/scale.md.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module
from torch.nn import functional as F

from paliglass.checkpoints.assembly import Tensors, parse_device, require_shape
from paliglass.checkpoints.layouts import EMBEDDING, HEAD
from paliglass.config import GemmaConfig, PaliGemmaConfig
from paliglass.errors import PaliglassError
from paliglass.layers.kv_cache import KVCache
from paliglass.modeling_gemma import GemmaForCausalLM
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.modeling_siglip import SigLipAttention
from paliglass.parallel.processes import agree, answering, join

__all__ = ["Added", "Columns", "Rows", "TensorParallel", "refuse_division"]

Cut = Callable[[Tensor], Tensor]
"""A whole tensor → what this process holds of it."""


def refuse_division(config: PaliGemmaConfig, processes: int) -> None:
    """Raises PaliglassError where so many processes cannot share a model evenly."""
    if not _divides(config, processes):
        heads = config.text_config.num_attention_heads
        able = [str(n) for n in range(1, heads + 1) if _divides(config, n)]
        raise PaliglassError(
            f"{processes} processes cannot share this model's heads and layers evenly; "
            f"--nproc-per-node can be {', '.join(able)}"
        )


def _divides(config: PaliGemmaConfig, processes: int) -> bool:
    text, vision = config.text_config, config.vision_config
    sizes = [
        *(text.num_attention_heads, text.intermediate_size),
        *(vision.num_attention_heads, vision.intermediate_size),
    ]
    key_heads = text.num_key_value_heads
    fewer = processes % key_heads == 0 or key_heads % processes == 0
    return fewer and not any(size % processes for size in sizes)


class TensorParallel:
    """A process's part in a model that several processes hold together.

    `assemble` calls it with the model before it has numbers, and with the checkpoint's tensors.

    device: "auto" takes a GPU for each process of a machine, or the CPU.

    Raises PaliglassError where the processes cannot share the model, have no GPU each, or do not
    find each other.
    """

    def __init__(self, config: PaliGemmaConfig, device: str | torch.device = "auto") -> None:
        self.config = config
        self.device = own_device(device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        join()
        refuse_division(config, dist.get_world_size())
        self.mesh = init_device_mesh(self.device.type, (dist.get_world_size(),))
        self.parts: int = self.mesh.size()
        on_cpu = self.device.type == "cpu"
        self.sharing = int(os.environ.get("LOCAL_WORLD_SIZE", self.parts)) if on_cpu else 1
        self._cuts: dict[Tensor, Cut] = {}
        self._seed: int = agree(secrets.randbits(62))
        self._count = count()

    def meet(self) -> None:
        """Waits for the other processes."""
        with answering():
            dist.barrier()

    def fresh_seed(self) -> tuple[int, int]:
        """Another at each call, and the same in all processes: they must draw alike."""
        return self._seed, next(self._count)

    def __call__(self, model: PaliGemmaForConditionalGeneration, tensors: Tensors) -> Tensors:
        """Leaves a weightless model its part of every module, and cuts the tensors for it."""
        shapes = {name: p.shape for name, p in model.named_parameters()}
        parallelize_module(model, self.mesh, self._plan())
        model.tie_weights()
        decoder, text = model.language_model, self.config.text_config
        decoder.lm_head.out_features = len(decoder.lm_head.weight)
        model.__class__, decoder.__class__ = _PaliGemmaPart, _CausalLMPart
        assert isinstance(model, _PaliGemmaPart)
        assert isinstance(decoder, _CausalLMPart)
        heads = max(1, text.num_key_value_heads // self.parts)
        model.cache_config = replace(text, num_key_value_heads=heads)
        decoder.group = self.mesh.get_group()
        cuts = {name: self._cuts[p] for name, p in model.named_parameters() if p in self._cuts}
        return self._cut(tensors, shapes, cuts)

    def _cut(
        self, tensors: Tensors, shapes: dict[str, torch.Size], cuts: dict[str, Cut]
    ) -> Iterator[tuple[str, str, Tensor]]:
        for name, key, tensor in tensors:
            own = EMBEDDING if name == HEAD else name
            if own in cuts:
                require_shape("the weights", key, tensor, shapes[own])
                tensor = cuts[own](tensor)
            yield name, key, tensor
            del tensor  # its file's pages go with it

    def _plan(self) -> dict[str, ParallelStyle]:
        vision, decoder = "vision_tower.vision_model.encoder.layers.*.", "language_model.model."
        layer = decoder + "layers.*."
        columns, rows, added = Columns(self._cuts), Rows(self._cuts), Added()
        keys = Columns(self._cuts, self.config.text_config.num_key_value_heads)
        return {
            **{f"{vision}self_attn.{name}_proj": columns for name in "qkv"},
            **{f"{vision}self_attn.out_proj": rows, f"{vision}self_attn": added},
            **{f"{vision}mlp.fc1": columns, f"{vision}mlp.fc2": rows, f"{vision}mlp": added},
            **{f"{layer}self_attn.{name}_proj": keys for name in "kv"},
            **{f"{layer}self_attn.q_proj": columns, f"{layer}self_attn.o_proj": rows},
            **{f"{layer}mlp.{name}_proj": columns for name in ("gate", "up")},
            **{f"{layer}mlp.down_proj": rows, f"{layer}self_attn": added, f"{layer}mlp": added},
            f"{decoder}embed_tokens": _Words(self._cuts),
        }


def own_device(device: str | torch.device) -> torch.device:
    """The device of this process among those of its machine."""
    asked = parse_device(device)
    if asked.type == "mps" or (asked.type == "cuda" and asked.index is not None):
        raise PaliglassError(f"device {asked}: with tensor_parallel choose auto, cpu or cuda")
    if asked.type == "cpu":
        return asked
    local, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= there:
        raise PaliglassError(
            f"process {local} of this machine has no GPU, there are {there}; --nproc-per-node "
            f"{there} or --device cpu"
        )
    return torch.device("cuda", local)


# ------------------------------------------------------- what becomes of a module


def _hold(
    module: nn.Module, name: str, dim: int, length: int, cut: Cut, cuts: dict[Tensor, Cut]
) -> None:
    """Gives a weightless parameter the shape of its part, and notes how that is cut."""
    whole = getattr(module, name)
    shape = list(whole.shape)
    shape[dim] = length
    part = nn.Parameter(whole.new_empty(shape))
    setattr(module, name, part)
    cuts[part] = cut


class Columns(ParallelStyle):
    """A linear layer that keeps a part of its outputs: … × D → … × (N / parts).

    heads: of which each process is to have at least one, however many processes there are.
    """

    def __init__(self, cuts: dict[Tensor, Cut], heads: int | None = None) -> None:
        self.cuts, self.heads = cuts, heads

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, nn.Linear)
        parts = min(self.heads or device_mesh.size(), device_mesh.size())
        length = module.out_features // parts
        start = device_mesh.get_local_rank() * parts // device_mesh.size() * length
        cut = partial(torch.narrow, dim=0, start=start, length=length)
        for name in [name for name, _ in module.named_parameters()]:
            _hold(module, name, 0, length, cut, self.cuts)
        module.out_features = length
        return module


class Rows(ParallelStyle):
    """A linear layer that keeps a part of its inputs: … × (D / parts) → … × N, a summand."""

    def __init__(self, cuts: dict[Tensor, Cut]) -> None:
        self.cuts = cuts

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, nn.Linear)
        length = module.in_features // device_mesh.size()
        start = device_mesh.get_local_rank() * length

        def columns(weight: Tensor) -> Tensor:
            return weight.narrow(1, start, length).contiguous()

        _hold(module, "weight", 1, length, columns, self.cuts)
        if module.bias is not None and start:  # the first process adds it, once
            self.cuts[module.bias] = torch.zeros_like
        module.in_features = length
        return module


class Added(ParallelStyle):
    """Attention or an MLP: what comes out is added up over the processes."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        group = device_mesh.get_group()
        if isinstance(module, SigLipAttention):  # which splits its channels by them
            module.heads //= device_mesh.size()
        module.register_forward_hook(lambda module, inputs, output: _added_up(output, group))
        return module


class _Words(ParallelStyle):
    """The table, of which each process has some rows; the last one's may end in zeros."""

    def __init__(self, cuts: dict[Tensor, Cut]) -> None:
        self.cuts = cuts

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, nn.Embedding)
        words = module.num_embeddings
        length = -(-words // device_mesh.size())
        start = device_mesh.get_local_rank() * length

        def rows(table: Tensor) -> Tensor:
            own = table[start : start + length]
            return own if len(own) == length else F.pad(own, (0, 0, 0, length - len(own)))

        _hold(module, "weight", 0, length, rows, self.cuts)
        module.__class__ = _TablePart
        assert isinstance(module, _TablePart)
        module.start, module.group = start, device_mesh.get_group()
        return module


class _TablePart(nn.Embedding):
    """Some rows of the table, from `start` on: ids … → … × D, added up over the processes."""

    start: int
    group: dist.ProcessGroup

    def forward(self, input: Tensor) -> Tensor:
        places = input - self.start
        is_own = (places >= 0) & (places < len(self.weight))
        rows = F.embedding(places.where(is_own, 0), self.weight)
        return _added_up(rows * is_own[..., None], self.group)


class _CausalLMPart(GemmaForCausalLM):
    """The decoder, its output layer cut by words."""

    group: dist.ProcessGroup

    def logits(self, hidden: Tensor, token_ids: Tensor | None = None) -> Tensor:
        """As `GemmaForCausalLM.logits`: all words', in every process."""
        logits = super().logits(hidden, token_ids)
        if token_ids is not None:  # from rows that were added up
            return logits
        parts = logits.new_empty(self.group.size(), *logits.shape)
        with answering():
            dist.all_gather([*parts], logits.contiguous(), group=self.group)
        return parts.movedim(0, -2).flatten(-2)[..., : self.config.vocab_size]


class _PaliGemmaPart(PaliGemmaForConditionalGeneration):
    """The whole model, whose cache has this process's key/value heads."""

    cache_config: GemmaConfig

    def find_broken_weight(self) -> str | None:
        """The first one that any process holds a broken part of: all end alike, or none does."""
        names = [name for name, _ in (*self.named_parameters(), *self.named_buffers())]
        own = super().find_broken_weight()
        place = torch.tensor(len(names) if own is None else names.index(own), device=self.device)
        with answering():
            dist.all_reduce(place, dist.ReduceOp.MIN)
        return names[int(place)] if place < len(names) else None

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        return KVCache(self.cache_config, batch_size, capacity, self.device, self.dtype)


def _added_up(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    x = x.contiguous()
    with answering():
        dist.all_reduce(x, group=group)
    return x
