"""caption, ask, read, detect, generate: a task over pictures."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paliglass.cli.app import command, fail
from paliglass.cli.options import (
    Language,
    OutputOptions,
    Pictures,
    PicturesAndText,
    RunOptions,
)
from paliglass.cli.pictures import STDIN, identity, open_picture, picture_names
from paliglass.cli.results import FILE, Results, to_line
from paliglass.cli.screen import Screen
from paliglass.errors import PictureError
from paliglass.tasks.prompts import READ, answer_prompt, caption_prompt, detect_prompt

if TYPE_CHECKING:
    from PIL import Image
    from rich.table import Table

    from paliglass.model import PaliGemma
    from paliglass.tasks.results import Detection


@command
def caption(
    pictures: Pictures, *, lang: Language = "en", run: RunOptions, output: OutputOptions
) -> None:
    """Say in a sentence what each picture shows."""
    _answer("caption", pictures, caption_prompt(lang), run, output)


@command
def ask(
    pictures: PicturesAndText,
    *,
    question: Annotated[
        str | None, typer.Option("--question", "-q", help="The question, if not the last argument.")
    ] = None,
    lang: Language = "en",
    run: RunOptions,
    output: OutputOptions,
) -> None:
    """Answer a question: paliglass ask PICTURE "what is on the left?"."""
    pictures, question = _split(pictures, question, "a question", "--question")
    _answer("ask", pictures, answer_prompt(question, lang), run, output)


@command
def read(pictures: Pictures, *, run: RunOptions, output: OutputOptions) -> None:
    """Read the text in each picture, line by line."""
    _answer("read", pictures, READ, run, output)


@command
def detect(
    pictures: PicturesAndText,
    *,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", "-l", help="What to find, if not the last argument; repeatable."),
    ] = None,
    run: RunOptions,
    output: OutputOptions,
) -> None:
    """Find things and their boxes: paliglass detect PICTURE "dog ; apple".

    Boxes are x0, y0, x1, y1 in pixels from the upper left corner. With --out, each picture is
    saved with its boxes drawn.
    """
    labels = label
    if labels is None:
        pictures, text = _split(pictures, None, "what to find", "--label")
        labels = [text]
    settings = run.generation()

    def find(model: PaliGemma, images: list[Image.Image], first: int) -> list[list[Detection]]:
        return model.detect(images, labels, batch_size=run.batch_size, first_row=first, **settings)

    _run(Task("detect", detect_prompt(labels), find), pictures, run, output)


@command
def generate(
    pictures: PicturesAndText,
    *,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="The prompt, if not the last argument.")
    ] = None,
    run: RunOptions,
    output: OutputOptions,
) -> None:
    """Give the raw answer to any prompt: paliglass generate PICTURE "caption en"."""
    pictures, prompt = _split(pictures, prompt, "a prompt", "--prompt")
    _answer("generate", pictures, prompt, run, output)


def _split(arguments: list[str], text: str | None, what: str, option: str) -> tuple[list[str], str]:
    """(pictures, text): the text is the last argument, unless its option gave it."""
    if text is not None:
        return arguments, text
    *pictures, text = arguments
    is_picture = text == STDIN or os.path.exists(text)
    if not pictures or is_picture:
        raise typer.BadParameter(
            f"{what} is missing: put it after the pictures in quotes, or use {option}"
            + (f" ({text} names pictures)" if is_picture else "")
        )
    return pictures, text


@dataclass(frozen=True)
class Task:
    """What is done with pictures.

    run: the model, some pictures and the first one's number among all → as many results, each a
    str or a list of Detection.
    """

    name: str
    prompt: str
    run: Callable[[PaliGemma, list[Image.Image], int], list[Any]]


def _answer(
    name: str, arguments: list[str], prompt: str, run: RunOptions, output: OutputOptions
) -> None:
    """A task that is answered in words; at a terminal, a single picture's come one by one."""
    settings = run.generation()

    def words(model: PaliGemma, images: list[Image.Image], first: int) -> list[str]:
        answers: list[str] = model.generate(
            images, prompt, batch_size=run.batch_size, first_row=first, **settings
        )
        return answers

    names = picture_names(arguments, output.recursive)
    plain = not output.json and output.out is None
    if plain and names == arguments and len(names) == 1 and sys.stdout.isatty():
        image = open_picture(names[0])
        for piece in _load(run).generate(image, prompt, stream=True, **settings):
            print(piece, end="", flush=True)
        print()
    else:
        _run(Task(name, prompt, words), arguments, run, output)


