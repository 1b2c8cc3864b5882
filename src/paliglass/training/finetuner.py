"""A model in fine-tuning: its recipe, a step, its checkpoints.

- the loss is the suffix's alone; prefix and picture see each other fully (prefix-LM)
- logits are computed where a suffix token is to be predicted, and nowhere else: of a row of 270
  tokens that is ten, of a table of 257 152 words
- on accelerate: mixed precision, gradient accumulation, several processes under `torchrun`. A
  step's loss is the mean over the suffix tokens of *all* its rows, whatever batches and processes
  they lie in, so neither changes the result
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from paliglass.errors import PaliglassError
from paliglass.layers.losses import IGNORE
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.training import sharding
from paliglass.training.attention import use_plain_attention
from paliglass.training.lora import add_lora
from paliglass.training.runs import Precision

if TYPE_CHECKING:
    from accelerate import Accelerator

SHORT = 512  # tokens of a picture up to which all attention weights are kept for the backward pass

Part = Literal["all", "decoder", "attention", "projector"]
Batch = dict[str, Tensor]

# What learns, by the parameters' names.
PARTS: dict[Part, Callable[[str], bool]] = {
    "all": lambda name: True,
    "decoder": lambda name: not name.startswith("vision_tower."),
    "attention": lambda name: name.startswith("language_model.") and ".self_attn." in name,
    "projector": lambda name: name.startswith("multi_modal_projector."),
}


@dataclass(frozen=True)
class FinetuneRecipe:
    """The run's settings.

    part: what learns; with `lora_rank` above 0, the layers that get adapters ("all", "decoder" or
    "attention"). batch_size: rows in a step, over all processes and all of `accumulate`'s parts.
    learning_rate: the peak, after `warm_up` (share of the steps), whence it falls as a cosine to 0.
    """

    steps: int
    batch_size: int = 8
    accumulate: int = 1
    learning_rate: float = 2e-5
    warm_up: float = 0.05
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    part: Part = "all"
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    precision: Precision = "bf16"
    checkpointing: bool = False
    seed: int = 0


class SuffixLoss(nn.Module):
    """A model with its loss on suffixes, as one module: what DistributedDataParallel wraps."""

    def __init__(self, model: PaliGemmaForConditionalGeneration, label_smoothing: float) -> None:
        super().__init__()
        self.model, self.label_smoothing = model, label_smoothing

    def forward(self, batch: Batch) -> Tensor:
        """The sum over the batch's suffix tokens, in nats."""
        labels = batch["labels"][:, 1:]
        hidden = self.model.prefill(
            batch["input_ids"],
            batch["pixel_values"],
            batch["attention_mask"],
            batch["token_type_ids"],
        )
        asked = labels != IGNORE
        logits = self.model.language_model.logits(hidden[:, :-1][asked]).float()
        return F.cross_entropy(
            logits, labels[asked], reduction="sum", label_smoothing=self.label_smoothing
        )


