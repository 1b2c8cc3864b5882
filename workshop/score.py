"""`python -m workshop.score`: how right a model is on the picture world's held-out scenes."""

from __future__ import annotations

import functools
import json as json_text
from pathlib import Path
from typing import Annotated, Any

import typer

from paliglass.cli.options import MODEL_HELP, Dtype, Quantize
from paliglass.cli.scores import print_scores, tell_progress
from paliglass.evaluation.page import to_html
from paliglass.files import write_whole
from paliglass.model import load
from workshop.commands import CACHE, WorldCache, run
from workshop.scene_scores import SCORED_SPLITS, evaluate
from workshop.world import World


def score(
    model: Annotated[
        str, typer.Option("--model", "-m", envvar="PALIGLASS_MODEL", help=MODEL_HELP)
    ] = "mini",
    adapter: Annotated[
        str | None, typer.Option(help="A LoRA adapter of the model: a folder or a hub id.")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(SCORED_SPLITS)}. All of them by default.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Scenes of a split.")] = 1000,
    prompts: Annotated[int, typer.Option(min=1, help="About each scene.")] = 8,
    seed: Annotated[int, typer.Option(help="Models are trained on the world of seed 0.")] = 1,
    world_cache: WorldCache = CACHE,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    dtype: Annotated[Dtype, typer.Option(help="What to convert the weights to.")] = "auto",
    quantize: Annotated[Quantize | None, typer.Option(help="Make the weights smaller.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts that run together.")] = 32,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    html: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="A page of the scores and the worst answers to write."),
    ] = None,
) -> None:
    """Score a model on the picture world's held-out scenes.

    Scores stand beside a baseline: the best constant answer, the nearest picture by its pixels
    (naming), the mask codec's own loss (segment IoU), rapidocr if installed (reading).
    """
    unknown = [name for name in split or () if name not in SCORED_SPLITS]
    if unknown:
        raise typer.BadParameter(f"--split {unknown[0]} is none of {', '.join(SCORED_SPLITS)}")
    loaded = load(model, device=device, dtype=dtype, adapter=adapter, quantize=quantize)
    side = loaded.model.config.vision_config.image_size

    @functools.cache
    def open_world(name: Any) -> World:
        return World(world_cache, name, seed, side, codec=loaded.mask_codec)

    scores, answered = evaluate(
        loaded, open_world, split or SCORED_SPLITS, limit, prompts, batch_size, tell_progress
    )
    if html is not None:
        write_whole(html, to_html(f"How right is {model}?", scores, answered))
    if json:
        found = {
            name: {task: value.to_dict() for task, value in rows.items()}
            for name, rows in scores.items()
        }
        print(json_text.dumps(found, ensure_ascii=False))
    else:
        print_scores(scores)


if __name__ == "__main__":
    run(score)
