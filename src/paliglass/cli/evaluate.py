"""eval: how right a model is, on the picture world or on data of one's own."""

from __future__ import annotations

import functools
import json as json_text
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paliglass.cli.app import command
from paliglass.cli.options import MODEL_HELP, Dtype, Quantize
from paliglass.cli.train.finetune import CocoTask

if TYPE_CHECKING:
    from paliglass.evaluation.cases import Score

SPLITS = ("test", "style", "composition", "reading", "digits", "photos", "blank", "shuffled")


def evaluate(
    model: Annotated[
        str, typer.Option("--model", "-m", envvar="PALIGLASS_MODEL", help=MODEL_HELP)
    ] = "mini",
    adapter: Annotated[
        str | None, typer.Option(help="A LoRA adapter of the model: a folder or a hub id.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            help="What `paliglass train finetune --data` takes; without it, the picture world.",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Where COCO's or VQAv2's pictures are."),
    ] = None,
    task: Annotated[CocoTask, typer.Option(help="For COCO's boxes.")] = CocoTask.DETECT,
    split: Annotated[
        list[str] | None,
        typer.Option(help=f"Of the picture world: {', '.join(SPLITS)}. All of them by default."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Scenes of a split (1000), or examples of the data (all)."),
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="About each scene.")] = 8,
    seed: Annotated[
        int, typer.Option(help="Of the picture world. Models are trained on that of seed 0.")
    ] = 1,
    world_cache: Annotated[
        Path, typer.Option(help="Folder for the world's artwork, fetched when it is first needed.")
    ] = Path(".cache/world"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    dtype: Annotated[Dtype, typer.Option(help="What to convert the weights to.")] = Dtype.AUTO,
    quantize: Annotated[Quantize | None, typer.Option(help="Make the weights smaller.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts that run together.")] = 32,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The limit of an answer.")] = 128,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    html: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="A page of the scores and the worst answers to write."),
    ] = None,
) -> None:
    """Score a model: on the picture world's held-out scenes, or on your data.

    Scores stand beside a baseline: of the world the best constant answer, the nearest picture by
    its pixels (naming), the mask codec's own loss (segment IoU), rapidocr if installed (reading).
    """
    unknown = [name for name in split or () if name not in SPLITS]
    if unknown:
        raise typer.BadParameter(f"--split {unknown[0]} is none of {', '.join(SPLITS)}")
    if split and data is not None:
        raise typer.BadParameter("--split is of the picture world; --data has none")
    from paliglass.checkpoints.files import write_whole
    from paliglass.evaluation.cases import ask
    from paliglass.evaluation.page import to_html
    from paliglass.model import load

    scores: dict[str, dict[str, Score]]
    loaded = load(
        model,
        device=device,
        dtype=dtype.value,
        adapter=adapter,
        quantize=quantize,
    )
    if data is not None:
        from paliglass.evaluation.examples import score, to_questions
        from paliglass.training.examples import open_examples

        codec = loaded.mask_codec
        questions = to_questions(open_examples(data, images, task.value, codec))[:limit]
        cases = ask(
            loaded,
            questions,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            progress=lambda done: _tell(data.name, done, len(questions)),
        )
        scores, answered = {data.name: score(cases, codec)}, {data.name: cases}
    else:
        from paliglass.evaluation.scenes import evaluate as evaluate_world
        from paliglass.world import World

        side = loaded.model.config.vision_config.image_size

        @functools.cache
        def open_world(name: Any) -> World:
            return World(world_cache, name, seed, side, codec=loaded.mask_codec)

        scores, answered = evaluate_world(
            loaded, open_world, split or SPLITS, limit or 1000, prompts, batch_size, _tell
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
        _print(scores)


evaluate.__name__ = "eval"
command(evaluate)


def _tell(name: str, done: int, count: int) -> None:
    if sys.stderr.isatty():
        end = "\n" if done == count else ""
        print(f"\r{name}: {done} of {count} answered", end=end, file=sys.stderr, flush=True)


def _print(scores: Mapping[str, Mapping[str, Score]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for name, rows in scores.items():
        table = Table("task", title=name, title_justify="left")
        for head in ("score", "baseline", "floor", "target", "n"):
            table.add_column(head, justify="right")
        for task, value in rows.items():
            figures = (value.score, value.baseline, value.floor, value.target)
            cells = ("" if figure is None else f"{figure:.3f}" for figure in figures)
            table.add_row(task, *cells, str(value.n))
        console.print(table)
