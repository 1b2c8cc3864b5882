"""caption, ask, read, detect, segment, generate: a task over pictures."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from paliglass.cli.app import command, fail
from paliglass.cli.options import (
    FindOptions,
    Format,
    Language,
    OutputOptions,
    Pictures,
    PicturesAndText,
    RunOptions,
    Style,
)
from paliglass.cli.pictures import open_picture, picture_names, work_ahead
from paliglass.cli.results import FILE, STDIN, Results, identity
from paliglass.cli.screen import Screen
from paliglass.errors import PictureError
from paliglass.formats.export import export, to_csv, to_line, yolo_places
from paliglass.tasks.prompts import (
    READ,
    answer_prompt,
    caption_prompt,
    detect_prompt,
    segment_prompt,
    split_labels,
)
from paliglass.tasks.results import Answer, Found, Segment

if TYPE_CHECKING:
    from PIL import Image
    from rich.table import Table

    from paliglass.model import PaliGemma
    from paliglass.pictures import PreparedPicture
    from paliglass.tasks.confidence import Task as CalibratedTask


T = TypeVar("T")

# Of which task a command's scores are; `generate` could be any.
CALIBRATED: dict[str, CalibratedTask] = {"caption": "caption", "ask": "answer", "read": "ocr"}
MAX_THREADS = 8  # that read pictures; more would seldom be faster, and each holds a whole picture


@command
def caption(
    pictures: Pictures,
    *,
    lang: Language = "en",
    style: Annotated[
        Style, typer.Option(help="cap is short, caption a sentence, describe more than that.")
    ] = Style.CAPTION,
    run: RunOptions,
    output: OutputOptions,
) -> None:
    """Say in a sentence what each picture shows."""
    _answer("caption", pictures, caption_prompt(lang, style.value), run, output)


@command
def ask(
    pictures: PicturesAndText,
    *,
    question: Annotated[
        str | None, typer.Option("--question", "-q", help="The question, if not the last argument.")
    ] = None,
    choice: Annotated[
        list[str] | None,
        typer.Option("--choice", "-c", help="An answer to choose from; repeat it for each."),
    ] = None,
    lang: Language = "en",
    run: RunOptions,
    output: OutputOptions,
) -> None:
    """Answer a question: paliglass ask PICTURE "what is on the left?".

    With --choice yes --choice no, the answer is one of these.
    """
    pictures, question = _split(pictures, question, "a question", "--question")
    prompt = answer_prompt(question, lang)
    if not choice:
        return _answer("ask", pictures, prompt, run, output)

    def choose(model: PaliGemma, images: list[PreparedPicture], first: int) -> list[Any]:
        return [*model.ask(images, question, lang, choices=choice, **run.batch(first))]

    _run(Task("ask", prompt, choose, {"choices": choice}), pictures, run, output)


@command
def read(pictures: Pictures, *, run: RunOptions, output: OutputOptions) -> None:
    """Read the text in each picture, line by line."""
    _answer("read", pictures, READ, run, output)


@command
def detect(
    pictures: PicturesAndText, *, find: FindOptions, run: RunOptions, output: OutputOptions
) -> None:
    """Find things and their boxes: paliglass detect PICTURE "dog ; apple".

    Boxes are x0, y0, x1, y1 in pixels from the upper left corner. With --out, each picture is
    saved with its boxes drawn.
    """
    _find("detect", detect_prompt, pictures, find, run, output)


@command
def segment(
    pictures: PicturesAndText,
    *,
    mask_codec: Annotated[
        Path | None,
        typer.Option(help="What turns codes into masks, if the model has none: vae-oid.npz."),
    ] = None,
    find: FindOptions,
    run: RunOptions,
    output: OutputOptions,
) -> None:
    """Find things pixel by pixel: paliglass segment PICTURE "dog ; apple".

    With --out, each picture is saved with its masks drawn, and each mask as a PNG; --json has
    them in COCO's run lengths.
    """
    _find("segment", segment_prompt, pictures, find, run, output, mask_codec)


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
    str or a `Found`. settings: what else decides about the results. labels: what is looked for.
    """

    name: str
    prompt: str
    run: Callable[[PaliGemma, list[PreparedPicture], int], list[Any]]
    settings: dict[str, Any]
    labels: tuple[str, ...] = ()
    preview: bool = False
    mask_codec: Path | None = None


def _answer(
    name: str, arguments: list[str], prompt: str, run: RunOptions, output: OutputOptions
) -> None:
    """A task that is answered in words; at a terminal, a single picture's come one by one."""

    def words(model: PaliGemma, images: list[PreparedPicture], first: int) -> list[str]:
        answers: list[str] = model.generate(
            images, prompt, task=CALIBRATED.get(name), **run.batch(first)
        )
        return answers

    is_file = len(arguments) == 1 and (arguments[0] == STDIN or os.path.isfile(arguments[0]))
    plain = output.printed is Format.TEXT and output.out is None
    if plain and is_file and sys.stdout.isatty():
        image = open_picture(arguments[0])
        for piece in _load(run).generate(image, prompt, stream=True, **run.generation()):
            print(piece, end="", flush=True)
        print()
    else:
        _run(Task(name, prompt, words, {}), arguments, run, output)


