"""What the output grammar changes: task scores and speed, with it and without, in turn.

python -m workshop.grammar --model mini --scenes 100

Detection: F1 at IoU .5. Segmentation: mean IoU of the true objects' masks with the found ones
matched to them (0 where none is). Speed: tokens written per second of decoding, prompts and vision
tower included, median over the rounds; rounds of the two take turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Annotated, Any

import torch
import typer

from paliglass import PaliGemma, load
from paliglass.cli.options import MODEL_HELP
from paliglass.evaluation.objects import Matches
from paliglass.generation import Completion, Request
from paliglass.tasks.answering import parse_objects
from paliglass.tasks.boxes import parse_boxes
from paliglass.tasks.grammar import ObjectGrammar
from workshop.calibrate import matched, overlaps
from workshop.commands import CACHE, Threads, WorldCache, run
from workshop.world import World
from workshop.world.tasks import Example, detection, segmentation


def questions(world: World, scenes: int, task: str) -> list[tuple[Any, Example]]:
    """One prompt a scene, for everything that can be named in it."""
    asked = []
    for index in range(scenes):
        scene = world.scene(index)
        names = [t.name for t in scene.objects if t.kind in ("sticker", "shape")]
        labels = list(dict.fromkeys(names))
        if task == "detect" and labels:
            example = Example("detect " + " ; ".join(labels), detection(scene, labels))
            asked.append((scene.image, example))
        elif task == "segment":
            assert world.codec is not None
            for label in labels:
                truth = segmentation(scene, label, world.codec)
                asked.append((scene.image, Example(f"segment {label}", truth)))
    return asked


def measure(
    model: PaliGemma, asked: Sequence[tuple[Any, Example]], free: bool, batch_size: int
) -> tuple[float, float, int]:
    """Score, tokens per second, passes through the decoder."""
    masks = asked[0][1].prefix.startswith("segment")
    grammars = [
        ObjectGrammar(model.processor, example.prefix.split(" ", 1)[1].split(" ; "), masks)
        for _, example in asked
    ]
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    handle = model.model.language_model.model.register_forward_hook(count)
    start = time.perf_counter()
    requests = [
        Request(
            example.prefix,
            [model.processor.prepare(picture)],
            None if free else grammar.start(),
            max_new_tokens=160,
        )
        for (picture, example), grammar in zip(asked, grammars, strict=True)
    ]
    done = list(model.complete(requests, batch_size))
    seconds = time.perf_counter() - start
    handle.remove()
    written = sum(completion.num_tokens for completion in done)
    judged = segment_score if masks else detect_score
    return judged(model, asked, done, None if free else grammars), written / seconds, passes


def detect_score(
    model: PaliGemma,
    asked: Sequence[tuple[Any, Example]],
    done: Sequence[Completion],
    grammars: Sequence[ObjectGrammar] | None,
) -> float:
    """F1 at IoU .5 over all pictures."""
    total = Matches()
    for i, ((_, example), completion) in enumerate(zip(asked, done, strict=True)):
        grammar = grammars[i] if grammars else None
        found = [box for box, _ in parse_objects(completion, model.processor, grammar)]
        true = parse_boxes(example.suffix)
        total += Matches(sum(matched(overlaps(found, true, None))), len(found), len(true))
    return total.f1


def segment_score(
    model: PaliGemma,
    asked: Sequence[tuple[Any, Example]],
    done: Sequence[Completion],
    grammars: Sequence[ObjectGrammar] | None,
) -> float:
    """Mean IoU over all true objects, each with the found one that fits it best."""
    fits = []
    for i, ((_, example), completion) in enumerate(zip(asked, done, strict=True)):
        grammar = grammars[i] if grammars else None
        found = [box for box, _ in parse_objects(completion, model.processor, grammar)]
        table = overlaps(found, parse_boxes(example.suffix), model.mask_codec)
        fits += list(table.max(0)) if len(found) else [0.0] * table.shape[1]
    return statistics.fmean(fits)


def grammar(
    model: Annotated[str, typer.Option("--model", "-m", help=MODEL_HELP)] = "mini",
    scenes: Annotated[int, typer.Option(min=1, help="Of the test split.")] = 100,
    rounds: Annotated[int, typer.Option(min=1, help="Of both in turn.")] = 3,
    batch_size: Annotated[
        list[int] | None, typer.Option(help="Prompts that run together. [1 and 8]")
    ] = None,
    threads: Threads = 2,
    world_cache: WorldCache = CACHE,
) -> None:
    """Measure what the output grammar changes: scores and speed, with it and without, in turn."""
    torch.set_num_threads(threads)
    loaded = load(model, device="cpu", dtype="float32")
    side = loaded.model.config.vision_config.image_size
    world = World(world_cache, "test", 1, side, codec=loaded.mask_codec)
    tasks = ["detect"] if loaded.mask_codec is None else ["detect", "segment"]
    print(f"{model}, {scenes} test scenes, {rounds} rounds")
    for task in tasks:
        asked = questions(world, scenes, task)
        for size in batch_size or (1, 8):
            taken: dict[bool, list[tuple[float, float, int]]] = {False: [], True: []}
            for _ in range(rounds):
                for free, results in taken.items():
                    results.append(measure(loaded, asked, free, size))
            ratios = [a[1] / b[1] for a, b in zip(taken[False], taken[True], strict=True)]
            for free, results in taken.items():
                score, _, passes = results[0]
                speed = statistics.median(speed for _, speed, _ in results)
                name = "free   " if free else "grammar"
                print(
                    f"{task:8} batch {size:2}  {name}  score {score:.3f}  "
                    f"{speed:7.1f} tokens/s  {passes} passes"
                )
            print(f"{'':18} grammar / free, tokens/s: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    run(grammar)