def _load(run: RunOptions) -> PaliGemma:
    from paliglass.model import load

    return load(run.model, device=run.device, dtype=run.dtype.value)


def _run(task: Task, arguments: list[str], run: RunOptions, output: OutputOptions) -> None:
    """Runs a task over pictures in batches and hands out each result as soon as it is there.

    A picture that cannot be read is named on stderr and the others go on; then the exit code is 1.
    """
    names = picture_names(arguments, output.recursive)
    single = names == arguments and len(names) == 1
    job = {"task": task.name, "prompt": task.prompt, "model": run.model}
    with ExitStack() as stack:
        results = None
        todo = list(enumerate(names))
        if output.out is not None:
            if output.resume and STDIN in names:
                raise typer.BadParameter("--resume cannot know which picture - was; name a file")
            results = Results(output.out, job, output.resume)
            stack.enter_context(closing(results))
            todo = [(i, name) for i, name in todo if identity(name) not in results.done]
        screen = stack.enter_context(Screen(len(names)))
        screen.advance(len(names) - len(todo))
        done = 0
        model = None
        try:
            for batch in _batches(todo, run.batch_size, screen):
                # Loaded late: when no picture can be read, nobody should wait for a model.
                model = model or _load(run)
                images = [image for _, _, image in batch]
                answers = task.run(model, images, batch[0][0])
                for (_, name, image), result in zip(batch, answers, strict=True):
                    record = {"file": name, **job, **_fields(result)}
                    if results is not None:
                        results.append(record, _drawing(image, result))
                    if output.json:
                        screen.answer(to_line(record))
                    else:
                        _show(screen, None if single else name, result)
                    screen.advance()
                    done += 1
        except KeyboardInterrupt:
            kept = f", results are in {output.out}; --resume goes on" if output.out else ""
            raise KeyboardInterrupt(f"{done} of {len(todo)} pictures done{kept}") from None
    if output.resume and not todo:
        print(f"all {len(names)} pictures are in {output.out}/{FILE} already", file=sys.stderr)
    if done < len(todo):
        fail(f"{len(todo) - done} of {len(todo)} pictures could not be read")


def _batches(
    todo: list[tuple[int, str]], batch_size: int, screen: Screen
) -> Iterator[list[tuple[int, str, Image.Image]]]:
    """Readable pictures with number and name, no more in memory than a batch; complains of others.

    The numbers of a batch have no gap: a seed gives each picture its own random numbers by them,
    whatever was left out or done before.
    """
    batch: list[tuple[int, str, Image.Image]] = []
    for number, name in todo:
        try:
            image = open_picture(name)
        except PictureError as error:
            screen.complain(str(error))
            screen.advance()
            continue
        if batch and (len(batch) == batch_size or number != batch[-1][0] + 1):
            yield batch
            batch = []
        batch.append((number, name, image))
    if batch:
        yield batch


def _fields(result: str | list[Detection]) -> dict[str, Any]:
    if isinstance(result, str):
        return {"answer": result}
    return {"detections": [found.to_dict() for found in result]}


def _drawing(image: Image.Image, result: str | list[Detection]) -> Image.Image | None:
    if isinstance(result, str):
        return None
    from paliglass.tasks.drawing import draw_detections

    return draw_detections(image, result)


def _show(screen: Screen, name: str | None, result: str | list[Detection]) -> None:
    """One result for people, or in columns for programs. name: None where there is one picture."""
    if isinstance(result, str):
        # With a name it is a table of lines, so an answer must stay on its line.
        line = result.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")
        screen.answer(result if name is None else f"{name}\t{line}")
    elif sys.stdout.isatty():
        screen.answer(_table(name, result) if result else f"{name or 'picture'}: nothing found")
    else:
        for found in result:
            edges = (f"{edge:.1f}" for edge in found.box)
            columns = ([] if name is None else [name]) + [found.label, f"{found.score:.3f}", *edges]
            screen.answer("\t".join(columns))


def _table(name: str | None, detections: list[Detection]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=None if name is None else Text(name), title_justify="left")
    table.add_column("label")
    for column in ("score", "x0", "y0", "x1", "y1"):
        table.add_column(column, justify="right")
    for found in detections:
        edges = (f"{edge:.0f}" for edge in found.box)
        table.add_row(Text(found.label), f"{found.score:.2f}", *edges)
    return table
