"""data …: a training set looked over."""

from __future__ import annotations

import functools
import json as json_text
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paliglass.cli.app import app, command
from paliglass.cli.messages import counted, note
from paliglass.cli.options import CocoTask, JsonObject, Overwrite, refuse_existing_file
from paliglass.cli.scores import warn
from paliglass.errors import printable
from paliglass.training.recipes import FinetuneRecipe

if TYPE_CHECKING:
    from paliglass.data.checks import DataSummary

__all__ = ["check", "fetch"]

SHOWN = 20  # findings of the same words; --json has all

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
    task: Annotated[CocoTask, typer.Option(help="For boxes of COCO and YOLO.")] = "detect",
    sheet: Annotated[
        Path | None, typer.Option(dir_okay=False, help="A PNG to draw the first 24 examples to.")
    ] = None,
    overwrite: Overwrite = False,
    json: JsonObject = False,
) -> None:
    """Validate a data set: what is in it, and every line that is wrong, left out or odd.

    Of a folder with splits all are read. Ends with exit code 1 where something is found.
    """
    from paliglass.checkpoints.adapters import with_base
    from paliglass.checkpoints.folder import load_tokenizer, read_config
    from paliglass.checkpoints.hub import locate
    from paliglass.checkpoints.mask_codec import CODEC, load_mask_codec
    from paliglass.checkpoints.processor import load_processor
    from paliglass.data.checks import check as look
    from paliglass.data.checks import contact_sheet
    from paliglass.data.example import Findings
    from paliglass.data.reading import open_examples
    from paliglass.files import replacing

    refuse_existing_file(sheet, overwrite)
    folder, _ = with_base(locate(model, ("*.json",)))
    config = read_config(folder)
    load_tokenizer(folder)  # its complaint is the clearer one
    processor = load_processor(folder, config)
    codec = None
    if task == "segment" and (folder / CODEC).exists():
        codec = load_mask_codec(folder / CODEC)
    findings = Findings()
    examples = open_examples(source, images, task, codec, split="all", findings=findings)
    report = look(examples, processor, config.text_config.max_position_embeddings, findings)
    if sheet is not None:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        with replacing(sheet) as unfinished:
            contact_sheet(examples[:24]).save(unfinished, format="PNG")
        note(f"drawn: {sheet}")
    if json:
        print(json_text.dumps(report.to_dict(), ensure_ascii=False))
    else:
        _show(report)
    if report.examples < FinetuneRecipe().batch_size:
        note(
            f"fewer examples than a batch has by default: train with --batch-size {report.examples}"
        )
    if report.findings:
        raise typer.Exit(1)


def _show(report: DataSummary) -> None:
    """The report for people: a line for each finding, then what there is."""
    told: Counter[str] = Counter()
    for found in report.findings:
        told[found.problem] += 1
        if told[found.problem] <= SHOWN:
            print(printable(f"{found.where}: {found.problem}"))
    for problem, count in told.items():
        if count > SHOWN:
            print(printable(f"{count - SHOWN} more: {problem}"))
    tasks = ", ".join(f"{name} {count}" for name, count in report.tasks.most_common(8))
    about = f"{counted(report.examples, 'example')} of {counted(report.pictures, 'picture')}"
    print(printable(about + (f": {tasks}" if tasks else "")))
    lengths = report.to_dict()
    for name in ("prefix_tokens", "suffix_tokens"):
        found = lengths[name]
        title = name.replace("_", " ")
        if found:
            print(f"{title}: {found['least']} to {found['most']}, median {found['median']:g}")
    count = len(report.findings)
    left_out = len(report.findings.of("left out"))
    print(
        counted(count, "finding") + (f", {left_out} left out of training" if left_out else "")
        if count
        else "nothing wrong found"
    )


@functools.partial(command, on=data)
def fetch(
    name: Annotated[
        str, typer.Argument(help="A data set of the Hugging Face hub, or a .json, .csv, .parquet.")
    ],
    out: Annotated[Path, typer.Argument(help="The new folder, for `train finetune --data`.")],
    split: Annotated[str, typer.Option(help="Of the data set.")] = "train",
    config: Annotated[str | None, typer.Option(help="Of the data set, if it has several.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows; all by default.")] = None,
    image: Annotated[str | None, typer.Option(help="The column with the picture.")] = None,
    prefix: Annotated[
        str | None,
        typer.Option(help='A column, or the prompt: "caption en", "answer en {question}".'),
    ] = None,
    suffix: Annotated[str | None, typer.Option(help="The column with what is right.")] = None,
) -> None:
    """Stream a data set of the `datasets` library into pictures and JSON lines."""
    from paliglass.checkpoints.saving import refuse_existing
    from paliglass.data.streams import class_names, open_stream, to_rows
    from paliglass.data.streams import fetch as write

    refuse_existing(out)
    stream = open_stream(name, config, split)
    rows = to_rows(stream, image, prefix, suffix, class_names(stream))
    count = write(rows, out, limit, tell=warn)
    print(f"{out}: {counted(count, 'example')}; look at them with: paliglass data check {out}")
