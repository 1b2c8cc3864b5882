"""What a contrastive start is worth: pre-training from random weights and from a dual encoder's.

    python -m workshop.vision_start --dual runs/dual/model --out runs/vision_start --steps 1200

PaliGemma's vision tower comes from SigLIP, not from nothing. Here the mini model is pre-trained
twice with the same seed, scenes and steps, every weight trained: once wholly random, once with the
tower of a dual encoder. `table.md` has the losses of both on held-out scenes as they fall.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from paliglass.checkpoints.folder import load_tokenizer
from paliglass.checkpoints.hub import locate
from paliglass.checkpoints.mask_codec import load_mask_codec
from paliglass.contrastive.folders import initialize_vision_tower
from paliglass.files import write_whole
from paliglass.processing_paligemma import PaliGemmaProcessor
from paliglass.training.processes import fast_precision, make_accelerator
from workshop.commands import CACHE, WorldCache
from workshop.commands import run as run_command
from workshop.pretrain.batches import SceneBatch, batches
from workshop.pretrain.pretrainer import Pretrainer, PretrainLoss
from workshop.pretrain.recipe import MINI, TASKS, PretrainRecipe
from workshop.world import World
from workshop.world.splits import Split

STARTS = ("random", "dual")
SPLIT_TITLES: dict[Split, str] = {"test": "new scenes", "style": "new drawing styles"}
SIZE = MINI.vision_config.image_size
GRID = MINI.vision_config.patches_per_side


@dataclass(frozen=True)
class Start:
    """What both runs have."""

    dual: Annotated[str, typer.Option(help="A dual encoder with a ViT.")]
    out: Annotated[Path, typer.Option(file_okay=False, help="Gets losses and table.")] = Path(
        "runs/vision_start"
    )
    steps: Annotated[int, typer.Option(min=1, help="Of each run.")] = 1200
    every: Annotated[int, typer.Option(min=1, help="Steps between evaluations.")] = 300
    batches: Annotated[int, typer.Option(min=1, help="Held-out ones of each split.")] = 10
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, of one thread each.")] = 2
    world_cache: WorldCache = CACHE


def train_one(start: str, options: Start) -> None:
    """One run, in this process: a line of held-out losses every `--every` steps."""
    torch.set_num_threads(1)
    mini = locate("mini")
    processor = PaliGemmaProcessor(load_tokenizer(mini), MINI.num_image_tokens, SIZE)
    codec = load_mask_codec(mini / "mask_codec.safetensors")

    def world(split: Split) -> World:
        return World(options.world_cache, split, size=SIZE, codec=codec)

    train = world("train")
    recipe = PretrainRecipe(
        steps=options.steps, vision_warmup=0.0, unpacked_share=0.0, precision=fast_precision()
    )
    network = PretrainLoss(MINI, len(train.patch_classes), recipe)
    if start == "dual":
        initialize_vision_tower(network.model, options.dual)
    trainer = Pretrainer(network, make_accelerator())
    few = replace(recipe, steps=options.batches)
    held_out: dict[str, list[SceneBatch]] = {
        split: list(batches(world(split), processor, few, GRID, 0, 0)) for split in SPLIT_TITLES
    }
    lines: list[dict[str, Any]] = []
    data = batches(train, processor, recipe, GRID, 0, workers=1)
    for batch in data:
        trainer.train_step([batch])
        if trainer.step % options.every == 0:
            losses = {split: mean_losses(trainer, held_out[split]) for split in held_out}
            lines.append({"step": trainer.step, **losses})
            print(start, json.dumps(lines[-1]), flush=True)
    write_whole(options.out / f"{start}.json", json.dumps(lines))


def mean_losses(trainer: Pretrainer, held_out: list[SceneBatch]) -> dict[str, float]:
    """Nats per token for each task, and for what each patch shows."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for batch in held_out:
        for name, (total, count) in trainer.losses(batch).items():
            sums[name][0] += total
            sums[name][1] += count
    return {name: total / max(count, 1) for name, (total, count) in sums.items()}


def table(runs: dict[str, list[dict[str, Any]]], options: Start) -> str:
    """Markdown: random → dual, for each task and split."""
    scenes = PretrainRecipe.scenes
    lines = [
        f"Losses on {options.batches * scenes} held-out scenes of each kind, in nats: random start "
        f"→ dual start. Same seed, {scenes} scenes a step.",
        "",
        "| | step | " + " | ".join(TASKS) + " |",
        "|---|---:|" + "---:|" * len(TASKS),
    ]
    for split, title in SPLIT_TITLES.items():
        for random, dual in zip(runs["random"], runs["dual"], strict=True):
            cells = [f"{random[split][task]:.3f} → {dual[split][task]:.3f}" for task in TASKS]
            lines.append(f"| {title} | {random['step']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def vision_start(
    options: Start, one: Annotated[str | None, typer.Option(hidden=True)] = None
) -> None:
    """Pre-train mini twice, wholly random and with a dual encoder's vision tower, and compare."""
    options.out.mkdir(parents=True, exist_ok=True)
    if one is not None:
        train_one(one, options)
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(start: str) -> None:
        if not (options.out / f"{start}.json").exists():
            command = [sys.executable, "-m", "workshop.vision_start", *sys.argv[1:]]
            subprocess.run([*command, "--one", start], check=True, env=environment)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(run, STARTS))
    runs = {start: json.loads((options.out / f"{start}.json").read_text()) for start in STARTS}
    text = table(runs, options)
    write_whole(options.out / "table.md", text)
    print(text)


if __name__ == "__main__":
    run_command(vision_start)
