"""Contrastive training: a dual encoder learns which picture and which text belong together.

- on accelerate: mixed precision, gradient accumulation, several processes under `torchrun`
- the batch is the task: a picture's text is to be told from the batch's other texts. Processes
  share one batch, whose every picture meets every text (see `layers.losses`). Accumulation averages
  the losses of whole batches, one after the other: it makes a step's gradient steadier, but no
  pair meets those of another batch, so it is no substitute for a large one
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer

from paliglass.checkpoints.folder import read_config
from paliglass.checkpoints.hub import locate
from paliglass.config import SigLipConfig
from paliglass.contrastive.config import (
    CbowConfig,
    ContrastiveConfig,
    ResNetConfig,
    TextTransformerConfig,
)
from paliglass.contrastive.modeling_contrastive import ContrastiveModel
from paliglass.contrastive.pairs import PairBatch, PairSource, batches, pixel_values
from paliglass.contrastive.processing import ContrastiveProcessor
from paliglass.contrastive.recipe import ContrastiveRecipe, Encoder, LossName, TextEncoder
from paliglass.errors import PaliglassError
from paliglass.training import loop
from paliglass.training.attention import choose_attention
from paliglass.training.loop import StepSums, Trainer
from paliglass.training.optimizers import Optimizers
from paliglass.training.runs import Run
from paliglass.training.sharding import clip_gradients

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["ContrastiveTrainer", "dual_config", "text_length", "train"]


def dual_config(
    image: Encoder,
    text: TextEncoder,
    loss: LossName,
    vocab_size: int,
    image_size: int = 128,
    text_length: int = 32,
) -> ContrastiveConfig:
    """Small encoders of like size: the mini model's own vision tower, or a ResNet; width 192."""
    vision = read_config(locate("mini")).vision_config
    tower: SigLipConfig | ResNetConfig = (
        SigLipConfig(**{**asdict(vision), "image_size": image_size})
        if image == "vit"
        else ResNetConfig(image_size=image_size)
    )
    width = vision.hidden_size
    words: TextTransformerConfig | CbowConfig = (
        TextTransformerConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=vision.intermediate_size,
            num_hidden_layers=3,
            num_attention_heads=vision.num_attention_heads,
            max_position_embeddings=text_length,
        )
        if text == "transformer"
        else CbowConfig(
            vocab_size=vocab_size, hidden_size=width, max_position_embeddings=text_length
        )
    )
    if loss == "clip" or isinstance(tower, ResNetConfig) or isinstance(words, CbowConfig):
        return ContrastiveConfig(tower, words, width, loss)
    return ContrastiveConfig.like_siglip(tower, words)  # which transformers can load


def text_length(tokenizer: Tokenizer, source: PairSource) -> int:
    """Tokens that all but one in a thousand texts need, the end included, in multiples of 8.

    At least 16 and at most 64, as in SigLIP; what is longer is cut.
    """
    texts = list(islice(source.texts(), 20_000))
    lengths = sorted(len(entry.ids) + 1 for entry in tokenizer.encode_batch(texts))
    needed = lengths[(len(lengths) - 1) * 999 // 1000]
    return min(max(16, -(-needed // 8) * 8), 64)


class ContrastiveTrainer(Trainer[PairBatch]):
    """A dual encoder in training: weights, optimizers, the clock.

    Raises PaliglassError where a batch cannot be shared by the processes.
    """

    recipe: ContrastiveRecipe

    def __init__(
        self, config: ContrastiveConfig, recipe: ContrastiveRecipe, accelerator: Accelerator
    ) -> None:
        super().__init__()
        if recipe.batch_size % accelerator.num_processes:
            raise PaliglassError(
                f"a batch of {recipe.batch_size} pairs cannot be shared by "
                f"{accelerator.num_processes} processes; choose a multiple"
            )
        self.recipe, self.accelerator = recipe, accelerator
        self.rows = recipe.batch_size // accelerator.num_processes
        self.accumulate = recipe.accumulate
        torch.manual_seed(recipe.seed)
        model = ContrastiveModel(config).train()
        choose_attention(model, accelerator.device)
        self.wrapped = accelerator.prepare(model)
        self.model: ContrastiveModel = accelerator.unwrap_model(self.wrapped)
        self.weights = self.model.state_dict()  # the batch norms' averages too
        parameters = dict(self.model.named_parameters())
        self.parameters = list(parameters.values())
        use_muon = recipe.optimizer == "muon"
        self.optimizers = Optimizers(
            parameters,
            lambda name: use_muon and (".layers." in name or ".blocks." in name),
            weight_decay=recipe.weight_decay,
            muon_decay=recipe.weight_decay,
            betas=(0.9, 0.98),
            dtype=torch.bfloat16 if recipe.precision == "bf16" else torch.float32,
        )

    @property
    def rate(self) -> float:
        """The next step's learning rate."""
        recipe = self.recipe
        warm = min(1.0, (self.step + 1) / max(recipe.warm_up_steps, 1))
        return recipe.learning_rate * warm * (1 + math.cos(math.pi * self.progress)) / 2

    def train_step(self, group: Sequence[PairBatch]) -> StepSums:
        """One update from `accumulate` batches, of each this process's share.

        Reports the loss, the share of this process's pictures whose own text, of those beside it
        here, is the nearest, and the temperature.
        """
        accelerator = self.accelerator
        losses, right = [], []
        for number, batch in enumerate(group, 1):
            with self.synchronized(self.wrapped, last=number == len(group)):
                output = self.wrapped(
                    pixel_values(batch.pixels.to(accelerator.device), torch.float32),
                    batch.input_ids.to(accelerator.device),
                    batch.attention_mask.to(accelerator.device),
                    distributed=accelerator.num_processes > 1,
                )
                accelerator.backward(output.loss / len(group))
            losses.append(output.loss.detach())
            own = torch.arange(len(batch.texts), device=accelerator.device)
            right.append((output.logits.detach().argmax(-1) == own).float().mean())
        # A NaN must stop the run here, before it reaches weights and checkpoint.
        clip_gradients(self.parameters, self.step + 1)
        self.optimizers.step(self.rate)
        self.step += 1
        count = len(group)
        return {
            "loss": (torch.stack(losses).sum().item(), count),
            "accuracy": (torch.stack(right).sum().item(), count),
            "scale": (self.model.scale.item(), 1),
        }

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), **self.model.config.to_dict()}


def train(
    trainer: ContrastiveTrainer,
    source: PairSource,
    processor: ContrastiveProcessor,
    run: Run,
    *,
    workers: int = 0,
    log_every: int = 10,
    checkpoint_seconds: float = 120.0,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Trains to the end; see `training.loop.train`."""
    recipe, accelerator = trainer.recipe, trainer.accelerator
    data = batches(
        source,
        processor,
        recipe.batch_size,
        recipe.seed,
        trainer.step * recipe.accumulate,
        None if recipe.steps is None else recipe.steps * recipe.accumulate,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
        workers=workers,
    )
    loop.train(
        trainer,
        ((batch, batch.skipped) for batch in data),
        run,
        log_every=log_every,
        checkpoint_seconds=checkpoint_seconds,
        clock=clock,
    )