def _find(
    name: str,
    to_prompt: Callable[[list[str]], str],
    pictures: list[str],
    find: FindOptions,
    run: RunOptions,
    output: OutputOptions,
    mask_codec: Path | None = None,
) -> None:
    """detect and segment: labels, then boxes or masks."""
    labels = find.label
    if labels is None:
        pictures, text = _split(pictures, None, "what to find", "--label")
        labels = [text]
    labels = split_labels(labels, name)
    if find.preview and output.printed is not Format.TEXT:
        raise typer.BadParameter("--preview is for people; leave out --json or --format")
    how = {"free": True} if find.free else {}

    def things(model: PaliGemma, images: list[PreparedPicture], first: int) -> list[Found[Any]]:
        found = getattr(model, name)(images, labels, **how, **run.batch(first))
        return [
            Found(some, *image.size).above(find.min_score)
            for some, image in zip(found, images, strict=True)
        ]

    settings = {"labels": labels, "min_score": find.min_score, "free": find.free}
    if mask_codec is not None:
        settings["mask_codec"] = str(mask_codec)
    task = Task(name, to_prompt(labels), things, settings, tuple(labels), find.preview, mask_codec)
    _run(task, pictures, run, output)


def _load(run: RunOptions, mask_codec: Path | None = None) -> PaliGemma:
    from paliglass.model import load

    more: dict[str, Any] = {} if mask_codec is None else {"mask_codec": mask_codec}
    if run.quantize is not None:
        more["quantize"] = run.quantize.value
    return load(run.model, device=run.device, dtype=run.dtype.value, adapter=run.adapter, **more)


def _run(task: Task, arguments: list[str], run: RunOptions, output: OutputOptions) -> None:
    """Runs a task over pictures in batches and hands out each result as soon as it is there.

    A picture that cannot be read is named on stderr and the others go on; then the exit code is 1.
    """
    names, complaints = picture_names(arguments, output.recursive)
    single = names == arguments and len(names) == 1
    _check(task, names, output)
    job = {"task": task.name, "prompt": task.prompt, "model": run.model}
    with ExitStack() as stack:
        results = None
        todo = list(enumerate(names))
        if output.out is not None:
            whole_job = {**job, **task.settings, **run.settings(), "format": output.format.value}
            results = Results(output.out, whole_job, output.resume)
            stack.enter_context(closing(results))
            todo = [(i, name) for i, name in todo if identity(name) not in results.done]
        screen = stack.enter_context(Screen(len(names)))
        for complaint in complaints:
            screen.complain(complaint)
        screen.advance(len(names) - len(todo))
        printer = Printer(screen, output.printed, task, None if single else names)
        done = 0
        ended = False
        is_drawn = bool(task.labels) and (output.out is not None or task.preview)
        answers = stack.enter_context(closing(_answers(task, todo, run, is_drawn, screen)))
        try:
            for name, image, result in answers:
                record = {"file": name, **job, **_fields(result)}
                if results is not None:
                    results.append(record, *_pictures(task, image, result))
                printer.show(record, image, result)
                screen.advance()
                done += 1
        except KeyboardInterrupt:
            kept = f", results are in {output.out}; --resume goes on" if output.out else ""
            raise KeyboardInterrupt(f"{done} of {len(todo)} pictures done{kept}") from None
        else:
            ended = True
        finally:
            # Of a run that was cut short too: what was done, and the exit code tells.
            if done or ended:
                printer.finish()
            if results is not None and output.written is not Format.TEXT:
                results.export(output.written.value, list(task.labels))
    if output.resume and not todo and names:
        print(f"all {len(names)} pictures are in {output.out}/{FILE} already", file=sys.stderr)
    if done < len(todo):
        fail(f"{len(todo) - done} of {len(todo)} pictures could not be read")
    if complaints:
        raise typer.Exit(1)


def _check(task: Task, names: list[str], output: OutputOptions) -> None:
    """What cannot end well is said before anything is loaded."""
    if output.resume and STDIN in names:
        raise typer.BadParameter("--resume cannot know which picture - was; name a file")
    if output.format is Format.YOLO:
        if not task.labels:
            raise typer.BadParameter("--format yolo is for detect and segment")
        yolo_places(names)


