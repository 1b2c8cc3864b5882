"""data …: a training set looked over."""

from __future__ import annotations

import functools
import json as json_text
import os
from pathlib import Path
from typing import Annotated

import typer

from paliglass.cli.app import app, command
from paliglass.cli.train import CocoTask

data = typer.Typer(no_args_is_help=True)
app.add_typer(data, name="data", help="Look at training data; see `paliglass data check --help`.")


@functools.partial(command, on=data)
def check(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", exists=True, help="What `paliglass train finetune --data` takes."
        ),
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="Whose tokens are counted.")] = "mini",
    images: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Where COCO's or VQAv2's pictures are."),
    ] = None,
    task: Annotated[CocoTask, typer.Option(help="For COCO's boxes.")] = CocoTask.DETECT,
    sheet: Annotated[
        Path | None, typer.Option(dir_okay=False, help="A PNG to draw the first 24 examples to.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Validate a training set: what is in it, and every line that is wrong.

    Ends with exit code 1 where something is.
    """
    from paliglass.checkpoints.folder import load_tokenizer, read_config
    from paliglass.checkpoints.hub import locate
    from paliglass.checkpoints.processor import load_processor
    from paliglass.model import CODEC
    from paliglass.segmentation import MaskCodec
    from paliglass.training.checks import check as look
    from paliglass.training.checks import contact_sheet
    from paliglass.training.examples import open_examples

    folder = locate(model, ("*.json",))
    config = read_config(folder)
    load_tokenizer(folder)  # its complaint is the clearer one
    processor = load_processor(folder, config)
    codec = None
    if task is CocoTask.SEGMENT and (folder / CODEC).exists():
        codec = MaskCodec.load(folder / CODEC)
    examples = open_examples(source, images, task.value, codec)
    report = look(examples, processor, config.text_config.max_position_embeddings)
    if sheet is not None:
        unfinished = sheet.with_name(f".{sheet.name}.tmp")
        contact_sheet(examples[:24]).save(unfinished, format="PNG")
        os.replace(unfinished, sheet)
    if json:
        print(json_text.dumps(report.to_dict(), ensure_ascii=False))
    else:
        for where, problem in report.findings:
            print(f"{where}: {problem}")
        tasks = ", ".join(f"{name} {count}" for name, count in report.tasks.most_common(8))
        lengths = report.to_dict()
        print(f"{report.examples} examples of {report.pictures} pictures: {tasks}")
        for name in ("prefix_tokens", "suffix_tokens"):
            found = lengths[name]
            title = name.replace("_", " ")
            print(f"{title}: {found['least']} to {found['most']}, median {found['median']:g}")
        count = len(report.findings)
        print(f"{count} findings" if count else "nothing wrong found")
    if report.findings:
        raise typer.Exit(1)
