"""How good a model is on scenes it has never seen.

    python -m paliglass.training.evaluate --model mini --split test --scenes 300

Every prompt that the world asks about a scene is answered greedily, freely (without a grammar),
and scored. `--blank` asks the same about grey pictures: what a model scores there, it has guessed
from the prompt alone. Masks are scored against the true ones, and so is what the mask codec makes
of the true ones: no model that speaks in its codes gets above that.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from paliglass.model import PaliGemma, load
from paliglass.segmentation import MaskCodec, paste_mask
from paliglass.tasks.boxes import ParsedBox, parse_boxes
from paliglass.training.metrics import (
    Matches,
    edit_distance,
    mask_overlaps,
    match_boxes,
    match_objects,
)

QUESTIONS = {  # how a question begins → what is asked for
    "answer en how many": "count",
    "answer en is there": "presence",
    "answer en what colour": "colour",
    "answer en what digit": "digit",
    "answer en what is in": "names",
    "answer en what is": "place",
}
Scores = dict[str, dict[str, float]]


def score(
    prefixes: list[str], answers: list[str], truths: list[str], singular: dict[str, str]
) -> Scores:
    """Means for each task; "n" is how many prompts (for F1: things) they rest on."""
    exact: dict[str, list[float]] = defaultdict(list)
    matches: dict[str, Matches] = defaultdict(Matches)
    wrong_characters = characters = 0
    for prefix, answer, truth in zip(prefixes, answers, truths, strict=True):
        task = prefix.split(" ", 1)[0]
        if task in ("detect", "segment"):
            matches[f"{task}_f1"] += match_boxes(answer, truth)
        if not truth:  # silence is right, and what silence alone would score is no skill
            exact[f"{task}_absent"].append(answer == "")
            continue
        if task in ("detect", "segment"):
            continue
        exact[task].append(answer == truth)
        if task == "caption":
            matches["caption_f1"] += match_objects(answer, truth, singular)
        elif task == "ocr":
            wrong_characters += edit_distance(answer, truth)
            characters += len(truth)
        elif task == "answer":
            kind = next(kind for start, kind in QUESTIONS.items() if prefix.startswith(start))
            exact[f"answer_{kind}"].append(answer == truth)
    scores: Scores = {
        name: {"score": float(np.mean(rights)), "n": len(rights)} for name, rights in exact.items()
    }
    for name, found in matches.items():
        scores[name] = {"score": found.f1, "n": found.there}
    if characters:
        scores["ocr_character_errors"] = {"score": wrong_characters / characters, "n": characters}
    return dict(sorted(scores.items()))


def evaluate(
    model: PaliGemma, world: Any, scenes: int, prompts: int, blank: bool = False
) -> Scores:
    """Scores on scenes 0 … `scenes` − 1 of a world, with that many prompts about each."""
    # Imported here, so that metrics and scores can be had without the world.
    from paliglass.world.concepts import COLOURS, CONCEPTS, SHAPES, plural_of

    names = [*CONCEPTS, *(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)]
    pictures: list[Any] = []
    prefixes: list[str] = []
    truths: list[str] = []
    shown: list[Any] = []
    for index in range(scenes):
        scene, examples = world.sample(index, prompts=prompts)
        shown += [scene] * len(examples)
        picture = np.full_like(scene.image, 128) if blank else scene.image
        pictures += [picture] * len(examples)
        prefixes += [example.prefix for example in examples]
        truths += [example.suffix for example in examples]
    answers = model.generate(pictures, prefixes, batch_size=64, max_new_tokens=128)
    scores = score(prefixes, answers, truths, {plural_of(name): name for name in names})
    if model.mask_codec is not None:
        overlaps: dict[str, list[float]] = {"segment_iou": [], "segment_iou_codec": []}
        for prefix, answer, truth, scene in zip(prefixes, answers, truths, shown, strict=True):
            task, _, label = prefix.partition(" ")
            if task != "segment":
                continue
            real = [(t.name, scene.mask(t)) for t in scene.objects if t.name == label]
            for name, text in (("segment_iou", answer), ("segment_iou_codec", truth)):
                claimed = masks_said(text, model.mask_codec, *scene.image.shape[:2])
                overlaps[name] += mask_overlaps(claimed, real)
        for name, found in overlaps.items():
            scores[name] = {"score": float(np.mean(found)), "n": len(found)}
    return scores


def masks_said(
    answer: str, codec: MaskCodec, height: int, width: int
) -> list[tuple[str, NDArray[np.bool_]]]:
    """The well-formed masks of an answer to `segment`: (label, H × W)."""
    found = [parsed for parsed in parse_boxes(answer) if parsed.codes is not None]
    labels = [parsed.label for parsed in found]
    return list(zip(labels, masks_of(found, codec, height, width), strict=True))


def masks_of(
    objects: Sequence[ParsedBox], codec: MaskCodec, height: int, width: int
) -> list[NDArray[np.bool_]]:
    """The mask of each in a picture, H × W; empty for an object without codes."""
    masks = []
    for thing in objects:
        if thing.codes is None:
            masks.append(np.zeros((height, width), np.bool_))
            continue
        decoded = codec.decode(torch.tensor([thing.codes]))[0].numpy()
        x0, y0, x1, y1 = thing.box
        box = x0 * width, y0 * height, x1 * width, y1 * height
        masks.append(paste_mask(decoded, box, height, width))
    return masks


def main() -> None:
    """The command line."""
    from paliglass.world import World

    parser = argparse.ArgumentParser(description="Score a model on held-out scenes.")
    parser.add_argument("--model", default="mini", help="as for paliglass.load")
    parser.add_argument("--world", type=Path, default=None, help="artwork cache")
    parser.add_argument("--split", choices=("validation", "test", "style"), default="test")
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--prompts", type=int, default=8, help="per scene")
    parser.add_argument("--blank", action="store_true", help="grey pictures, as a control")
    parser.add_argument("--seed", type=int, default=1, help="training runs count from seed 0")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one line of JSON, no table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load(options.model, device="cpu", dtype=options.dtype)
    size = model.model.config.vision_config.image_size
    world = World(options.world, options.split, options.seed, size, codec=model.mask_codec)
    scores = evaluate(model, world, options.scenes, options.prompts, options.blank)
    if options.json:
        print(json.dumps({"split": options.split, "blank": options.blank, "scores": scores}))
        return
    title = f"{options.split}, {options.scenes} scenes" + (", grey pictures" * options.blank)
    table = Table("what", "score", "n", title=title)
    for name, row in scores.items():
        table.add_row(name, f"{row['score']:.3f}", str(int(row["n"])))
    Console().print(table)


if __name__ == "__main__":
    main()
