"""Multimodal pre-training on the picture world: how the shipped mini model is made.

    paliglass train pretrain --out runs/mini --minutes 60

- weights start from nothing, from another model's, or the vision tower's from a dual encoder that
  `paliglass train contrastive` made, as PaliGemma's does
- first the vision tower alone learns to name what covers each patch and to bound it (a linear head
  that is dropped afterwards); then prompts, several in a row behind their picture; at the end a row
  for each prompt, as at inference (see `batches`)
- scene i of a run is always the same one, so a resumed run sees what an unbroken one sees
- on accelerate: several processes under `torchrun` or `accelerate launch` share each step's scenes,
  and have the losses of one process. On a CPU, two of one thread each get more done than one of two
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader

from paliglass.checkpoints.files import write_whole
from paliglass.checkpoints.folder import load_tokenizer
from paliglass.checkpoints.saving import save_folder
from paliglass.config import GemmaConfig, PaliGemmaConfig, SigLipConfig
from paliglass.processing_paligemma import PaliGemmaProcessor
from paliglass.training.runs import Screen, cut_log, largest, stop_signals, stopped_early
from paliglass.training.sharding import gathered_model
from paliglass.training.tokenizer import train_tokenizer
from workshop.pretrain.batches import SceneBatch, SceneDataset
from workshop.pretrain.pretrainer import Pretrainer, Recipe
from workshop.tokenizer import emoji_names, training_texts

if TYPE_CHECKING:
    from accelerate import Accelerator

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
    rank: int = 0,
    processes: int = 1,
) -> Iterator[SceneBatch]:
    """Batches from `first_step` on, prepared by worker processes.

    Of several processes each takes its part of a step's scenes.
    """
    prompts = recipe.prompts if recipe.looking < 1 else 0  # nobody would read them
    dataset = SceneDataset(world, processor, prompts, grid)
    share = recipe.scenes // processes
    first = first_step * recipe.scenes + rank * share
    firsts = range(first, recipe.steps * recipe.scenes, recipe.scenes)
    yield from DataLoader(
        dataset,
        batch_sampler=(list(range(i, i + share)) for i in firsts),
        collate_fn=dataset.collate,
        num_workers=workers,
        prefetch_factor=8 if workers else None,
    )


def mean_losses(sums: dict[str, Tensor], accelerator: Accelerator) -> dict[str, float]:
    """Each task's mean over all processes, of pairs (sum, count); each process must ask."""
    pairs = torch.stack(list(sums.values())).to(accelerator.device)
    totals, counts = accelerator.reduce(pairs, "sum").unbind(1)
    return dict(zip(sums, (totals / counts.clamp(min=1)).tolist(), strict=True))


def train(
    trainer: Pretrainer,
    data: Iterator[SceneBatch],
    out: Path,
    log_every: int = 50,
    checkpoint_seconds: float = 240.0,
) -> None:
    """Trains to the end, with a line of `log.jsonl` every few steps, and checkpoints.

    A line has the mean loss of each task since the last one, over all processes. Ctrl-C ends the
    run after the step at hand, with a checkpoint: KeyboardInterrupt then says how to go on.
    """
    accelerator, checkpoint = trainer.accelerator, out / "checkpoint"
    main = accelerator.is_main_process
    before, started, saved = trainer.elapsed, time.monotonic(), trainer.elapsed
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(2))
    if main:
        cut_log(out / "log.jsonl", trainer.step)
    with stop_signals() as stop, Screen(trainer.progress, quiet=not main) as screen:
        while trainer.progress < 1:
            for name, pair in trainer.train_step(next(data)).items():
                sums[name] += torch.tensor(pair)
            # The rates follow the clock, so that it must be one clock.
            now = before + time.monotonic() - started
            trainer.elapsed, stopped = largest(accelerator, now, bool(stop))
            if trainer.step % log_every == 0:
                means = mean_losses(sums, accelerator)
                sums.clear()
                line = {
                    "step": trainer.step,
                    "seconds": round(trainer.elapsed),
                    "progress": round(trainer.progress, 4),
                    **{name: round(loss, 4) for name, loss in means.items()},
                }
                if main:
                    with (out / "log.jsonl").open("a", encoding="utf-8") as log:
                        print(json.dumps(line), file=log)
                shown = "  ".join(f"{name} {loss:.2f}" for name, loss in means.items())
                screen.show(trainer.progress, f"step {trainer.step}  {shown}")
            due = trainer.elapsed - saved > checkpoint_seconds
            if due or stopped or trainer.progress == 1:
                trainer.save(checkpoint)
                saved = trainer.elapsed
            if stopped:
                break
    if trainer.progress < 1:
        raise stopped_early(checkpoint, trainer.step)


def common_tokenizer(path: Path, art: Path | None, world: Any, given: Path | None) -> Tokenizer:
    """The run's tokenizer: the given model's, else one that is trained at the start of the run."""
    if not path.exists():
        if given is None:
            texts = chain(emoji_names(art), training_texts(world))
            tokenizer = train_tokenizer(texts)
        else:
            tokenizer = load_tokenizer(given)
        write_whole(path, tokenizer.to_str(pretty=True))
    return Tokenizer.from_file(str(path))


def save_result(trainer: Pretrainer, folder: Path, processor: PaliGemmaProcessor) -> None:
    """The model as a folder, in bfloat16 whatever it computed in.

    To be called by every process: what is sharded is gathered. The first one writes.
    """
    model = gathered_model(trainer.model, trainer.accelerator, folder.name, torch.bfloat16)
    if model is not None:
        save_folder(model, folder, processor)
