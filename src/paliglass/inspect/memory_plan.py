"""What fine-tuning a model takes of each GPU's memory, counted without having one.

    weights       what learns is float32, the rest bfloat16; shards are float32 all
    copies        what learns once more in bfloat16 while it computes; of shards, two layers at a
                  time and what belongs to none (the embedding)
    gradients     float32
    optimizer     AdamW's two moments, float32
    activations   what the backward pass needs of the forward pass: one is run with tensors that
                  have shapes and no memory, and what autograd keeps of it is added up

The allocator's own losses, some per cent, and what CUDA itself takes, some 0.5 GB, come on top.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paliglass.checkpoints.assembly import skeleton
from paliglass.config import PaliGemmaConfig
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.training.finetuner import PARTS, checkpoint_layers
from paliglass.training.lora import add_lora
from paliglass.training.recipes import Part
from paliglass.training.sharding import transformer_layers

__all__ = ["MemoryPlan", "kept_for_backward", "plan"]

FULL, HALF = 4, 2  # bytes of a float32, and of a bfloat16


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on each GPU; `learning` is how many numbers learn, over all GPUs."""

    learning: int
    weights: int
    copies: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of it, in bytes."""
        return self.weights + self.copies + self.gradients + self.optimizer + self.activations

    def to_dict(self) -> dict[str, int]:
        """For JSON."""
        return {**asdict(self), "total": self.total}


def plan(
    config: PaliGemmaConfig,
    part: Part = "all",
    lora_rank: int = 0,
    gpus: int = 1,
    rows: int = 1,
    words: int = 64,
    checkpointing: bool = True,
) -> MemoryPlan:
    """The memory of fine-tuning in bfloat16, weights sharded over `gpus` where there are several.

    Args:
        part, lora_rank, checkpointing: as in `FinetuneRecipe`.
        rows: that each GPU holds at once.
        words: tokens of a row beside its picture's, half of them to be predicted.
    """
    learning, matrices, total, layers, activations = _count(
        config, part, lora_rank, rows, words, checkpointing
    )
    if gpus > 1:
        weights = FULL * total // gpus
        copies = HALF * (2 * max(layers) + total - sum(layers))
    else:
        weights = FULL * learning + HALF * (total - learning)
        copies = HALF * matrices
    shared = FULL * learning // gpus
    return MemoryPlan(learning, weights, copies, shared, 2 * shared, activations)


@lru_cache
def _count(
    config: PaliGemmaConfig, part: Part, lora_rank: int, rows: int, words: int, checkpointing: bool
) -> tuple[int, int, int, list[int], int]:
    """Numbers that learn, those in matrices, all, in each layer; and the activations' bytes."""
    model = skeleton(config).train()
    if lora_rank:
        add_lora(model, lora_rank, 16.0, 0.0, part)
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(PARTS[part](name))
    with _without_memory():
        _materialise(model)
        parameters = list(model.parameters())
        learn = [p for p in parameters if p.requires_grad]
        layers = [sum(p.numel() for p in layer.parameters()) for layer in transformer_layers(model)]
        if checkpointing:
            checkpoint_layers(model)
        activations = kept_for_backward(lambda: _forward(model, config, rows, words), parameters)
    return (
        sum(p.numel() for p in learn),
        sum(p.numel() for p in learn if p.ndim > 1),
        sum(p.numel() for p in parameters),
        layers,
        activations,
    )


@contextmanager
def _without_memory() -> Iterator[None]:
    """Tensors made in this block have shapes, dtypes and a device, but no numbers."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        yield


def _materialise(model: nn.Module) -> None:
    """Puts parameters on a CPU, float32 where they learn and bfloat16 else; tied ones stay tied."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, old in list(module.named_parameters(recurse=False)):
            if id(old) not in made:
                dtype = torch.float32 if old.requires_grad else torch.bfloat16
                made[id(old)] = nn.Parameter(torch.empty(old.shape, dtype=dtype), old.requires_grad)
            setattr(module, name, made[id(old)])


def _forward(
    model: PaliGemmaForConditionalGeneration, config: PaliGemmaConfig, rows: int, words: int
) -> Tensor:
    """A training step's loss; the merge, which looks at numbers, gives way to a concatenation."""
    side = config.vision_config.image_size
    length = config.num_image_tokens + words
    with torch.autocast("cpu", torch.bfloat16):
        features = model.get_image_features(torch.zeros(rows, 3, side, side))
        ids = torch.zeros(rows, words, dtype=torch.long)
        text = model.language_model.model.embed(ids)
        embeddings = torch.cat((features.to(text.dtype), text), 1)
        positions = torch.arange(1, length + 1)[None].expand(rows, -1)
        mask = torch.zeros(rows, 1, length, length, dtype=torch.bool)
        hidden = model.language_model.model(embeddings, positions, mask)
        asked = hidden[:, -max(1, words // 2) :].flatten(0, 1)
        logits = model.language_model.logits(asked).float()
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long), reduction="sum")


def kept_for_backward(forward: Callable[[], Tensor], parameters: list[nn.Parameter]) -> int:
    """Bytes of the tensors that autograd keeps of a forward pass, each storage once.

    The parameters themselves are not counted.
    """
    own = {parameter.untyped_storage()._cdata for parameter in parameters}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = tensor  # held, so that no other gets its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del loss
    return size
