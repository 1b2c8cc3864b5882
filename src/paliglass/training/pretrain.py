"""Multimodal pre-training on the picture world: how the shipped mini model is made.

    paliglass train pretrain --out runs/mini --minutes 60

- weights start from nothing, from another model's, or the vision tower's from a dual encoder that
  `paliglass train contrastive` made, as PaliGemma's does
- first the vision tower alone learns to name what covers each patch and to bound it (a linear head
  that is dropped afterwards); then prompts, several in a row behind their picture; at the end a row
  for each prompt, as at inference (see `batches`)
- scene i of a run is always the same one, so a resumed run sees what an unbroken one sees
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from torch.utils.data import DataLoader

from paliglass.checkpoints.files import write_whole
from paliglass.checkpoints.folder import load_tokenizer
from paliglass.config import GemmaConfig, PaliGemmaConfig, SigLipConfig
from paliglass.errors import PaliglassError
from paliglass.processing_paligemma import PaliGemmaProcessor
from paliglass.training.batches import SceneBatch, SceneDataset
from paliglass.training.runs import Screen, cut_log, stop_signals, stopped_early
from paliglass.training.tokenizer import emoji_names, train_tokenizer, training_texts
from paliglass.training.trainer import Pretrainer, Recipe, processes, rank

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


def batches(
    world: Any,
    processor: PaliGemmaProcessor,
    recipe: Recipe,
    grid: int,
    first_step: int,
    workers: int,
) -> Iterator[SceneBatch]:
    """The batches of this process from `first_step` on, prepared by worker processes."""
    prompts = recipe.prompts if recipe.looking < 1 else 0  # nobody would read them
    dataset = SceneDataset(world, processor, prompts, grid)
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


def train(
    trainer: Pretrainer,
    data: Iterator[SceneBatch],
    out: Path,
    log_every: int = 50,
    checkpoint_seconds: float = 240.0,
) -> None:
    """Trains to the end, with a line of `log.jsonl` every few steps, and checkpoints.

    Of several processes the first one writes; its losses are those of its own scenes. Ctrl-C ends
    it after the step at hand, with a checkpoint: KeyboardInterrupt then says how to go on.
    """
    first, checkpoint = rank() == 0, out / "checkpoint"
    before, started, saved = trainer.elapsed, time.monotonic(), time.monotonic()
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    if first:
        cut_log(out / "log.jsonl", trainer.step)
    with (
        open(out / "log.jsonl" if first else os.devnull, "a", encoding="utf-8") as log,
        stop_signals() as stop,
        Screen(trainer.progress, quiet=not first) as screen,
    ):
        while trainer.progress < 1:
            for name, (total, count) in trainer.train_step(next(data)).items():
                sums[name] += total
                counts[name] += count
            trainer.elapsed, stopped = agree(before + time.monotonic() - started, bool(stop))
            if trainer.step % log_every == 0:
                losses = {name: round(sums[name] / max(counts[name], 1), 4) for name in sums}
                line = {
                    "step": trainer.step,
                    "seconds": round(trainer.elapsed),
                    "progress": round(trainer.progress, 4),
                    **losses,
                }
                print(json.dumps(line), file=log, flush=True)
                shown = "  ".join(f"{name} {loss:.2f}" for name, loss in losses.items())
                screen.show(trainer.progress, f"step {trainer.step}  {shown}")
                sums.clear()
                counts.clear()
            due = time.monotonic() - saved > checkpoint_seconds
            if first and (due or stopped or trainer.progress == 1):
                trainer.save(checkpoint)
                saved = time.monotonic()
            if stopped:
                break
    if trainer.progress < 1:
        raise stopped_early(checkpoint, trainer.step)


@contextmanager
def together(scenes: int) -> Iterator[None]:
    """Joins the processes that `torchrun` started, if it did.

    Raises PaliglassError where they cannot share a step's scenes evenly.
    """
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    try:
        if scenes % processes():
            raise PaliglassError(
                f"{scenes} scenes cannot be shared by {processes()} processes; choose a multiple"
            )
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def agree(seconds: float, stop: bool) -> tuple[float, bool]:
    """The largest of all processes' clocks, and whether any is to stop.

    The rates follow the clock, and all must leave the loop at one step.
    """
    if processes() == 1:
        return seconds, stop
    state = torch.tensor([seconds, float(stop)], dtype=torch.float64)
    dist.all_reduce(state, dist.ReduceOp.MAX)
    return float(state[0]), bool(state[1])


def common_tokenizer(path: Path, art: Path | None, world: Any, given: Path | None) -> Tokenizer:
    """The run's tokenizer: the given one, else one that the first process trains at the start."""
    if rank() == 0 and not path.exists():
        if given is None:
            texts = chain(emoji_names(art), training_texts(world))
            tokenizer = train_tokenizer(texts)
        else:
            tokenizer = load_tokenizer(given)
        write_whole(path, tokenizer.to_str(pretty=True))
    if processes() > 1:
        dist.barrier()
    return Tokenizer.from_file(str(path))
