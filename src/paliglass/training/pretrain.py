"""Multimodal pre-training on the picture world: how the shipped mini model is made.

    torchrun --nproc-per-node 2 -m paliglass.training.pretrain --out runs/mini --minutes 60

- weights start from nothing, from another model's (`--weights`), or the vision tower's from a dual
  encoder that `paliglass train contrastive` made (`--vision`), as PaliGemma's does
- first the vision tower alone learns to name what covers each patch and to bound it (a linear head
  that is dropped afterwards); then prompts, several in a row behind their picture; at the end a row
  for each prompt, as at inference (see `batches`)
- scene i of a run is always the same one, so a resumed run sees what an unbroken one sees
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from torch.utils.data import DataLoader

from paliglass.checkpoints import save_folder
from paliglass.checkpoints.saving import refuse_existing
from paliglass.config import GemmaConfig, PaliGemmaConfig, SigLipConfig
from paliglass.processing_paligemma import PaliGemmaProcessor
from paliglass.training.batches import SceneBatch, SceneDataset
from paliglass.training.tokenizer import emoji_names, train_tokenizer, training_texts
from paliglass.training.trainer import Pretrainer, Recipe, find_checkpoint, processes, rank

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


def batches(
    world: Any,
    processor: PaliGemmaProcessor,
    recipe: Recipe,
    grid: int,
    first_step: int,
    workers: int,
) -> Iterator[SceneBatch]:
    """The batches of this process from `first_step` on, prepared by worker processes."""
    dataset = SceneDataset(world, processor, recipe.prompts, grid)
    share = recipe.scenes // processes()
    # Each process takes its part of the step's scenes.
    first = first_step * recipe.scenes + rank() * share
    firsts = range(first, recipe.steps * recipe.scenes, recipe.scenes)
    yield from DataLoader(
        dataset,
        batch_sampler=(list(range(i, i + share)) for i in firsts),
        collate_fn=dataset.collate,
        num_workers=workers,
        prefetch_factor=8 if workers else None,
    )


def cut_log(path: Path, last_step: int) -> None:
    """Drops the lines that a broken run wrote after its last checkpoint: they come again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        # A killed run's last line may be cut short.
        kept = [x for x in lines if x.endswith("\n") and json.loads(x)["step"] <= last_step]
        write_whole(path, "".join(kept))


def write_whole(path: Path, text: str) -> None:
    """Puts a file in place in one step."""
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def train(trainer: Pretrainer, data: Iterator[SceneBatch], out: Path, log_every: int = 50) -> None:
    """Trains to the end, with a line of `log.jsonl` every few steps, and checkpoints.

    Of several processes the first one writes; its losses are those of its own scenes.
    """
    before, started, saved = trainer.elapsed, time.monotonic(), time.monotonic()
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    first = rank() == 0
    with open(out / "log.jsonl" if first else os.devnull, "a", encoding="utf-8") as log:
        while trainer.progress < 1:
            for name, (total, count) in trainer.train_step(next(data)).items():
                sums[name] += total
                counts[name] += count
            trainer.elapsed = common_clock(before + time.monotonic() - started)
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
            if first and time.monotonic() - saved > CHECKPOINT_SECONDS:
                trainer.save(out / "checkpoint")
                saved = time.monotonic()
    if first:
        trainer.save(out / "checkpoint")


def common_clock(seconds: float) -> float:
    """The first process's clock: the rates follow it, and must be the same everywhere."""
    if processes() == 1:
        return seconds
    clock = torch.tensor(seconds, dtype=torch.float64)
    dist.broadcast(clock, src=0)
    return float(clock)


def main() -> None:
    """The command line."""
    from paliglass.checkpoints.folder import load_model
    from paliglass.segmentation import MaskCodec
    from paliglass.world import World

    parser = argparse.ArgumentParser(description="Train the mini model on the picture world.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; goes on there")
    parser.add_argument("--world", type=Path, default=Path(".cache/world"), help="artwork cache")
    parser.add_argument("--weights", type=Path, help="model folder to go on from")
    parser.add_argument("--vision", type=Path, help="dual encoder whose vision tower to start from")
    parser.add_argument("--codec", type=Path, help="mask codec; without one, nothing to segment")
    parser.add_argument("--minutes", type=float, default=Recipe.minutes)
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="end earlier, after these")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--rate", type=float, default=1.0, help="times the recipe's rates")
    parser.add_argument("--looking", type=float, default=Recipe.looking)
    parser.add_argument("--separate", type=float, default=Recipe.separate)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--workers", type=int, default=1, help="of each process, for its scenes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    refuse_existing(options.out / "model")
    if options.weights is not None and options.vision is not None:
        parser.error("--weights has a vision tower already; leave out --vision")
    if "RANK" in os.environ:  # torchrun
        dist.init_process_group("gloo")
    recipe = Recipe(
        minutes=options.minutes,
        steps=options.steps,
        seed=options.seed,
        looking=options.looking,
        separate=options.separate,
        muon_rate=options.rate * Recipe.muon_rate,
        adam_rate=options.rate * Recipe.adam_rate,
    )
    codec = None if options.codec is None else MaskCodec.load(options.codec)
    size = MINI.vision_config.image_size
    world = World(options.world, split="train", seed=options.seed, size=size, codec=codec)

    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = common_tokenizer(options.out / "tokenizer.json", options.world, world)
    processor = PaliGemmaProcessor(tokenizer, MINI.num_image_tokens, size)
    trainer = Pretrainer(MINI, len(world.patch_classes), recipe)
    checkpoint = find_checkpoint(options.out / "checkpoint")
    if checkpoint is not None:
        trainer.resume(checkpoint)
    elif options.weights is not None:
        trainer.start(load_model(options.weights, "cpu", "float32"))
    elif options.vision is not None:
        trainer.start_vision_tower(options.vision)
    if rank() == 0:
        cut_log(options.out / "log.jsonl", trainer.step)
    grid = MINI.vision_config.patches_per_side
    data = batches(world, processor, recipe, grid, trainer.step, options.workers)
    train(trainer, data, options.out)
    if rank() == 0:
        save_folder(trainer.model.to(recipe.dtype), options.out / "model", processor)
    if dist.is_initialized():
        dist.destroy_process_group()


def common_tokenizer(path: Path, art: Path, world: Any) -> Tokenizer:
    """The run's tokenizer, trained by the first process where there is none yet."""
    if rank() == 0 and not path.exists():
        texts = chain(emoji_names(art), training_texts(world))
        write_whole(path, train_tokenizer(texts).to_str(pretty=True))
    if processes() > 1:
        dist.barrier()
    return Tokenizer.from_file(str(path))


if __name__ == "__main__":
    main()
