"""Which encoders, which loss? Eight small dual encoders on the same pairs for the same time.

    python -m workshop.contrastive_comparison --out runs/contrastive --minutes 8 --jobs 2

{ViT, ResNet} × {CBOW, Transformer} × {CLIP, SigLIP}, each a process of one thread, with the same
seed and recipe. Minutes are the processor's own, so that what else runs on the machine favours no
one; the pairs of the picture world are composed once and mapped into memory by all. `table.md`
has, on pictures that no run has seen:

- retrieval: among 500 held-out scenes with distinct captions, how often the right caption is first
  (R@1) or among the first five (R@5), and the other way round
- zero-shot: single stickers, each named by the nearest of all concepts' texts; in the styles seen
  in training (new scenes) and in two vendors' styles never seen
- beside them the nearest sticker by pixels, which learns nothing

`--model mini-dual` has the same scores of one model. A run that was stopped goes on when the
command is given again; runs that are done stay as they are. The logs are kept beside the table:
`runs/NAME/log.jsonl`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer

from paliglass.cli.tables import print_table
from paliglass.contrastive.folders import load_contrastive, save_contrastive
from paliglass.contrastive.pairs import Pair, SavedPairs, pixel_values, save_pairs
from paliglass.contrastive.processing import ContrastiveProcessor
from paliglass.contrastive.recipe import ContrastiveRecipe
from paliglass.contrastive.training import ContrastiveTrainer, dual_config, text_length, train
from paliglass.contrastive.zero_shot import retrieval_recall
from paliglass.files import write_whole
from paliglass.training.processes import make_accelerator
from paliglass.training.runs import Run
from workshop.commands import CACHE, WorldCache
from workshop.commands import run as run_command
from workshop.tokenizer import shipped_tokenizer
from workshop.world import World
from workshop.world.art import load_art
from workshop.world.baseline import PixelNeighbours, single_stickers
from workshop.world.concepts import CONCEPTS, with_article
from workshop.world.tasks import caption
from workshop.world_pairs import WorldPairs

COMBINATIONS: dict[str, tuple[Any, Any, Any]] = {
    "-".join(parts): parts
    for parts in product(("vit", "resnet"), ("transformer", "cbow"), ("siglip", "clip"))
}
SIZE = 128
HELD_OUT_SEED = 1  # training counts from seed 0
SCORES = ("i2t R@1", "i2t R@5", "t2i R@1", "t2i R@5", "seen styles", "new styles")


class Listed:
    """Pairs that are there already, as a source."""

    def __init__(self, pictures: list[Any], texts: list[str]) -> None:
        self.pictures, self.words = pictures, texts
        self.count: int | None = len(texts)

    def __getitem__(self, index: int) -> Pair:
        return Pair(self.pictures[index], self.words[index])

    def texts(self) -> Any:
        return iter(self.words)


def distinct_scenes(world: World, count: int) -> Listed:
    """The first scenes of a world whose captions are all different."""
    scenes: dict[str, Any] = {}
    index = 0
    while len(scenes) < count:
        scene = world.scene(index)
        scenes.setdefault(caption(scene), scene.image)
        index += 1
    return Listed(list(scenes.values()), list(scenes))


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how."""

    out: Annotated[Path, typer.Option(file_okay=False, help="Gets runs, data and table.")] = Path(
        "runs/contrastive"
    )
    minutes: Annotated[float, typer.Option(help="Of the processor's time, for each run.")] = 8.0
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, of one thread each.")] = 2
    only: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(COMBINATIONS)}; repeatable.")
    ] = None
    model: Annotated[
        str | None, typer.Option(help="Score this one, as mini-dual, and train none.")
    ] = None
    pairs: Annotated[int, typer.Option(min=1, help="That all runs learn from.")] = 40_000
    of_each: Annotated[int, typer.Option(min=1, help="Single stickers of a concept.")] = 20
    batch_size: Annotated[int, typer.Option(min=2, help="Pairs in a step.")] = 64
    learning_rate: Annotated[float, typer.Option(help="The highest.")] = (
        ContrastiveRecipe.learning_rate
    )
    optimizer: Annotated[Literal["adamw", "muon"], typer.Option()] = "muon"
    warm_up_steps: Annotated[int, typer.Option(min=0, help="Until the highest rate.")] = 50
    world_cache: WorldCache = CACHE

    def __post_init__(self) -> None:
        for name in self.only or ():
            if name not in COMBINATIONS:
                raise typer.BadParameter(f"--only {name}: is none of {', '.join(COMBINATIONS)}")


