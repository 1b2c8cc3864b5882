"""A task over pictures: read ahead, answered as the batch has room, told and kept one by one."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from paliglass.cli.app import fail
from paliglass.cli.options import OutputOptions, RunOptions
from paliglass.cli.pictures import (
    open_picture,
    picture_names,
    tell_first_frames,
    work_ahead,
)
from paliglass.cli.printing import Printer
from paliglass.cli.results import FILE, STDIN, Results, identity
from paliglass.cli.screen import Screen
from paliglass.errors import PictureError
from paliglass.formats.yolo import yolo_places
from paliglass.tasks.results import Answer, Found, Segment

if TYPE_CHECKING:
    from PIL import Image

    from paliglass.model import PaliGemma
    from paliglass.pictures import PreparedPicture
    from paliglass.tasks.answering import Task

T = TypeVar("T")

MAX_THREADS = 8  # that read pictures; more would seldom be faster, and each holds a whole picture


@dataclass(frozen=True)
class Job:
    """What is done with pictures.

    task: of a model, what it is asked about each picture. settings: what else than the prompt
    decides about the results. labels: what is looked for.
    """

    name: str
    prompt: str
    task: Callable[[PaliGemma], Task[Any]]
    settings: dict[str, Any]
    labels: tuple[str, ...] = ()
    preview: bool = False
    mask_codec: Path | None = None


def load_model(run: RunOptions, mask_codec: Path | None = None) -> PaliGemma:
    """The model that the options name."""
    from paliglass.checkpoints.hub import locate

    for name in (run.model, run.adapter):
        if name is not None:
            locate(name)  # before torch is imported, which takes seconds
    from paliglass.model import load

    more: dict[str, Any] = {} if mask_codec is None else {"mask_codec": mask_codec}
    if run.quantize is not None:
        more["quantize"] = run.quantize
    return load(run.model, device=run.device, dtype=run.dtype, adapter=run.adapter, **more)


def run_job(job: Job, arguments: list[str], run: RunOptions, output: OutputOptions) -> None:
    """Runs a job over pictures and hands out each result as soon as it is there.

    A picture that cannot be read is named on stderr and the others go on; then the exit code is 1.
    """
    names, complaints = picture_names(arguments, output.recursive)
    single = names == arguments and len(names) == 1
    _check(job, names, output)
    about = {"task": job.name, "prompt": job.prompt, "model": run.model}
    with ExitStack() as stack:
        results = None
        todo = list(enumerate(names))
        if output.out is not None:
            whole = {**about, **job.settings, **run.settings(), "format": output.format}
            results = Results(output.out, whole, output.resume)
            stack.enter_context(closing(results))
            todo = [(i, name) for i, name in todo if identity(name) not in results.done]
        screen = stack.enter_context(Screen(len(names)))
        for complaint in complaints:
            screen.complain(complaint)
        screen.advance(len(names) - len(todo))
        printer = Printer(screen, output.printed, job.labels, job.preview, named=not single)
        done = 0
        ended = False
        is_drawn = bool(job.labels) and (output.out is not None or job.preview)
        answers = stack.enter_context(closing(_answers(job, todo, run, is_drawn, screen)))
        try:
            for name, image, result in answers:
                record = {"file": name, **about, **_fields(result)}
                if results is not None:
                    results.append(record, *_pictures(job, image, result))
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
            if results is not None and output.written != "text":
                results.export(output.written, list(job.labels))
    tell_first_frames(sorted(screen.first_frames))
    if output.resume and not todo and names:
        print(f"all {len(names)} pictures are in {output.out}/{FILE} already", file=sys.stderr)
    if done < len(todo):
        fail(f"{len(todo) - done} of {len(todo)} pictures could not be read")
    if complaints:
        raise typer.Exit(1)


def _check(job: Job, names: list[str], output: OutputOptions) -> None:
    """What cannot end well is said before anything is loaded."""
    if output.resume and STDIN in names:
        raise typer.BadParameter("--resume cannot know which picture - was; name a file")
    if output.format == "yolo":
        if not job.labels:
            raise typer.BadParameter("--format yolo is for detect and segment")
        yolo_places(names)


def _answers(
    job: Job, todo: list[tuple[int, str]], run: RunOptions, is_drawn: bool, screen: Screen
) -> Generator[tuple[str, Image.Image | None, Any]]:
    """(name, picture, result) of each that can be read, in order; complains of the others.

    Threads read and prepare the next pictures while the model runs. The picture itself is kept
    where it will be drawn on: what the model needs of it is much smaller.
    """
    from paliglass.pictures import IS_FIRST_OF_SEVERAL

    def opened(name: str) -> Image.Image:
        image = open_picture(name)
        if image.info.get(IS_FIRST_OF_SEVERAL):
            screen.first_frames.append(name)
        return image

    waiting = iter(todo)
    in_turn = ((item, partial(opened, item[1])) for item in waiting)
    first = next(_readable(in_turn, screen), None)
    if first is None:
        return
    # Loaded late: when no picture can be read, nobody should wait for a model.
    model = load_model(run, job.mask_codec)
    task = job.task(model)
    screen.start_clock()

    def prepare(image: Image.Image) -> tuple[PreparedPicture, Image.Image | None]:
        return model.processor.prepare(image), image if is_drawn else None

    def ready(item: tuple[int, str]) -> tuple[PreparedPicture, Image.Image | None]:
        return prepare(opened(item[1]))

    threads = min(os.cpu_count() or 1, MAX_THREADS)
    pool = ThreadPoolExecutor(threads)  # starts none before there is a second picture
    under_way: deque[tuple[str, Image.Image | None]] = deque()

    def asked() -> Iterator[tuple[int, Task[Any], list[PreparedPicture]]]:
        nonlocal first
        assert first is not None
        number, name, image = first
        first = None  # it may be large
        prepared, kept = prepare(image)
        del image
        under_way.append((name, kept))
        yield number, task, [prepared]
        ahead = work_ahead(pool, ready, waiting, run.batch_size + threads)
        others = _readable(((item, future.result) for item, future in ahead), screen)
        for number, name, (prepared, kept) in others:
            under_way.append((name, kept))
            yield number, task, [prepared]

    try:
        for result, tokens in model.answer(asked(), run.generation()):
            screen.answered(1, tokens)
            yield *under_way.popleft(), result
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


def _fields(result: str | Found[Any]) -> dict[str, Any]:
    if isinstance(result, Answer | Found):
        return result.to_dict()
    return {"answer": result}


def _pictures(
    job: Job, image: Image.Image | None, result: str | Found[Any]
) -> tuple[Image.Image | None, list[Image.Image] | None]:
    """(drawing, masks), where a result has them."""
    if image is None or isinstance(result, str):
        return None, None
    masks = [item.mask_image() for item in result if isinstance(item, Segment)]
    return result.draw(image), masks if job.name == "segment" else None
