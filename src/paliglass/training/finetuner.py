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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from paliglass.data.rows import Batch
from paliglass.errors import PaliglassError
from paliglass.fast import Int4Linear, Int8Embedding, Int8Linear, is_accelerated
from paliglass.layers.losses import IGNORE
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.training import sharding
from paliglass.training.attention import choose_attention
from paliglass.training.loop import StepSums, Trainer
from paliglass.training.lora import add_lora, continue_lora, settings_of
from paliglass.training.optimizers import Optimizers
from paliglass.training.recipes import FinetuneRecipe, Part

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["PARTS", "QUANTIZED", "Finetuner", "SuffixLoss", "checkpoint_layers"]

QUANTIZED = (
    "a quantized model cannot be trained, nor adapters be merged into it: fine-tune the one that "
    "it was made from, with --lora and --quantize int8 to spare memory, and quantize the result"
)
ADAPTERS_ALONE = "of a model in int8 adapters alone can learn: --quantize int8 needs --lora"
SHORT = 512  # tokens of a picture up to which all attention weights are kept for the backward pass


# What learns, by the parameters' names.
PARTS: dict[Part, Callable[[str], bool]] = {
    "all": lambda name: True,
    "decoder": lambda name: not name.startswith("vision_tower."),
    "attention": lambda name: name.startswith("language_model.") and ".self_attn." in name,
    "projector": lambda name: name.startswith("multi_modal_projector."),
}


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


class Finetuner(Trainer[Batch]):
    """A model in fine-tuning: what learns of it, the optimizer, the step.

    What learns is float32, and bfloat16 only while it computes; frozen weights keep their dtype,
    or are float32 too where that is computed in. Beside frozen int8 matrices (`quantize` with
    `fast=False`) adapters learn: gradients flow through the matrices (QLoRA, arXiv 2305.14314).

    Args:
        shard: each process holds a part of weights, gradients and optimizer (see `sharding`).
        adapter: a folder with adapters in peft's format, which learn on; the recipe's rank and
            scale are then theirs.
        data: tells the run's data from others, for a resumed run to agree with.

    Raises PaliglassError where rows cannot be shared by the processes, the recipe has no end, the
    model is in int8 and more than adapters is to learn, or it was accelerated.
    """

    recipe: FinetuneRecipe

    def __init__(
        self,
        model: PaliGemmaForConditionalGeneration,
        recipe: FinetuneRecipe,
        accelerator: Accelerator,
        shard: bool = False,
        adapter: Path | None = None,
        data: str = "",
    ) -> None:
        super().__init__()
        if adapter is not None:
            recipe = settings_of(adapter, recipe)
        self.recipe = recipe = recipe.complete()
        share = accelerator.num_processes * recipe.accumulate
        if recipe.batch_size % share:
            raise PaliglassError(
                f"a batch of {recipe.batch_size} rows cannot be shared by {share} (processes × "
                "--accumulate); choose a multiple"
            )
        quantized = [module for module in model.modules() if isinstance(module, Int8Linear)]
        self.is_quantized = bool(quantized)
        if quantized and (shard or not recipe.lora):
            raise PaliglassError(ADAPTERS_ALONE + (", and no --shard" if shard else ""))
        if any(isinstance(module, Int4Linear) for module in model.modules()):
            raise PaliglassError("int4 matrices have no gradients: take --quantize int8")
        if any(module.packed is not None or module.matrix is not None for module in quantized):
            raise PaliglassError("packed int8 matrices have no gradients; load with fast=False")
        if is_accelerated(model):
            raise PaliglassError("an accelerated model cannot be trained; load with fast=False")
        self.model, self.accelerator, self.data = model, accelerator, data
        self.rows, self.accumulate = recipe.batch_size // share, recipe.accumulate
        torch.manual_seed(recipe.seed)
        if recipe.precision != "bf16" and not shard:
            model.float()
            for module in quantized:
                if isinstance(module, Int8Embedding):
                    module.dtype = torch.float32
        if adapter is not None:
            continue_lora(model, adapter, recipe.lora_dropout)
        elif recipe.lora:
            assert recipe.lora_alpha is not None
            add_lora(model, recipe.lora, recipe.lora_alpha, recipe.lora_dropout, recipe.train)
        else:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(PARTS[recipe.train](name))
                if parameter.requires_grad and not shard:
                    parameter.data = parameter.data.float()
        if accelerator.device.type != "cpu" or model.config.num_image_tokens <= SHORT:
            choose_attention(model, accelerator.device)
        if recipe.checkpointing:
            checkpoint_layers(model)
        loss = SuffixLoss(model.train(), recipe.label_smoothing)
        if shard:
            sharding.shard(loss, model, recipe.precision)
        self.loss = loss if shard else accelerator.prepare(loss)
        self.weights = self.learning = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        self.optimizers = Optimizers(self.learning, weight_decay=recipe.weight_decay)
        # Of the best look at what was held out: score and −loss; and the looks since.
        self.validation: dict[str, Any] = {"best": [-1.0, 0.0], "waited": 0}

    @property
    def rate(self) -> float:
        """The next step's learning rate."""
        recipe = self.recipe
        assert recipe.steps is not None
        assert recipe.learning_rate is not None
        rising = max(1, round(recipe.warm_up * recipe.steps))
        if self.step < rising:
            return recipe.learning_rate * (self.step + 1) / rising
        falling = (self.step - rising) / max(1, recipe.steps - rising)
        return recipe.learning_rate * (1 + math.cos(math.pi * falling)) / 2

    def train_step(self, group: Sequence[Batch]) -> StepSums:
        """One update from `accumulate` batches, of each this process's share."""
        accelerator, recipe = self.accelerator, self.recipe
        group = [{k: v.to(accelerator.device) for k, v in batch.items()} for batch in group]
        # Dropout of step n is that of step n, whatever came before it.
        torch.manual_seed(recipe.seed + 1_000_003 * self.step + accelerator.process_index)
        own = torch.stack([(b["labels"][:, 1:] != IGNORE).sum() for b in group]).sum()
        tokens = accelerator.reduce(own, "sum")
        total = torch.zeros((), device=accelerator.device)
        for number, batch in enumerate(group, 1):
            with self.synchronized(self.loss, last=number == len(group)):
                loss = self.loss(batch)
                # Processes' gradients are averaged; they are to be summed.
                accelerator.backward(loss * accelerator.num_processes / tokens)
            total += loss.detach()
        sharding.clip_gradients(list(self.learning.values()), self.step + 1)
        self.optimizers.step(self.rate)
        self.step += 1
        return {"loss": (total.item(), own.item())}

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

    def settings(self) -> dict[str, Any]:
        quantize = {"quantize": "int8"} if self.is_quantized else {}
        return {**super().settings(), "data": self.data, **quantize}

    def state(self) -> dict[str, Any]:
        return {**super().state(), "validation": self.validation}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.validation = state["validation"]
        if not self.stopped and state["ended"]:  # more steps: patience begins anew
            self.validation["waited"] = 0


def checkpoint_layers(model: PaliGemmaForConditionalGeneration) -> None:
    """Keeps of each layer its input only; the backward pass computes the rest once more."""
    for layer in sharding.transformer_layers(model):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
