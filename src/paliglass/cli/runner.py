"""A task over pictures: read ahead, answered as the batch has room, told and kept one by one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from paliglass.cli.app import fail
from paliglass.cli.messages import detail, level, note, waiting
from paliglass.cli.options import ModelOptions, OutputOptions, RunOptions
from paliglass.cli.pictures import open_picture, picture_names, tell_first_frames
from paliglass.cli.printing import Printer
from paliglass.cli.processes import together
from paliglass.cli.results import FILE, STDIN, Results, identity
from paliglass.cli.screen import Screen
from paliglass.data.ahead import reading_threads, work_ahead
from paliglass.errors import PaliglassError, PictureError
from paliglass.parallel.processes import agree, num_processes, rank
from paliglass.tasks.results import Answer, Found, Segment

if TYPE_CHECKING:
    from PIL import Image

    from paliglass.model import PaliGemma
    from paliglass.pictures import PreparedPicture
    from paliglass.tasks.answering import Task

__all__ = ["Job", "Remarks", "load_model", "run_job"]

T = TypeVar("T")
PictureGroup = tuple[str, ...]  # the pictures of one prompt; one, save with --together
Numbered = tuple[int, PictureGroup]


@dataclass(frozen=True)
class Job:
    """What is done with pictures.

    task: of a model, what it is asked about each picture. settings: what else than the prompt
    decides about the results. labels: what is looked for. min_score: what is found is left out
    below it.
    """

    name: str
    prompt: str
    task: Callable[[PaliGemma], Task[Any]]
    settings: dict[str, Any]
    labels: tuple[str, ...] = ()
    preview: bool = False
    mask_codec: Path | None = None
    min_score: float = 0.0


def load_model(
    run: ModelOptions,
    mask_codec: Path | None = None,
    waiting: Callable[[str], AbstractContextManager[None]] = waiting,
) -> PaliGemma:
    """The model that the options name; what is not there is said before torch is imported.

    waiting: shows that it takes its time.
    """
    more: dict[str, Any] = {} if mask_codec is None else {"mask_codec": mask_codec}
    if num_processes() > 1:
        more["tensor_parallel"] = True
    with waiting(f"loading {run.model}"):
        model = run.load(**more)
    if level() == "verbose":
        from paliglass.fast import explain

        config = model.model.config.text_config
        told = explain(model.model.dtype, run.quantize, config)
        for line in [*repr(model).splitlines(), *told]:
            detail(line)
    return model


def run_job(job: Job, arguments: list[str], run: RunOptions, output: OutputOptions) -> None:
    """Runs a job over pictures and hands out each result as soon as it is there.

    A picture that cannot be read is named on stderr and the others go on; then the exit code is 1.
    Under `torchrun` all processes do so together, and the first hands out the results.
    """
    with together():
        _run_job(job, arguments, run, output)


def _run_job(job: Job, arguments: list[str], run: RunOptions, output: OutputOptions) -> None:
    names, complaints = picture_names(arguments, output.recursive)
    named = not (output.together or (names == arguments and len(names) == 1))
    groups = [tuple(names)] if output.together and names else [(name,) for name in names]
    _check(job, names, output)
    about = {"task": job.name, "prompt": job.prompt, "model": run.model}
    with ExitStack() as stack:
        results = None
        todo = list(enumerate(groups))
        if output.out is not None and not rank():
            whole = {**about, **job.settings, **run.settings(), "format": output.format}
            results = Results(output.out, whole, output.resume)
            stack.enter_context(closing(results))
            todo = [(i, group) for i, group in todo if identity(*group) not in results.done]
        if num_processes() > 1:
            todo = [(i, tuple(group)) for i, group in agree(todo)]
        screen = stack.enter_context(Screen(len(groups), keeps_on=results is not None))
        for complaint in complaints:
            screen.complain(complaint)
        screen.advance(len(groups) - len(todo))
        printer = Printer(screen, output.printed, job.labels, job.preview, named=named)
        remarks = Remarks(job, run.max_new_tokens)
        ended = False
        is_drawn = bool(job.labels) and (output.out is not None or job.preview)
        answers = stack.enter_context(closing(_answers(job, todo, run, is_drawn, screen)))
        try:
            for group, image, result in answers:
                files = {"file": group[0]} | ({"files": list(group)} if group[1:] else {})
                record = {**files, **about, **result.to_dict()}
                if results is not None:
                    results.append(record, *_pictures(job, image, result))
                printer.show(record, image, result)
                remarks.add(" ".join(group), result)
                screen.advance()
        except KeyboardInterrupt:
            kept = f", results are in {output.out}; --resume goes on" if output.out else ""
            done = f"{remarks.count} of {len(todo)} pictures done"
            raise KeyboardInterrupt(f"{done}{kept}") from None
        else:
            ended = True
        finally:
            # Of a run that was cut short too: what was done, and the exit code tells.
            if remarks.count or ended:
                printer.finish()
            if results is not None and output.written != "text":
                results.export(output.written, list(job.labels))
    tell_first_frames(sorted(screen.first_frames))
    remarks.tell()
    if results is not None and remarks.count:
        note(f"{output.out}: {results.contents()}")
    if output.resume and not todo and names:
        those = "the picture is" if len(names) == 1 else f"all {len(names)} pictures are"
        note(f"{those} in {output.out}/{FILE} already")
    if remarks.count < len(todo):
        what = "answered" if screen.unanswered else "read"
        fail(f"{len(todo) - remarks.count} of {len(todo)} pictures could not be {what}")
    if complaints:
        raise typer.Exit(1)


class Remarks:
    """What is worth saying about results when all are there: empty, cut or with nothing found."""

    def __init__(self, job: Job, max_new_tokens: int) -> None:
        self.job, self.max_new_tokens = job, max_new_tokens
        self.count = 0
        self.empty: list[str] = []
        self.cut: list[str] = []

    def add(self, name: str, result: Answer | Found[Any]) -> None:
        self.count += 1
        if not result:  # an empty text, or an empty list
            self.empty.append(name)
        if result.finish_reason == "length":
            self.cut.append(name)

    def tell(self) -> None:
        if self.empty:
            what = "nothing found" if self.job.labels else "the answer is empty"
            if least := self.job.min_score:
                what += f" with a score of {least:g} or more; --min-score 0 shows all"
            note(f"{self._which(self.empty)}: {what}")
        if self.cut:
            limit = f"{self.max_new_tokens} token" + ("s" if self.max_new_tokens > 1 else "")
            note(
                f"{self._which(self.cut)}: the answer was cut after {limit}; "
                "--max-new-tokens allows more"
            )

    def _which(self, names: list[str]) -> str:
        some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return some if self.count == 1 else f"{len(names)} of {self.count} pictures ({some})"


def _check(job: Job, names: list[str], output: OutputOptions) -> None:
    """What cannot end well is said before anything is loaded."""
    if num_processes() > 1 and STDIN in names:
        raise typer.BadParameter("- is read by one process, and this is several; name a file")
    if output.resume and STDIN in names:
        raise typer.BadParameter("--resume cannot know which picture - was; name a file")
    if output.format == "yolo":
        if not job.labels:
            raise typer.BadParameter("--format yolo is for detect and segment")
        from paliglass.formats.yolo import yolo_places

        yolo_places(names)


def _answers(
    job: Job, todo: list[Numbered], run: RunOptions, is_drawn: bool, screen: Screen
) -> Generator[tuple[PictureGroup, Image.Image | None, Any]]:
    """(names, first picture, result) of each that can be read, in order; complains of the others.

    Threads read and prepare the next pictures while the model runs. The picture itself is kept
    where it will be drawn on: what the model needs of it is much smaller.
    """
    from paliglass.pictures import IS_FIRST_OF_SEVERAL

    def opened(name: str) -> Image.Image:
        image = open_picture(name)
        if image.info.get(IS_FIRST_OF_SEVERAL):
            screen.first_frames.append(name)
        return image

    unread = iter(todo)
    in_turn = (
        (item, partial(lambda group: [opened(name) for name in group], item[1])) for item in unread
    )
    first = next(_readable(in_turn, screen), None)
    if first is None:
        return
    # Loaded late: when no picture can be read, nobody should wait for a model.
    model = load_model(run, job.mask_codec, screen.waiting)
    task = job.task(model)
    screen.start_clock()

    def prepare(
        images: Sequence[Image.Image],
    ) -> tuple[list[PreparedPicture], Image.Image | None]:
        prepared = [model.processor.prepare(image) for image in images]
        return prepared, images[0] if is_drawn else None

    def ready(item: Numbered) -> tuple[list[PreparedPicture], Image.Image | None]:
        return prepare([opened(name) for name in item[1]])

    threads = reading_threads()
    pool = ThreadPoolExecutor(threads)  # starts none before there is a second picture
    under_way: deque[tuple[PictureGroup, Image.Image | None]] = deque()

    def asked() -> Iterator[tuple[int, Task[Any], list[PreparedPicture]]]:
        nonlocal first
        assert first is not None
        number, group, images = first
        first = None  # it may be large
        prepared, kept = prepare(images)
        del images
        under_way.append((group, kept))
        yield number, task, prepared
        ahead = work_ahead(pool, ready, unread, run.batch_size + threads)
        others = _readable(((item, future.result) for item, future in ahead), screen)
        for number, group, (prepared, kept) in others:
            under_way.append((group, kept))
            yield number, task, prepared

    try:
        for result, tokens in model.answer(asked(), run.generation()):
            screen.answered(1, tokens)
            group, kept = under_way.popleft()
            if isinstance(result, PaliglassError):
                screen.unanswered += 1
                screen.complain(f"{' '.join(group)}: {result}")
                screen.advance()
            else:
                yield group, kept, result
    finally:
        pool.shutdown(cancel_futures=True)


def _readable(
    readers: Iterable[tuple[Numbered, Callable[[], T]]], screen: Screen
) -> Iterator[tuple[int, PictureGroup, T]]:
    """(number, names, what was read) of pictures that can be read; complains of the others."""
    for (number, group), read in readers:
        try:
            result = read()
        except PictureError as error:
            screen.complain(str(error))
            screen.advance()
        else:
            yield number, group, result


def _pictures(
    job: Job, image: Image.Image | None, result: Answer | Found[Any]
) -> tuple[Image.Image | None, list[Image.Image] | None]:
    """(drawing, masks), where a result has them."""
    if image is None or isinstance(result, Answer):
        return None, None
    masks = [item.mask_image() for item in result if isinstance(item, Segment)]
    return result.draw(image), masks if job.name == "segment" else None
