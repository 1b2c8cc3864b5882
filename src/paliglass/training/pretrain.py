"""Multimodal pre-training from nothing, on the picture world: how the shipped mini model is made.

    python -m paliglass.training.pretrain --out runs/mini --minutes 60

- first the vision tower alone learns to name what covers each patch and to bound it (a linear head
  that is dropped afterwards); then prompts, several in a row behind their picture; at the end a row
  for each prompt, as at inference (see `batches`)
- hidden matrices are updated by Muon (orthogonalised momentum, arXiv 2502.16982), the rest by
  AdamW; rates rise, stay, and fall to zero
- forward and backward run in bfloat16, three times as fast on a CPU that has it; the optimizer
  keeps float32 weights, as updates are finer than bfloat16's steps
- scene i of a run is always the same one, so a resumed run sees what an unbroken one sees
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from paliglass.config import GemmaConfig, PaliGemmaConfig, SigLipConfig
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.ops.attention import Attention
from paliglass.processing_paligemma import PaliGemmaProcessor
from paliglass.training.export import export
from paliglass.training.batches import TASKS, SceneBatch, SceneDataset, pixel_values, text_batch
from paliglass.training.tokenizer import train_tokenizer, training_texts

MINI = PaliGemmaConfig(
    SigLipConfig(
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=128,
        patch_size=16,
    ),
    GemmaConfig(
        vocab_size=3201,
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=48,
        max_position_embeddings=512,
    ),
    image_token_index=3200,
)


CHECKPOINT_SECONDS = 240


@dataclass(frozen=True)
class Recipe:
    """The run's settings. It ends at `steps` or after `minutes`, whichever is first reached."""

    minutes: float = 60.0
    steps: int = 10**9
    seed: int = 0
    scenes: int = 32  # per step
    prompts: int = 8  # per scene, packed; half as many in rows of their own
    looking: float = 0.15  # share of the run for the vision tower alone
    separate: float = 0.2  # share at the end with a row for each prompt
    muon_rate: float = 5e-3
    adam_rate: float = 2e-3
    weight_decay: float = 0.05
    warm_up: int = 100  # steps
    decay: float = 0.5  # share of the run in which rates fall to zero
    patch_weight: float = 0.5  # of the patch head's loss
    dtype: torch.dtype = torch.bfloat16