class Finetuner:
    """A model in fine-tuning: what learns of it, the optimizer, the step.

    What learns is float32, and bfloat16 only while it computes; frozen weights keep their dtype,
    or are float32 too with `precision="fp32"`.

    shard: each process holds a part of weights, gradients and optimizer (see `sharding`).
    """

    def __init__(
        self,
        model: PaliGemmaForConditionalGeneration,
        recipe: FinetuneRecipe,
        accelerator: Accelerator,
        shard: bool = False,
    ) -> None:
        share = accelerator.num_processes * recipe.accumulate
        if recipe.batch_size % share:
            raise PaliglassError(
                f"a batch of {recipe.batch_size} rows cannot be shared by {share} (processes × "
                "--accumulate); choose a multiple"
            )
        if any(buffer.dtype == torch.int8 for buffer in model.buffers()):
            raise PaliglassError(
                "a model in int8 cannot be trained: fine-tune the one that it was made from, and "
                "quantise the result"
            )
        self.model, self.recipe, self.accelerator = model, recipe, accelerator
        self.rows = recipe.batch_size // share
        torch.manual_seed(recipe.seed)
        if recipe.precision == "fp32" and not shard:
            model.float()
        if recipe.lora_rank:
            targets = recipe.part
            add_lora(model, recipe.lora_rank, recipe.lora_alpha, recipe.lora_dropout, targets)
        else:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(PARTS[recipe.part](name))
                if parameter.requires_grad and not shard:
                    parameter.data = parameter.data.float()
        if accelerator.device.type == "cpu" and model.config.num_image_tokens <= SHORT:
            use_plain_attention(model)
        if recipe.checkpointing:
            checkpoint_layers(model)
        loss = SuffixLoss(model.train(), recipe.label_smoothing)
        if shard:
            sharding.shard(loss, model, recipe.precision)
        self.loss = loss if shard else accelerator.prepare(loss)
        self.learning = {n: p for n, p in model.named_parameters() if p.requires_grad}
        matrices = [p for p in self.learning.values() if p.ndim > 1]
        vectors = [p for p in self.learning.values() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": recipe.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            fused=not shard,
        )
        self.step = 0

    @property
    def progress(self) -> float:
        """How much of the run is over, 0 … 1."""
        return self.step / self.recipe.steps

    @property
    def rate(self) -> float:
        """The next step's learning rate."""
        recipe = self.recipe
        rising = max(1, round(recipe.warm_up * recipe.steps))
        if self.step < rising:
            return recipe.learning_rate * (self.step + 1) / rising
        falling = (self.step - rising) / max(1, recipe.steps - rising)
        return recipe.learning_rate * (1 + math.cos(math.pi * falling)) / 2

    def train_step(self, group: Sequence[Batch]) -> float:
        """One update from `accumulate` batches, of each this process's share. Returns the loss."""
        accelerator, recipe = self.accelerator, self.recipe
        group = [{k: v.to(accelerator.device) for k, v in batch.items()} for batch in group]
        # Dropout of step n is that of step n, whatever came before it.
        torch.manual_seed(recipe.seed + 1_000_003 * self.step + accelerator.process_index)
        tokens = torch.stack([(b["labels"][:, 1:] != IGNORE).sum() for b in group]).sum()
        tokens = accelerator.reduce(tokens, "sum")
        total = torch.zeros((), device=accelerator.device)
        for number, batch in enumerate(group, 1):
            last = number == len(group)
            alone = last or accelerator.num_processes == 1
            with nullcontext() if alone else sharding.no_sync(self.loss):
                loss = self.loss(batch)
                # Processes' gradients are averaged; they are to be summed.
                accelerator.backward(loss * accelerator.num_processes / tokens)
            total += loss.detach()
        sharding.clip_gradients(list(self.learning.values()), self.step + 1)
        for settings in self.optimizer.param_groups:
            settings["lr"] = self.rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return float(accelerator.reduce(total, "sum") / tokens)

    @torch.no_grad()
    def mean_loss(self, batches: Iterator[Batch]) -> float:
        """Nats per suffix token, without an update and without dropout."""
        self.loss.eval()
        total = tokens = 0.0
        for batch in batches:
            batch = {k: v.to(self.accelerator.device) for k, v in batch.items()}
            total += float(self.loss(batch))
            tokens += int((batch["labels"][:, 1:] != IGNORE).sum())
        self.loss.train()
        return total / max(tokens, 1)

    def save(self, folder: Path, extra: dict[str, Any]) -> None:
        """Writes `folder` whole or not at all; what was there is replaced.

        To be called by every process.
        """
        about = {"step": self.step, "recipe": asdict(self.recipe), **extra}
        sharding.save(folder, self.accelerator, self.learning, [self.optimizer], about)

    def resume(self, folder: Path) -> dict[str, Any]:
        """Goes on from what `save` wrote, sharded or not; returns its `extra`.

        Raises CheckpointError where it was written with another recipe.
        """
        state = sharding.resume(folder, self.learning, [self.optimizer], asdict(self.recipe))
        self.step = state.pop("step")
        return state


def checkpoint_layers(model: PaliGemmaForConditionalGeneration) -> None:
    """Keeps of each layer its input only; the backward pass computes the rest once more."""
    for layer in sharding.transformer_layers(model):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
