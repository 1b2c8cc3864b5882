"""One model in training: its recipe, a step, its checkpoints.

- hidden matrices are updated by Muon (orthogonalised momentum, arXiv 2502.16982), the rest by
  AdamW; rates rise, stay, and fall to zero
- forward and backward run in bfloat16, three times as fast on a CPU that has it; the optimizers
  keep float32 weights, as updates are finer than bfloat16's steps
- several processes share a step's scenes and average their gradients: on a CPU, two processes of
  one thread each get more done than one process of two threads
"""

from __future__ import annotations

import copy
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from paliglass.config import PaliGemmaConfig
from paliglass.contrastive.folders import initialise_vision_tower
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.training.attention import use_plain_attention
from paliglass.training.batches import TASKS, SceneBatch, pixel_values, text_batch
from paliglass.training.runs import check_same, new_checkpoint


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
    dtype: torch.dtype = torch.bfloat16

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON."""
        return {**asdict(self), "dtype": str(self.dtype).removeprefix("torch.")}


def processes() -> int:
    """How many train together: 1, or what `torchrun` started."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def mean_over_all(losses: Tensor) -> Tensor:
    """The mean of all processes' losses, in a form for gradients that will be averaged over them.

    Each process's own mean would weigh a short batch's losses more than a long one's.
    """
    count = torch.tensor(float(losses.numel()))
    if processes() > 1:
        dist.all_reduce(count)
    return losses.sum() * processes() / count.clamp(min=1)


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Replaces every gradient by its mean over the processes."""
    if processes() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= processes()
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


class ModelWithPatchHead(nn.Module):
    """The model, and the linear layer that says what each patch shows: class scores and a box."""

    def __init__(self, config: PaliGemmaConfig, num_classes: int) -> None:
        super().__init__()
        self.model = PaliGemmaForConditionalGeneration(config)
        self.patch_head = nn.Linear(config.vision_config.hidden_size, num_classes + 4)


class Pretrainer:
    """A model in training: weights, optimizers, the clock.

    Args:
        config: the model's.
        num_classes: what a patch can show, the ground included.
    """

    def __init__(self, config: PaliGemmaConfig, num_classes: int, recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.config = config
        # The float32 weights, and the copy that computes.
        self.weights = ModelWithPatchHead(config, num_classes)
        self.compute = copy.deepcopy(self.weights).to(recipe.dtype)
        use_plain_attention(self.compute)
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in self.weights.named_parameters():
            hidden = parameter.ndim == 2 and (".layers." in name or "projector" in name)
            (matrices if hidden else others).append(parameter)
        self.optimizers: list[tuple[torch.optim.Optimizer, float]] = [
            (
                torch.optim.Muon(
                    matrices,
                    weight_decay=recipe.weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                ),
                recipe.muon_rate,
            ),
            (
                torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
                recipe.adam_rate,
            ),
        ]
        self.step = 0
        self.elapsed = 0.0  # seconds, over all sittings

    @property
    def model(self) -> PaliGemmaForConditionalGeneration:
        """The float32 weights, as a model."""
        return self.weights.model

    @property
    def progress(self) -> float:
        """How much of the run is over, 0 … 1."""
        recipe = self.recipe
        return min(1.0, max(self.step / recipe.steps, self.elapsed / (60 * recipe.minutes)))

    def train_step(self, batch: SceneBatch) -> dict[str, tuple[float, int]]:
        """One update. Returns for each loss its sum and the number of things summed over."""
        recipe, progress = self.recipe, self.progress
        loss, report = self._losses(batch, progress)
        loss.backward()  # type: ignore[no-untyped-call]
        for master, copied in zip(
            self.weights.parameters(), self.compute.parameters(), strict=True
        ):
            master.grad = None if copied.grad is None else copied.grad.float()
            copied.grad = None
        average_gradients(list(self.weights.parameters()))
        # A NaN must stop the run here, before it reaches weights and checkpoint.
        nn.utils.clip_grad_norm_(self.weights.parameters(), 1.0, error_if_nonfinite=True)
        rate = min(1.0, (self.step + 1) / recipe.warm_up, (1 - progress) / recipe.decay)
        for optimizer, peak in self.optimizers:
            optimizer.param_groups[0]["lr"] = peak * rate
            optimizer.step()
        self._copy_weights()
        self.step += 1
        return report

    @torch.no_grad()
    def losses(self, batch: SceneBatch) -> dict[str, tuple[float, int]]:
        """What `train_step` reports, of packed prompts, without an update."""
        return self._losses(batch, progress=self.recipe.looking)[1]

    def _losses(
        self, batch: SceneBatch, progress: float
    ) -> tuple[Tensor, dict[str, tuple[float, int]]]:
        recipe, model = self.recipe, self.compute.model
        seen = model.vision_tower(pixel_values(batch.pixels, recipe.dtype))
        guess = self.compute.patch_head(seen).float()
        labels = F.cross_entropy(guess[..., :-4].flatten(0, 1), batch.patch_labels.flatten())
        bounded = ~batch.patch_boxes[..., 0].isnan()
        misses = (guess[..., -4:][bounded] - batch.patch_boxes[bounded]).abs()
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
        rows = batch.rows if packed else [scene[self.step % 2 :: 2] for scene in batch.rows]
        text = text_batch(rows, seen.shape[1], packed)
        features = model.multi_modal_projector(seen).repeat_interleave(text.repeats, dim=0)
        decoder = model.language_model
        embeddings = torch.cat((features, decoder.model.embed(text.ids)), dim=1)
        masks = [text.mask] * self.config.text_config.num_hidden_layers
        hidden = decoder.model(embeddings, text.positions, masks)[:, seen.shape[1] :]
        asked = text.labels != -100
        losses = F.cross_entropy(
            decoder.logits(hidden[asked]).float(), text.labels[asked], reduction="none"
        )
        for i, task in enumerate(TASKS):
            of_task = text.tasks[asked] == i
            report[task] = (losses.detach()[of_task].sum().item(), int(of_task.sum()))
        return loss + mean_over_all(losses), report

    def start(self, model: PaliGemmaForConditionalGeneration) -> None:
        """Takes over a trained model's weights; the patch head stays new."""
        self.model.load_state_dict(model.state_dict())
        self._copy_weights()

    def start_vision_tower(self, dual: str | Path) -> None:
        """Takes over the vision tower of a dual encoder; see `initialise_vision_tower`."""
        initialise_vision_tower(self.model, dual)
        self._copy_weights()

    def _copy_weights(self) -> None:
        with torch.no_grad():
            torch._foreach_copy_(list(self.compute.parameters()), list(self.weights.parameters()))

    def save(self, folder: Path) -> None:
        """Writes `folder` whole or not at all; what was there is replaced."""
        with new_checkpoint(folder) as new:
            weights = dict(self.weights.named_parameters())  # tied weights once
            save_file({k: p.detach() for k, p in weights.items()}, new / "weights.safetensors")
            torch.save([o.state_dict() for o, _ in self.optimizers], new / "optimizers.pt")
            state = {"step": self.step, "elapsed": self.elapsed, "recipe": self.recipe.to_dict()}
            (new / "state.json").write_text(json.dumps(state), encoding="utf-8")

    def resume(self, folder: Path) -> None:
        """Goes on from what `save` wrote.

        Raises CheckpointError where it was written with another recipe: the losses would be those
        of neither.
        """
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        check_same(folder, state["recipe"], self.recipe.to_dict())
        weights = load_file(folder / "weights.safetensors")
        with torch.no_grad():
            for name, parameter in self.weights.named_parameters():
                parameter.copy_(weights[name])
        self._copy_weights()
        states = torch.load(folder / "optimizers.pt", weights_only=True)
        for (optimizer, _), past in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(past)
        self.step, self.elapsed = state["step"], state["elapsed"]
