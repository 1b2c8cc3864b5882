"""Contrastive training: a dual encoder learns which picture and which text belong together.

- on accelerate: mixed precision, gradient accumulation, several processes under `torchrun`
- which pairs a step sees follows from its number alone, and checkpoints hold all else (weights,
  optimizers, random state): a resumed run has the very losses of an unbroken one
- the batch is the task: a picture's text is to be told from the batch's other texts. Processes
  share one batch, whose every picture meets every text (see `layers.losses`). Accumulation averages
  the losses of whole batches, one after the other: it makes a step's gradient steadier, but no
  pair meets those of another batch, so it is no substitute for a large one
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn

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
from paliglass.errors import PaliglassError
from paliglass.training.attention import use_plain_attention
from paliglass.training.muon import Muon
from paliglass.training.runs import (
    Precision,
    Screen,
    check_same,
    cut_log,
    largest,
    new_checkpoint,
    stop_signals,
    stopped_early,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

Encoder = Literal["vit", "resnet"]
TextEncoder = Literal["transformer", "cbow"]
LossName = Literal["clip", "siglip"]

ENDLESS = 10**9  # steps


@dataclass(frozen=True)
class ContrastiveRecipe:
    """The run's settings. It ends after `steps` or `minutes`, whichever comes first.

    batch_size: pairs that are compared with each other, over all processes; accumulate: such
    batches in a step; learning_rate: the peak, after `warm_up` steps, whence it falls as a cosine
    to 0; optimizer: AdamW, or Muon (orthogonalised momentum, arXiv 2502.16982) for the hidden
    layers and AdamW for the rest. In two minutes of one core, 64 pairs a step, a ViT with Muon told
    17 % of a batch's pairs (rate 2e-3), with AdamW 5 % (1e-3).
    """

    steps: int = ENDLESS
    minutes: float = math.inf
    batch_size: int = 256
    accumulate: int = 1
    optimizer: Literal["adamw", "muon"] = "muon"
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warm_up: int = 100
    precision: Precision = "bf16"
    seed: int = 0


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


def shipped_tokenizer() -> Tokenizer:
    """The mini model's: it was trained on what the picture world says."""
    return Tokenizer.from_file(str(files("paliglass") / "mini" / "tokenizer.json"))


