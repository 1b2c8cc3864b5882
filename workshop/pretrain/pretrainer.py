"""One model in training: its recipe, a step, its checkpoints.

- hidden matrices are updated by Muon (orthogonalised momentum, arXiv 2502.16982), the rest by
  AdamW; rates rise, stay, and fall to zero
- forward and backward may run in bfloat16, three times as fast on a CPU that has it; the optimizers
  keep float32 weights, as updates are finer than bfloat16's steps
- several processes share a step's scenes and average their gradients, so that losses are those of
  one process; sharded (see `sharding`), none holds the whole model
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from paliglass.config import PaliGemmaConfig
from paliglass.contrastive.pairs import pixel_values
from paliglass.errors import PaliglassError
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.training import sharding
from paliglass.training.attention import use_plain_attention
from paliglass.training.muon import Muon
from paliglass.training.runs import Precision
from workshop.pretrain.batches import TASKS, SceneBatch, text_batch

if TYPE_CHECKING:
    from accelerate import Accelerator

# For each loss its sum and the number of things summed over.
Report = dict[str, tuple[float, int]]


@dataclass(frozen=True)
class Recipe:
    """The run's settings. It ends at `steps` or after `minutes`, whichever is first reached."""

    minutes: float = math.inf
    steps: int = 10**9
    seed: int = 0
    scenes: int = 32  # per step, over all processes
    prompts: int = 8  # per scene, packed; half as many in rows of their own
    mixture: dict[str, float] = field(default_factory=dict)  # how much more often a task is asked
    looking: float = 0.15  # share of the run for the vision tower alone
    separate: float = 0.2  # share at the end with a row for each prompt
    muon_rate: float = 5e-3
    adam_rate: float = 2e-3
    weight_decay: float = 0.05
    warm_up: int = 100  # steps
    decay: float = 0.5  # share of the run in which rates fall to zero
    patch_weight: float = 0.5  # of the patch head's loss
    precision: Precision = "bf16"  # of forward and backward


def mean_over_all(losses: Tensor) -> Tensor:
    """The mean of all processes' losses, in a form for gradients that will be averaged over them.

    Each process's own mean would weigh a short batch's losses more than a long one's.
    """
    count = torch.tensor(float(losses.numel()), device=losses.device)
    processes = 1
    if dist.is_initialized():
        dist.all_reduce(count)
        processes = dist.get_world_size()
    return losses.sum() * processes / count.clamp(min=1)