def _answers(
    task: Task, todo: list[tuple[int, str]], run: RunOptions, is_drawn: bool, screen: Screen
) -> Generator[tuple[str, Image.Image | None, Any]]:
    """(name, picture, result) of each that can be read, in order; complains of the others.

    Threads read and prepare the next pictures while the model runs. The picture itself is kept
    where it will be drawn on: what the model needs of it is much smaller.
    """
    waiting = iter(todo)
    in_turn = ((item, partial(open_picture, item[1])) for item in waiting)
    first = next(_readable(in_turn, screen), None)
    if first is None:
        return
    # Loaded late: when no picture can be read, nobody should wait for a model.
    model = _load(run, task.mask_codec)
    screen.start_clock()

    def prepare(image: Image.Image) -> tuple[PreparedPicture, Image.Image | None]:
        return model.processor.prepare(image), image if is_drawn else None

    def ready(item: tuple[int, str]) -> tuple[PreparedPicture, Image.Image | None]:
        return prepare(open_picture(item[1]))

    threads = min(os.cpu_count() or 1, MAX_THREADS)
    pool = ThreadPoolExecutor(threads)  # starts none before there is a second picture
    try:
        ahead = work_ahead(pool, ready, waiting, run.batch_size + threads)
        others = _readable(((item, future.result) for item, future in ahead), screen)
        number, name, image = first
        begin = [(number, name, prepare(image))]
        del first, image  # it may be large
        for batch in _batches(chain(begin, others), run.batch_size):
            before = model.generated_tokens
            results = task.run(model, [prepared for _, _, (prepared, _) in batch], batch[0][0])
            screen.answered(len(batch), model.generated_tokens - before)
            for (_, name, (_, kept)), result in zip(batch, results, strict=True):
                yield name, kept, result
    finally:
        pool.shutdown(cancel_futures=True)


def _readable(
    readers: Iterable[tuple[tuple[int, str], Callable[[], T]]], screen: Screen
) -> Iterator[tuple[int, str, T]]:
    """(number, name, what was read) of pictures that can be read; complains of the others."""
    for (number, name), read in readers:
        try:
            result = read()
        except PictureError as error:
            screen.complain(str(error))
            screen.advance()
        else:
            yield number, name, result


def _batches(
    pictures: Iterable[tuple[int, str, T]], batch_size: int
) -> Iterator[list[tuple[int, str, T]]]:
    """Pictures in batches, whose numbers have no gap: by them a seed gives each picture its own
    random numbers, whatever was left out or done before.
    """
    batch: list[tuple[int, str, T]] = []
    for picture in pictures:
        if batch and (len(batch) == batch_size or picture[0] != batch[-1][0] + 1):
            yield batch
            batch = []
        batch.append(picture)
    if batch:
        yield batch


def _fields(result: str | Found[Any]) -> dict[str, Any]:
    if isinstance(result, Answer | Found):
        return result.to_dict()
    return {"answer": result}


def _pictures(
    task: Task, image: Image.Image | None, result: str | Found[Any]
) -> tuple[Image.Image | None, list[Image.Image] | None]:
    """(drawing, masks), where a result has them."""
    if image is None or isinstance(result, str):
        return None, None
    masks = [item.mask_image() for item in result if isinstance(item, Segment)]
    return result.draw(image), masks if task.name == "segment" else None


class Printer:
    """Hands results to standard output in the format asked for.

    names: None where there is one picture, which then needs no name.
    """

    def __init__(self, screen: Screen, format: Format, task: Task, names: list[str] | None) -> None:
        self.screen = screen
        self.format = format
        self.task = task
        self.names = names
        self._kept: list[dict[str, Any]] = []  # of a format that is one document
        self._header = True

    def show(
        self, record: dict[str, Any], image: Image.Image | None, result: str | Found[Any]
    ) -> None:
        """One picture's result."""
        if self.format is Format.TEXT:
            _show(self.screen, record["file"] if self.names else None, result)
            if self.task.preview and image is not None and isinstance(result, Found):
                _preview(self.screen, image, result)
        elif self.format is Format.JSONL:
            self.screen.answer(to_line(record))
        elif self.format is Format.CSV:
            rows = to_csv([record], self._header)
            self._header = False
            if rows:
                self.screen.answer(rows.rstrip("\n"))
        else:
            self._kept.append(record)

    def finish(self) -> None:
        """Prints what could not be printed picture by picture."""
        if self.format in (Format.JSON, Format.COCO):
            [text] = export(self._kept, self.format.value, self.task.labels).values()
            self.screen.answer(text.rstrip("\n"))


def _preview(screen: Screen, image: Image.Image, found: Found[Any]) -> None:
    from paliglass.cli.preview import FORCE, choose_protocol, preview

    if sys.stdout.isatty() or FORCE in os.environ:
        protocol = choose_protocol(os.environ)
        # A small picture is enlarged, so that its labels can be read.
        scale = 1 if protocol == "blocks" else max(1, 480 // max(image.size))
        screen.write(
            preview(found.draw(image, scale), protocol, shutil.get_terminal_size().columns)
        )


def _show(screen: Screen, name: str | None, result: str | Found[Any]) -> None:
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


def _table(name: str | None, detections: Found[Any]) -> Table:
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