class MultiQueryAttention(Attention):
    """`Attention` for one key/value head: the heads' queries in one matrix product.

    On a CPU forward and backward take half the fused kernel's time at these lengths.
    """

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Shapes as in `attend_reference`, with K = 1."""
        heads = query.shape[1]
        scores = query.flatten(1, 2) @ key[:, 0].transpose(-1, -2) * self.scale  # B HT S
        scores = scores.unflatten(1, (heads, -1))
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        output = scores.softmax(-1).flatten(1, 2) @ value[:, 0]
        return output.unflatten(1, (heads, -1)).transpose(1, 2).flatten(2)


class Pretrainer:
    """A model in training: weights, optimizers, the clock.

    Args:
        config: of a model with one key/value head.
        num_classes: what a patch can show, the ground included.
    """

    def __init__(self, config: PaliGemmaConfig, num_classes: int, recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.config = config
        patch_head = nn.Linear(config.vision_config.hidden_size, num_classes + 4)
        # The float32 weights, and the copy that computes.
        self.weights = nn.ModuleDict(
            {"model": PaliGemmaForConditionalGeneration(config), "patch_head": patch_head}
        )
        self.compute = copy.deepcopy(self.weights).to(recipe.dtype)
        for layer in self.compute["model"].language_model.model.layers:
            attention = layer.self_attn.attention
            layer.self_attn.attention = MultiQueryAttention(attention.scale)
        matrices, others = [], []
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
        model: PaliGemmaForConditionalGeneration = self.weights["model"]  # type: ignore[assignment]
        return model

    @property
    def progress(self) -> float:
        """How much of the run is over, 0 … 1."""
        recipe = self.recipe
        return min(1.0, max(self.step / recipe.steps, self.elapsed / (60 * recipe.minutes)))

    def train_step(self, batch: SceneBatch) -> dict[str, tuple[float, int]]:
        """One update. Returns for each loss its sum and the number of things summed over."""
        recipe, progress = self.recipe, self.progress
        with sdpa_kernel(SDPBackend.MATH):  # for short rows faster than the fused kernel
            loss, report = self._losses(batch, progress)
            loss.backward()  # type: ignore[no-untyped-call]
        for master, copied in zip(
            self.weights.parameters(), self.compute.parameters(), strict=True
        ):
            master.grad = None if copied.grad is None else copied.grad.float()
            copied.grad = None
        nn.utils.clip_grad_norm_(self.weights.parameters(), 1.0)
        rate = min(1.0, (self.step + 1) / recipe.warm_up, (1 - progress) / recipe.decay)
        for optimizer, peak in self.optimizers:
            optimizer.param_groups[0]["lr"] = peak * rate
            optimizer.step()
        self._copy_weights()
        self.step += 1
        return report

    def _losses(
        self, batch: SceneBatch, progress: float
    ) -> tuple[Tensor, dict[str, tuple[float, int]]]:
        recipe, model = self.recipe, self.compute["model"]
        seen = model.vision_tower(pixel_values(batch.pixels, recipe.dtype))
        guess = self.compute["patch_head"](seen).float()
        labels = F.cross_entropy(guess[..., :-4].flatten(0, 1), batch.patch_labels.flatten())
        bounded = ~batch.patch_boxes[..., 0].isnan()
        boxes = (guess[..., -4:][bounded] - batch.patch_boxes[bounded]).abs().mean()
        count = len(seen)
        report = {
            "patch_label": (labels.item() * count, count),
            "patch_box": (boxes.item() * count, count),
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
        return loss + losses.mean(), report

    def _copy_weights(self) -> None:
        with torch.no_grad():
            torch._foreach_copy_(
                list(self.compute.parameters()), list(self.weights.parameters())
            )

    def save(self, folder: Path) -> None:
        """Writes `folder` whole or not at all; what was there is replaced."""
        new, old = folder.with_suffix(".new"), folder.with_suffix(".old")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        weights = dict(self.weights.named_parameters())  # tied weights once
        save_file({name: p.detach() for name, p in weights.items()}, new / "weights.safetensors")
        torch.save([o.state_dict() for o, _ in self.optimizers], new / "optimizers.pt")
        state = {"step": self.step, "elapsed": self.elapsed}
        (new / "state.json").write_text(json.dumps(state), encoding="utf-8")
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
        shutil.rmtree(old, ignore_errors=True)

    def resume(self, folder: Path) -> None:
        """Goes on from what `save` wrote."""
        weights = load_file(folder / "weights.safetensors")
        with torch.no_grad():
            for name, parameter in self.weights.named_parameters():
                parameter.copy_(weights[name])
        self._copy_weights()
        states = torch.load(folder / "optimizers.pt", weights_only=True)
        for (optimizer, _), state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        self.step, self.elapsed = state["step"], state["elapsed"]


def batches(
    world: Any, processor: PaliGemmaProcessor, recipe: Recipe, first_step: int, workers: int
) -> Iterator[SceneBatch]:
    """The run's batches from `first_step` on, prepared by worker processes."""
    grid = MINI.vision_config.patches_per_side
    dataset = SceneDataset(world, processor, recipe.prompts, grid)
    scenes = range(first_step * recipe.scenes, recipe.steps * recipe.scenes)
    yield from DataLoader(
        dataset,
        batch_size=recipe.scenes,
        sampler=scenes,
        collate_fn=dataset.collate,
        num_workers=workers,
        prefetch_factor=8 if workers else None,
    )


def train(
    trainer: Pretrainer, data: Iterator[SceneBatch], out: Path, log_every: int = 50
) -> None:
    """Trains to the end, with a line of `log.jsonl` every few steps and a checkpoint now and then."""
    before, started, saved = trainer.elapsed, time.monotonic(), time.monotonic()
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    with (out / "log.jsonl").open("a", encoding="utf-8") as log:
        while trainer.progress < 1:
            for name, (total, count) in trainer.train_step(next(data)).items():
                sums[name] += total
                counts[name] += count
            trainer.elapsed = before + time.monotonic() - started
            if trainer.step % log_every == 0:
                losses = {name: round(sums[name] / max(counts[name], 1), 4) for name in sums}
                line = {
                    "step": trainer.step,
                    "seconds": round(trainer.elapsed),
                    "progress": round(trainer.progress, 4),
                    **losses,
                }
                print(json.dumps(line), file=log, flush=True)
                sums.clear()
                counts.clear()
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                trainer.save(out / "checkpoint")
                saved = time.monotonic()
    trainer.save(out / "checkpoint")


def main() -> None:
    from paliglass.world import World

    parser = argparse.ArgumentParser(description="Train the mini model from nothing.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; goes on there")
    parser.add_argument("--world", type=Path, default=Path(".cache/world"), help="artwork cache")
    parser.add_argument("--minutes", type=float, default=Recipe.minutes)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = Recipe(minutes=options.minutes, seed=options.seed)
    world = World(options.world, split="train", seed=options.seed, size=MINI.vision_config.image_size)

    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "tokenizer.json"
    if not path.exists():
        train_tokenizer(training_texts(world)).save(str(path))
    tokenizer = Tokenizer.from_file(str(path))
    processor = PaliGemmaProcessor(
        tokenizer, MINI.num_image_tokens, MINI.vision_config.image_size
    )
    trainer = Pretrainer(MINI, len(world.patch_classes), recipe)
    if (options.out / "checkpoint").is_dir():
        trainer.resume(options.out / "checkpoint")
    data = batches(world, processor, recipe, trainer.step, options.workers)
    train(trainer, data, options.out)
    export(trainer.model, tokenizer, options.out / "model")


if __name__ == "__main__":
    main()