class PretrainLoss(nn.Module):
    """A model with its losses, as one module: what DistributedDataParallel and FSDP2 wrap.

    On the vision tower a linear layer says what each patch shows: class scores and a box. Weights
    are random, by the recipe's seed.

    num_classes: what a patch can show, the ground included.
    """

    def __init__(self, config: PaliGemmaConfig, num_classes: int, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        self.model = PaliGemmaForConditionalGeneration(config)
        self.patch_head = nn.Linear(config.vision_config.hidden_size, num_classes + 4)

    def forward(self, batch: SceneBatch, progress: float, step: int) -> tuple[Tensor, Report]:
        """The loss of all processes' batches, and this one's losses by task."""
        recipe, model, device = self.recipe, self.model, self.model.device
        seen = model.vision_tower(pixel_values(batch.pixels.to(device), model.dtype))
        guess = self.patch_head(seen).float()
        patch_labels, patch_boxes = batch.patch_labels.to(device), batch.patch_boxes.to(device)
        labels = F.cross_entropy(guess[..., :-4].flatten(0, 1), patch_labels.flatten())
        bounded = ~patch_boxes[..., 0].isnan()
        misses = (guess[..., -4:][bounded] - patch_boxes[bounded]).abs()
        boxes = mean_over_all(misses)
        count = len(seen)
        report = {
            "patch_label": (labels.item() * count, count),
            "patch_box": (misses.sum().item(), misses.numel()),
        }
        loss = recipe.patch_weight * (labels + 4 * boxes)
        if progress < recipe.looking:
            return loss, report

        packed = progress < 1 - recipe.separate
        rows = batch.rows if packed else [scene[step % 2 :: 2] for scene in batch.rows]
        text = text_batch(rows, seen.shape[1], packed).to(device)
        features = model.multi_modal_projector(seen).repeat_interleave(text.repeats, dim=0)
        decoder = model.language_model
        embeddings = torch.cat((features, decoder.model.embed(text.ids)), dim=1)
        masks = [text.mask] * decoder.config.num_hidden_layers
        hidden = decoder.model(embeddings, text.positions, masks)[:, seen.shape[1] :]
        asked = text.labels != -100
        losses = F.cross_entropy(
            decoder.logits(hidden[asked]).float(), text.labels[asked], reduction="none"
        )
        for i, task in enumerate(TASKS):
            of_task = text.tasks[asked] == i
            report[task] = (losses.detach()[of_task].sum().item(), int(of_task.sum()))
        return loss + mean_over_all(losses), report


class HalfPrecision(nn.Module):
    """Computes with bfloat16 copies of a module's float32 weights, which get float32 gradients."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: object) -> object:
        """What the module returns for these inputs."""
        copies = {name: p.to(torch.bfloat16) for name, p in self.module.named_parameters()}
        return functional_call(self.module, copies, inputs)


class Pretrainer:
    """A model in training: weights, optimizers, the clock.

    shard: each process holds a part of weights, gradients and optimizers.
    """

    def __init__(
        self, network: PretrainLoss, accelerator: Accelerator, shard: bool = False
    ) -> None:
        self.network, self.recipe, self.accelerator = network, network.recipe, accelerator
        recipe = self.recipe
        if recipe.scenes % accelerator.num_processes:
            raise PaliglassError(
                f"{recipe.scenes} scenes cannot be shared by {accelerator.num_processes} "
                "processes; choose a multiple"
            )
        if accelerator.device.type == "cpu":
            use_plain_attention(network)
        half = recipe.precision == "bf16"
        if shard:
            sharding.shard(network, network.model, recipe.precision)
        self.weights = dict(network.named_parameters())  # float32; tied ones once
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in self.weights.items():
            hidden = parameter.ndim == 2 and (".layers." in name or "projector" in name)
            (matrices if hidden else others).append(parameter)
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, recipe.weight_decay, torch.bfloat16 if half else torch.float32),
            torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0, fused=not shard),
        ]
        self.step = 0
        self.elapsed = 0.0  # seconds, over all sittings
        self.loss: nn.Module = HalfPrecision(network) if half and not shard else network
        self.looking: bool | None = None
        if not shard:
            self._wrap()

    @property
    def model(self) -> PaliGemmaForConditionalGeneration:
        """The float32 weights, as a model."""
        return self.network.model

    @property
    def progress(self) -> float:
        """How much of the run is over, 0 … 1."""
        recipe = self.recipe
        return min(1.0, max(self.step / recipe.steps, self.elapsed / (60 * recipe.minutes)))

    def train_step(self, batch: SceneBatch) -> Report:
        """One update, from each process's share. Returns this one's losses."""
        recipe, progress = self.recipe, self.progress
        if self.looking not in (None, progress < recipe.looking):
            self._wrap()
        loss, report = self.loss(batch, progress, self.step)
        self.accelerator.backward(loss)
        sharding.clip_gradients(list(self.weights.values()), self.step + 1)
        rate = min(1.0, (self.step + 1) / recipe.warm_up, (1 - progress) / recipe.decay)
        peaks = (recipe.muon_rate, recipe.adam_rate)
        for optimizer, peak in zip(self.optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * rate
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return report

    def _wrap(self) -> None:
        """Wraps the module for the phase at hand: each weight in it is to get a gradient."""
        self.looking = self.progress < self.recipe.looking
        for name, weight in self.weights.items():
            sees = "vision_tower" in name or "patch_head" in name
            weight.requires_grad_(sees or not self.looking)
        module = self.accelerator.unwrap_model(self.loss)
        self.accelerator.free_memory()  # of an earlier phase
        self.loss = self.accelerator.prepare(module)

    @torch.no_grad()
    def losses(self, batch: SceneBatch) -> Report:
        """What `train_step` reports, of packed prompts, without an update."""
        return self.loss(batch, self.recipe.looking, self.step)[1]

    def save(self, folder: Path) -> None:
        """Writes `folder` whole or not at all; what was there is replaced.

        To be called by every process.
        """
        about = {"step": self.step, "elapsed": self.elapsed, "recipe": asdict(self.recipe)}
        sharding.save(folder, self.accelerator, self.weights, self.optimizers, about)

    def resume(self, folder: Path) -> None:
        """Goes on from what `save` wrote, on however many processes, sharded or not.

        Raises CheckpointError where it was written with another recipe.
        """
        recipe = asdict(self.recipe)
        about = sharding.resume(folder, self.weights, self.optimizers, recipe)
        self.step, self.elapsed = about["step"], about["elapsed"]
