"""A model in pre-training: its losses, a step.

- hidden matrices are updated by Muon (orthogonalized momentum, arXiv 2502.16982), the rest by
  AdamW; rates rise, stay, and fall to zero
- forward and backward may run in bfloat16, three times as fast on a CPU that has it; the optimizers
  keep float32 weights, as updates are finer than bfloat16's steps
- several processes share a step's scenes and average their gradients, so that losses are those of
  one process; sharded (see `sharding`), none holds the whole model
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from paliglass.config import PaliGemmaConfig
from paliglass.contrastive.pairs import pixel_values
from paliglass.errors import PaliglassError
from paliglass.layers.losses import IGNORE
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.training import sharding
from paliglass.training.attention import choose_attention
from paliglass.training.loop import StepSums, Trainer
from paliglass.training.optimizers import Optimizers
from workshop.pretrain.batches import CELLS, SceneBatch
from workshop.pretrain.recipe import TASKS, PretrainRecipe
from workshop.world.concepts import CHARACTERS

if TYPE_CHECKING:
    from accelerate import Accelerator


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

    On the vision tower a linear layer says what each patch shows: class scores, a box, and the
    character in each of its cells. Weights are random, by the recipe's seed.

    num_classes: what a patch can show, the ground included.
    """

    def __init__(self, config: PaliGemmaConfig, num_classes: int, recipe: PretrainRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        self.model = PaliGemmaForConditionalGeneration(config)
        self.parts = [num_classes, 4, math.prod(CELLS) * (1 + len(CHARACTERS))]
        self.patch_head = nn.Linear(config.vision_config.hidden_size, sum(self.parts))
        # From zero it moves no trained tower before it knows better.
        nn.init.zeros_(self.patch_head.weight)

    def forward(
        self, batch: SceneBatch, progress: float
    ) -> tuple[Tensor, dict[str, tuple[float, float]]]:
        """The loss of all processes' batches, and this one's losses by task."""
        recipe, model = self.recipe, self.model
        seen = model.vision_tower(pixel_values(batch.pixels, model.dtype))
        classes, boxes, cells = self.patch_head(seen).float().split(self.parts, dim=-1)
        labels = F.cross_entropy(classes.flatten(0, 1), batch.patch_labels.flatten())
        bounded = ~batch.patch_boxes[..., 0].isnan()
        misses = (boxes[bounded] - batch.patch_boxes[bounded]).abs()
        spelled = F.cross_entropy(
            cells.reshape(-1, 1 + len(CHARACTERS)), batch.characters.flatten()
        )
        loss = recipe.patch_weight * (labels + 4 * mean_over_all(misses) + 4 * spelled)
        found = {
            "patch_label": (labels.detach() * len(seen), torch.tensor(len(seen))),
            "patch_box": (misses.detach().sum(), torch.tensor(misses.numel())),
            "patch_text": (spelled.detach() * len(seen), torch.tensor(len(seen))),
        }
        if progress < recipe.vision_warmup:
            return loss, _numbers(found)

        text = batch.packed if progress < 1 - recipe.unpacked_share else batch.single
        assert text is not None
        features = model.multi_modal_projector(seen)[text.pictures]
        decoder = model.language_model
        embeddings = torch.cat((features, decoder.model.embed(text.ids)), dim=1)
        hidden = decoder.model(embeddings, text.positions, text.mask)[:, seen.shape[1] :]
        asked = text.labels != IGNORE
        losses = F.cross_entropy(
            decoder.logits(hidden[asked]).float(), text.labels[asked], reduction="none"
        )
        tasks, shown = text.tasks[asked], losses.detach()
        for i, task in enumerate(TASKS):
            of_task = tasks == i
            found[task] = (shown[of_task].sum(), of_task.sum())
        return loss + mean_over_all(losses), _numbers(found)


def _numbers(found: dict[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[float, float]]:
    """Sums and counts, fetched from where they lie at once: a GPU is waited for once a step."""
    pairs = [torch.stack((total, count.to(total))) for total, count in found.values()]
    numbers = torch.stack(pairs).tolist()
    return {name: (total, count) for name, (total, count) in zip(found, numbers, strict=True)}


class HalfPrecision(nn.Module):
    """Computes with bfloat16 copies of a module's float32 weights, which get float32 gradients."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: object) -> object:
        """What the module returns for these inputs."""
        copies = {name: p.to(torch.bfloat16) for name, p in self.module.named_parameters()}
        return functional_call(self.module, copies, inputs)


class Pretrainer(Trainer[SceneBatch]):
    """A model in training: weights, optimizers, the clock.

    shard: each process holds a part of weights, gradients and optimizers.

    Raises PaliglassError where scenes cannot be shared by the processes.
    """

    recipe: PretrainRecipe

    def __init__(
        self, network: PretrainLoss, accelerator: Accelerator, shard: bool = False
    ) -> None:
        super().__init__()
        self.network, self.recipe, self.accelerator = network, network.recipe, accelerator
        recipe = self.recipe
        if recipe.scenes % accelerator.num_processes:
            raise PaliglassError(
                f"{recipe.scenes} scenes cannot be shared by {accelerator.num_processes} "
                "processes; choose a multiple"
            )
        self.rows = recipe.scenes // accelerator.num_processes
        choose_attention(network, accelerator.device)
        half = recipe.precision == "bf16"
        if shard:
            sharding.shard(network, network.model, recipe.precision)
        self.parameters = dict(network.named_parameters())  # float32; tied ones once
        self.weights = self.parameters
        self.optimizers = Optimizers(
            self.parameters,
            lambda name: ".layers." in name or "projector" in name,
            muon_decay=recipe.weight_decay,
            betas=(0.9, 0.98),
            dtype=torch.bfloat16 if half else torch.float32,
        )
        self.loss: nn.Module = HalfPrecision(network) if half and not shard else network
        self.warms_up: bool | None = None
        if not shard:
            self._wrap()

    @property
    def model(self) -> PaliGemmaForConditionalGeneration:
        """The float32 weights, as a model."""
        return self.network.model

    @property
    def rate(self) -> float:
        """AdamW's learning rate at the next step."""
        return self.recipe.adamw_rate * self._share()

    def _share(self) -> float:
        """Of the highest rates, what the next step has."""
        recipe = self.recipe
        rising = (self.step + 1) / recipe.warm_up_steps
        return recipe.rate * min(1.0, rising, (1 - self.progress) / recipe.decay)

    def train_step(self, group: Sequence[SceneBatch]) -> StepSums:
        """One update, from each process's share. Returns this one's losses, by task."""
        (batch,) = group
        recipe, progress = self.recipe, self.progress
        if self.warms_up not in (None, progress < recipe.vision_warmup):
            self._wrap()
        loss, report = self.loss(batch, progress)
        self.accelerator.backward(loss)
        sharding.clip_gradients(list(self.parameters.values()), self.step + 1)
        self.optimizers.step(self.rate, recipe.muon_rate * self._share())
        self.step += 1
        return report

    def _wrap(self) -> None:
        """Wraps the module for the phase at hand: each weight in it is to get a gradient."""
        self.warms_up = self.progress < self.recipe.vision_warmup
        for name, weight in self.parameters.items():
            sees = "vision_tower" in name or "patch_head" in name
            weight.requires_grad_(sees or not self.warms_up)
        module = self.accelerator.unwrap_model(self.loss)
        self.accelerator.free_memory()  # of an earlier phase
        self.loss = self.accelerator.prepare(module)

    @torch.no_grad()
    def losses(self, batch: SceneBatch) -> StepSums:
        """What `train_step` reports, of packed prompts, without an update."""
        return self.loss(batch, self.recipe.vision_warmup)[1]