def prepare(options: Comparison) -> None:
    """Composes what all runs share, unless it is there."""
    data: Path = options.out / "data"
    if options.model is None and not (data / "train").exists():
        print(f"composing {options.pairs} pairs", flush=True)
        source = WorldPairs(World(options.world_cache, "train", 0, SIZE))
        save_pairs(source, options.pairs, data / "train", workers=options.jobs)
    for split in ("test", "style"):
        world = World(options.world_cache, split, HELD_OUT_SEED, SIZE)
        if split == "test" and not (data / "scenes").exists():
            save_pairs(distinct_scenes(world, 500), 500, data / "scenes")
        if not (data / split).exists():
            pictures, names = single_stickers(world, options.of_each)
            save_pairs(Listed(pictures, names), len(names), data / split)


def train_one(name: str, options: Comparison) -> None:
    """One of the eight, in this process, and its scores."""
    torch.set_num_threads(1)
    out: Path = options.out / "runs" / name
    image, text, loss = COMBINATIONS[name]
    source = SavedPairs(options.out / "data" / "train")
    tokenizer = shipped_tokenizer()
    recipe = ContrastiveRecipe(
        minutes=options.minutes,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        optimizer=options.optimizer,
        warm_up_steps=options.warm_up_steps,
        precision="bf16",
    )
    length = text_length(tokenizer, source)
    config = dual_config(image, text, loss, tokenizer.get_vocab_size(), SIZE, length)
    trainer = ContrastiveTrainer(config, recipe, make_accelerator(recipe.precision))
    processor = ContrastiveProcessor(tokenizer, SIZE, length, padding=config.text.padding)
    with Run(out, resume=True) as run:
        run.start(trainer)
        train(trainer, source, processor, run, checkpoint_seconds=60, clock=time.process_time)
        save_contrastive(trainer.model, run.result, tokenizer)
    facts = {
        "steps": trainer.step,
        "seconds": trainer.elapsed,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "image_parameters": sum(p.numel() for p in trainer.model.image_encoder.parameters()),
    }
    facts |= score(out / "model", options.out / "data")
    write_whole(out / "facts.json", json.dumps(facts))


