"""eval: how right a model is on data of one's own."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import Annotated

import typer

from paliglass.cli.app import command
from paliglass.cli.options import MODEL_HELP, Dtype, Quantize
from paliglass.cli.scores import print_scores, tell_progress
from paliglass.cli.train.finetune import CocoTask


def evaluate(
    data: Annotated[
        Path, typer.Option(exists=True, help="What `paliglass train finetune --data` takes.")
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", envvar="PALIGLASS_MODEL", help=MODEL_HELP)
    ] = "mini",
    adapter: Annotated[
        str | None, typer.Option(help="A LoRA adapter of the model: a folder or a hub id.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Where COCO's or VQAv2's pictures are."),
    ] = None,
    task: Annotated[CocoTask, typer.Option(help="For COCO's boxes.")] = CocoTask.DETECT,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Examples; all of them by default."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    dtype: Annotated[Dtype, typer.Option(help="What to convert the weights to.")] = "auto",
    quantize: Annotated[Quantize | None, typer.Option(help="Make the weights smaller.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts that run together.")] = 32,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The limit of an answer.")] = 128,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    html: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="A page of the scores and the worst answers to write."),
    ] = None,
) -> None:
    """Score a model on your data: each prompt by the metric of its task."""
    from paliglass.checkpoints.hub import locate

    locate(model)  # before torch is imported, which takes seconds
    from paliglass.data.examples import open_examples
    from paliglass.evaluation.cases import ask
    from paliglass.evaluation.examples import score, to_questions
    from paliglass.evaluation.page import to_html
    from paliglass.files import write_whole
    from paliglass.model import load

    loaded = load(
        model,
        device=device,
        dtype=dtype,
        adapter=adapter,
        quantize=quantize,
    )
    codec = loaded.mask_codec
    questions = to_questions(open_examples(data, images, task.value, codec))[:limit]
    cases = ask(
        loaded,
        questions,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        progress=lambda done: tell_progress(data.name, done, len(questions)),
    )
    scores, answered = {data.name: score(cases, codec)}, {data.name: cases}
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


evaluate.__name__ = "eval"
command(evaluate)