def text_length(tokenizer: Tokenizer, source: PairSource) -> int:
    """Tokens that all but one in a thousand texts need, the end included, in multiples of 8.

    At least 16 and at most 64, as in SigLIP; what is longer is cut.
    """
    texts = list(islice(source.texts(), 20_000))
    lengths = sorted(len(entry.ids) + 1 for entry in tokenizer.encode_batch(texts))
    needed = lengths[(len(lengths) - 1) * 999 // 1000]
    return min(max(16, -(-needed // 8) * 8), 64)


class ContrastiveTrainer:
    """A dual encoder in training: weights, optimizers, the clock."""

    def __init__(
        self, config: ContrastiveConfig, recipe: ContrastiveRecipe, accelerator: Accelerator
    ) -> None:
        if recipe.batch_size % accelerator.num_processes:
            raise PaliglassError(
                f"a batch of {recipe.batch_size} pairs cannot be shared by "
                f"{accelerator.num_processes} processes; choose a multiple"
            )
        self.recipe, self.accelerator = recipe, accelerator
        torch.manual_seed(recipe.seed)
        model = ContrastiveModel(config).train()
        if accelerator.device.type == "cpu":
            use_plain_attention(model)
        self.wrapped = accelerator.prepare(model)
        self.model: ContrastiveModel = accelerator.unwrap_model(self.wrapped)
        self.optimizers = Optimizers(self.model, recipe)
        self.step = 0
        self.elapsed = 0.0  # seconds, over all sittings

    @property
    def progress(self) -> float:
        """How much of the run is over, 0 … 1."""
        recipe = self.recipe
        return min(1.0, max(self.step / recipe.steps, self.elapsed / (60 * recipe.minutes)))

    @property
    def rate(self) -> float:
        """The next step's learning rate."""
        recipe = self.recipe
        warm = min(1.0, (self.step + 1) / max(recipe.warm_up, 1))
        return recipe.learning_rate * warm * (1 + math.cos(math.pi * self.progress)) / 2

    def train_step(self, group: list[PairBatch]) -> dict[str, float]:
        """One update from `accumulate` batches, of each this process's share.

        Returns the mean loss and the share of this process's pictures whose own text, of those
        beside it here, is the nearest.
        """
        accelerator, losses, right = self.accelerator, [], []
        for batch in group:
            with accelerator.accumulate(self.wrapped):
                output = self.wrapped(
                    pixel_values(batch.pixels.to(accelerator.device), torch.float32),
                    batch.input_ids.to(accelerator.device),
                    batch.attention_mask.to(accelerator.device),
                    distributed=accelerator.num_processes > 1,
                )
                loss = output.loss
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
                    # A NaN must stop the run here, before it reaches weights and checkpoint.
                    if not math.isfinite(norm):
                        raise PaliglassError(
                            f"step {self.step + 1}: the gradient is not finite; a smaller "
                            "--learning-rate or a longer --warm-up may help"
                        )
                    self.optimizers.step(self.rate)
            losses.append(loss.detach())
            own = torch.arange(len(batch.texts), device=loss.device)
            right.append((output.logits.detach().argmax(-1) == own).float().mean())
        self.step += 1
        report = torch.stack((torch.stack(losses).mean(), torch.stack(right).mean()))
        report = accelerator.reduce(report, "mean")
        return {"loss": report[0].item(), "accuracy": report[1].item()}

    def save(self, folder: Path) -> None:
        """Writes `folder` whole or not at all; what was there is replaced."""
        with new_checkpoint(folder) as new:
            state = {name: t.detach().contiguous() for name, t in self.model.state_dict().items()}
            save_file(state, new / "weights.safetensors")
            torch.save([o.state_dict() for o in self.optimizers.all], new / "optimizers.pt")
            save_file({"cpu": torch.get_rng_state()}, new / "random.safetensors")
            data = {
                "step": self.step,
                "elapsed": self.elapsed,
                "recipe": asdict(self.recipe),
                "config": self.model.config.to_dict(),
            }
            (new / "state.json").write_text(json.dumps(data), encoding="utf-8")

    def resume(self, folder: Path) -> None:
        """Goes on from what `save` wrote.

        Raises CheckpointError where it was written with another recipe or model: the losses would
        be those of neither.
        """
        data = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        check_same(
            folder,
            {**data["recipe"], **data["config"]},
            {**asdict(self.recipe), **self.model.config.to_dict()},
        )
        weights = load_file(folder / "weights.safetensors")
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                tensor.copy_(weights[name])
        states = torch.load(folder / "optimizers.pt", weights_only=True)
        for optimizer, past in zip(self.optimizers.all, states, strict=True):
            optimizer.load_state_dict(past)
        torch.set_rng_state(load_file(folder / "random.safetensors")["cpu"])
        self.step, self.elapsed = data["step"], data["elapsed"]


class Optimizers:
    """AdamW, and Muon for what maps one hidden layer to the next, convolutions too.

    Muon wants matrices: a kernel of C_out × C_in × k × k is one of C_out × (C_in · k²). Such a
    matrix is another view of the kernel's own memory.
    """

    def __init__(self, model: nn.Module, recipe: ContrastiveRecipe) -> None:
        self.parameters = list(model.parameters())
        self.flat: list[tuple[nn.Parameter, nn.Parameter]] = []  # a kernel and its view
        groups: dict[str, list[nn.Parameter]] = {"muon": [], "decay": [], "free": []}
        for name, parameter in model.named_parameters():
            hidden = ".layers." in name or ".blocks." in name
            if parameter.ndim < 2:
                # Norms, biases and the temperature are not drawn towards 0.
                groups["free"].append(parameter)
            elif recipe.optimizer == "adamw" or not hidden:
                groups["decay"].append(parameter)
            elif parameter.ndim == 2:
                groups["muon"].append(parameter)
            else:
                view = nn.Parameter(parameter.detach().flatten(1))
                self.flat.append((parameter, view))
                groups["muon"].append(view)
        decay = recipe.weight_decay
        dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
        self.all: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                [
                    {"params": groups["decay"], "weight_decay": decay},
                    {"params": groups["free"], "weight_decay": 0.0},
                ],
                betas=(0.9, 0.98),
                fused=True,
            )
        ]
        if groups["muon"]:
            self.all.append(Muon(groups["muon"], decay, dtype))

    def step(self, rate: float) -> None:
        """One update, after which gradients are gone."""
        for kernel, view in self.flat:
            view.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        for parameter in self.parameters:
            parameter.grad = None


def train(
    trainer: ContrastiveTrainer,
    source: PairSource,
    processor: ContrastiveProcessor,
    out: Path,
    *,
    workers: int = 0,
    log_every: int = 20,
    checkpoint_seconds: float = 120.0,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Trains to the end, with lines of `log.jsonl`, a progress bar at a terminal, and checkpoints.

    Ctrl-C ends it after the step at hand, with a checkpoint: KeyboardInterrupt then says how to go
    on.

    Args:
        log_every, checkpoint_seconds: how often; the last step has both.
        clock: what the recipe's minutes are counted by. `time.process_time` makes runs that share a
            machine with others comparable.
    """
    accelerator, recipe = trainer.accelerator, trainer.recipe
    main = accelerator.is_main_process
    if main:
        cut_log(out / "log.jsonl", trainer.step)
    data = batches(
        source,
        processor,
        recipe.batch_size,
        recipe.seed,
        trainer.step * recipe.accumulate,
        recipe.steps * recipe.accumulate,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
        workers=workers,
    )
    before, started = trainer.elapsed, clock()
    saved = logged = started
    skipped: dict[str, None] = {}
    sums: dict[str, float] = {}
    count = 0
    with stop_signals() as stop, Screen(trainer.progress, quiet=not main) as screen:
        while trainer.progress < 1:
            group = list(islice(data, recipe.accumulate))
            for name, value in trainer.train_step(group).items():
                sums[name] = sums.get(name, 0.0) + value
            count += 1
            for message in (m for batch in group for m in batch.skipped if m not in skipped):
                skipped[message] = None
                screen.say(f"skipped: {message}")
            now = clock()
            elapsed, stopped = largest(accelerator, before + now - started, bool(stop))
            trainer.elapsed = elapsed
            if trainer.step % log_every == 0 or trainer.progress == 1:
                line = {
                    "step": trainer.step,
                    "seconds": round(trainer.elapsed, 2),
                    "progress": round(trainer.progress, 4),
                    **{name: total / count for name, total in sums.items()},
                    "scale": trainer.model.scale.item(),
                    "rate": trainer.rate,
                    "pairs_per_second": round(
                        count * recipe.accumulate * recipe.batch_size / (now - logged), 1
                    ),
                }
                if main:
                    with (out / "log.jsonl").open("a", encoding="utf-8") as log:
                        print(json.dumps(line), file=log)
                if accelerator.trackers:
                    accelerator.log({k: v for k, v in line.items() if k != "step"}, trainer.step)
                screen.show(
                    trainer.progress,
                    f"step {trainer.step}  loss {line['loss']:.3f}  "
                    f"{line['pairs_per_second']:.0f} pairs/s",
                )
                sums, count, logged = {}, 0, now
            if now - saved >= checkpoint_seconds or stopped or trainer.progress == 1:
                if main:
                    trainer.save(out / "checkpoint")
                saved = clock()
            if stopped:
                break
    if skipped and main:
        screen.say(f"{len(skipped)} broken pictures were skipped")
    if trainer.progress < 1:
        raise stopped_early(out / "checkpoint", trainer.step)