@torch.no_grad()
def embed(model: Any, processor: Any, pairs: SavedPairs) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures' and texts' embeddings, N × D each."""
    images = []
    for start in range(0, len(pairs.pixels), 100):
        pixels = torch.from_numpy(np.array(pairs.pixels[start : start + 100]))
        images.append(model.embed_images(pixel_values(pixels, torch.float32)))
    return torch.cat(images), model.embed_texts(**processor.words(list(pairs.texts())))


def score(folder: str | Path, data: Path) -> dict[str, float]:
    """A trained model on everything held out."""
    model, processor = load_contrastive(folder)
    model = model.float().eval()
    images, texts = embed(model, processor, SavedPairs(data / "scenes"))
    scores = {}
    for name, (queries, answers) in {"i2t": (images, texts), "t2i": (texts, images)}.items():
        for k in (1, 5):
            scores[f"{name} R@{k}"] = retrieval_recall(queries, answers, k)
    concepts = list(CONCEPTS)
    with torch.no_grad():
        labels = model.embed_texts(**processor.words([with_article(name) for name in concepts]))
    for split, title in (("test", "seen styles"), ("style", "new styles")):
        pairs = SavedPairs(data / split)
        images, _ = embed(model, processor, pairs)
        guesses = (images @ labels.T).argmax(-1).tolist()
        scores[title] = float(
            np.mean([concepts[g] == name for g, name in zip(guesses, pairs.texts(), strict=True)])
        )
    return scores


def baseline(data: Path, cache: Path) -> dict[str, float]:
    """The nearest sticker by pixels."""
    nearest = PixelNeighbours(load_art(cache, "train"))
    scores = {}
    for split, title in (("test", "seen styles"), ("style", "new styles")):
        pairs = SavedPairs(data / split)
        guesses = nearest(list(pairs.pixels))
        names = list(pairs.texts())
        scores[title] = float(np.mean([g == n for g, n in zip(guesses, names, strict=True)]))
    return scores


def table(rows: list[dict[str, Any]], pixels: dict[str, float], options: Comparison) -> str:
    """Markdown, the best of each column in bold."""
    best = {name: max((row[name] for row in rows), default=0.0) for name in SCORES}
    lines = [
        f"{options.minutes:g} minutes of one processor core each, {options.batch_size} pairs a "
        f"step, {options.pairs:,} pairs, {options.optimizer}, learning rate "
        f"{options.learning_rate:g}. Retrieval: 500 held-out scenes. Zero-shot: "
        f"{len(CONCEPTS) * options.of_each} single stickers of {len(CONCEPTS)} concepts in each "
        "of the two groups.",
        "",
        "| image | text | loss | " + " | ".join(SCORES) + " | steps | parameters |",
        "|---|---|---|" + "---:|" * (len(SCORES) + 2),
    ]
    for row in rows:
        cells = [
            f"**{row[name]:.3f}**" if row[name] == best[name] else f"{row[name]:.3f}"
            for name in SCORES
        ]
        image, text, loss = row["name"].split("-")
        titles = {"vit": "ViT", "resnet": "ResNet", "cbow": "CBOW", "clip": "CLIP"}
        titles |= {"siglip": "SigLIP", "transformer": "Transformer"}
        kinds = [titles[part] for part in (image, text, loss)]
        counts = [f"{row['steps']:,}", f"{row['parameters'] / 1e6:.2f} M"]
        lines.append("| " + " | ".join([*kinds, *cells, *counts]) + " |")
    chance = [1 / 500, 5 / 500] * 2 + [1 / len(CONCEPTS)] * 2
    blank = ["–"] * 4
    near = [f"{pixels[name]:.3f}" for name in SCORES[4:]]
    lines.append("| nearest sticker by pixels | | | " + " | ".join([*blank, *near]) + " | | |")
    lines.append("| chance | | | " + " | ".join(f"{c:.3f}" for c in chance) + " | | |")
    return "\n".join(lines) + "\n"


def contrastive_comparison(
    options: Comparison,
    one: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Train eight small dual encoders on the same pairs for the same time, and compare them.

    A comparison that was stopped goes on when the command is given again.
    """
    if one is not None:
        train_one(one, options)
        return
    prepare(options)
    data = options.out / "data"
    if options.model is not None:
        found, pixels = score(options.model, data), baseline(data, options.world_cache)
        rows = [[name, f"{found[name]:.3f}", f"{pixels.get(name, 0):.3f}"] for name in SCORES]
        print_table(["", options.model, "by pixels"], rows)
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    names = options.only or list(COMBINATIONS)

    def run(name: str) -> None:
        if not (options.out / "runs" / name / "facts.json").exists():
            print(f"training {name}", flush=True)
            command = [sys.executable, "-m", "workshop.contrastive_comparison", *sys.argv[1:]]
            subprocess.run([*command, "--one", name], check=True, env=environment)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(run, names))
    runs = []
    for name in names:
        facts = options.out / "runs" / name / "facts.json"
        runs.append({"name": name, **json.loads(facts.read_text(encoding="utf-8"))})
    pixels = baseline(data, options.world_cache)
    write_whole(options.out / "scores.json", json.dumps({"runs": runs, "pixels": pixels}, indent=1))
    text = table(runs, pixels, options)
    write_whole(options.out / "table.md", text)
    print(text)


if __name__ == "__main__":
    run_command(contrastive_comparison)
