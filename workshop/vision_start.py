"""What a contrastive start is worth: pre-training from random weights and from a dual encoder's.

    python -m workshop.vision_start --dual runs/dual/model --out runs/vision_start --steps 1200

PaliGemma's vision tower comes from SigLIP, not from nothing. Here the mini model is pre-trained
twice with the same seed, scenes and steps, every weight trained: once wholly random, once with the
tower of a dual encoder. `table.md` has the losses of both on held-out scenes as they fall.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from paliglass.checkpoints.files import write_whole
from paliglass.checkpoints.folder import load_tokenizer
from paliglass.checkpoints.hub import locate
from paliglass.contrastive.folders import initialise_vision_tower
from paliglass.modeling_mask_codec import MaskCodec
from paliglass.processing_paligemma import PaliGemmaProcessor
from paliglass.training.runs import choose_precision, make_accelerator
from workshop.pretrain.batches import TASKS
from workshop.pretrain.loop import MINI, batches
from workshop.pretrain.pretrainer import Pretrainer, PretrainLoss, Recipe
from workshop.world import World

STARTS = ("random", "dual")
SPLITS = {"test": "new scenes", "style": "new drawing styles"}
SIZE = MINI.vision_config.image_size
GRID = MINI.vision_config.patches_per_side


def train_one(start: str, options: argparse.Namespace) -> None:
    """One run, in this process: a line of held-out losses every `--every` steps."""
    torch.set_num_threads(1)
    mini = locate("mini")
    processor = PaliGemmaProcessor(load_tokenizer(mini), MINI.num_image_tokens, SIZE)
    codec = MaskCodec.load(mini / "mask_codec.safetensors")

    def world(split: str) -> World:
        return World(options.world_cache, split, size=SIZE, codec=codec)  # type: ignore[arg-type]

    train = world("train")
    precision = choose_precision(None, None)
    recipe = Recipe(steps=options.steps, looking=0.0, separate=0.0, precision=precision)
    network = PretrainLoss(MINI, len(train.patch_classes), recipe)
    if start == "dual":
        initialise_vision_tower(network.model, options.dual)
    trainer = Pretrainer(network, make_accelerator())
    few = replace(recipe, steps=options.batches)
    held_out = {split: list(batches(world(split), processor, few, GRID, 0, 0)) for split in SPLITS}
    lines = []
    data = batches(train, processor, recipe, GRID, 0, workers=1)
    for batch in data:
        trainer.train_step(batch)
        if trainer.step % options.every == 0:
            line = {split: mean_losses(trainer, held_out[split]) for split in SPLITS}
            lines.append({"step": trainer.step, **line})
            print(start, json.dumps(lines[-1]), flush=True)
    write_whole(options.out / f"{start}.json", json.dumps(lines))


def mean_losses(trainer: Pretrainer, held_out: list) -> dict[str, float]:  # type: ignore[type-arg]
    """Nats per token for each task, and for what each patch shows."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for batch in held_out:
        for name, (total, count) in trainer.losses(batch).items():
            sums[name][0] += total
            sums[name][1] += count
    return {name: total / max(count, 1) for name, (total, count) in sums.items()}


def table(runs: dict[str, list[dict]], options: argparse.Namespace) -> str:  # type: ignore[type-arg]
    """Markdown: random → dual, for each task and split."""
    lines = [
        f"Losses on {options.batches * Recipe.scenes} held-out scenes of each kind, in nats: "
        f"random start → dual start. Same seed, {Recipe.scenes} scenes a step.",
        "",
        "| | step | " + " | ".join(TASKS) + " |",
        "|---|---:|" + "---:|" * len(TASKS),
    ]
    for split, title in SPLITS.items():
        for random, dual in zip(runs["random"], runs["dual"], strict=True):
            cells = [f"{random[split][task]:.3f} → {dual[split][task]:.3f}" for task in TASKS]
            lines.append(f"| {title} | {random['step']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dual", required=True, help="a dual encoder with a ViT")
    parser.add_argument("--out", type=Path, default=Path("runs/vision_start"))
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--every", type=int, default=300, help="steps between evaluations")
    parser.add_argument("--batches", type=int, default=10, help="held-out batches of each split")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--world-cache", type=Path, default=None, help="artwork cache")
    parser.add_argument("--one", choices=STARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.one:
        train_one(options.one, options)
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
    main()
