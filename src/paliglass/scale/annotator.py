"""A model and a prompt → rows. The same object works on one machine and in each of Ray's workers.

A picture that cannot be read is a row with an error, and so is one that the model fails on: where a
batch fails, each picture of it is tried alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from paliglass.checkpoints.adapters import with_base
from paliglass.checkpoints.big_vision import read_big_vision_config
from paliglass.checkpoints.folder import read_config
from paliglass.checkpoints.hub import SHIPPED, locate
from paliglass.checkpoints.processor import picture_settings
from paliglass.contrastive.index import fingerprint
from paliglass.errors import PaliglassError
from paliglass.files import reason
from paliglass.generation import Completion, Request
from paliglass.model import PaliGemma, load
from paliglass.pictures import PreparedPicture
from paliglass.scale.opening import Opened, Square
from paliglass.scale.rows import Row, failed_row, to_row, to_table
from paliglass.tasks.answering import GenerationOptions, Options, Task
from paliglass.tasks.prompts import READ, split_labels

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Annotator", "Job"]

R = TypeVar("R")
T = TypeVar("T")

# What the command line calls the tasks of PaliGemma's first words.
_NAMES = {"cap": "caption", "caption": "caption", "describe": "caption", READ: "read"}
_NAMES |= {"answer": "ask", "detect": "detect", "segment": "segment"}
_CALIBRATED: dict[str, Any] = {"caption": "caption", "ask": "answer", "read": "ocr"}


@dataclass(frozen=True)
class Job:
    """What is asked about every picture.

    prompt: PaliGemma's own, such as `detect dog ; cat`, `caption en` or `ocr`. loading: keyword
    arguments of `paliglass.load`. options: how answers are generated; each picture's random numbers
    are its own. min_score, free: of detect and segment; see `PaliGemma.detect`.

    Raises PromptError for detect and segment without a label.
    """

    prompt: str
    model: str = "mini"
    loading: Mapping[str, Any] = field(default_factory=dict)
    options: Options = field(default_factory=Options)
    min_score: float = 0.0
    free: bool = False

    def __post_init__(self) -> None:
        _ = self.labels

    @property
    def task(self) -> str:
        """The command's name; `generate` where there is none for the prompt."""
        return _NAMES.get(self.prompt.partition(" ")[0], "generate")

    @property
    def labels(self) -> list[str]:
        """What is looked for."""
        if self.task not in ("detect", "segment"):
            return []
        return split_labels(self.prompt.partition(" ")[2], self.task)

    def square(self) -> Square:
        """How pictures are resized for the model, without its weights. Raises CheckpointError."""
        path, _ = with_base(locate(self.model))
        if path.suffix == ".npz":
            return Square(read_big_vision_config(path).vision_config.image_size)
        side = read_config(path).vision_config.image_size
        return Square(side, picture_settings(path, side).get("resample", Square.resample))

    def task_of(self, model: PaliGemma) -> Task[Any]:
        if self.task == "detect":
            return model.detect_task(self.labels, self.free, self.min_score)
        if self.task == "segment":
            return model.segment_task(self.labels, self.free, self.min_score)
        return model.text_task(self.prompt, _CALIBRATED.get(self.task))

    def settings(self) -> dict[str, Any]:
        """What decides about the answers, for a resumed run to agree with; plain JSON."""
        loading = {name: None if v is None else str(v) for name, v in self.loading.items()}
        options = {name: value for name, value in self.options.items() if name != "batch_size"}
        own = {"prompt": self.prompt, "model": self.model, "weights": self._weights()}
        return {**own, **loading, **options, "min_score": self.min_score, "free": self.free}

    def _weights(self) -> str | None:
        """Of folders here, which may be trained on under the same name: what they hold."""
        names = filter(None, (self.model, self.loading.get("adapter")))
        paths = [Path(name).expanduser() for name in names if name not in SHIPPED]
        folders = [path for path in paths if path.is_dir()]
        return fingerprint(*folders) if folders else None


class _Noted(Task[tuple[R, Sequence[Completion]]], Generic[R]):
    """A task whose result tells what the model said, too."""

    def __init__(self, task: Task[R]) -> None:
        self.task = task
        self.requests_per_picture = task.requests_per_picture

    def requests(
        self, pictures: Sequence[PreparedPicture], options: GenerationOptions, number: int
    ) -> list[Request]:
        return self.task.requests(pictures, options, number)

    def result(
        self, pictures: Sequence[PreparedPicture], completions: Sequence[Completion]
    ) -> tuple[R, Sequence[Completion]]:
        return self.task.result(pictures, completions), completions


class _SourceError(Exception):
    """What went wrong where pictures come from, not in the model."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


def _guarded(items: Iterable[T]) -> Iterator[T]:
    try:
        yield from items
    except Exception as error:
        raise _SourceError(error) from None


class Annotator:
    """A loaded model that makes rows of pictures.

    threads: of torch's; None leaves them. Raises PaliglassError as `load` and the task do.
    """

    def __init__(self, job: Job, threads: int | None = None) -> None:
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        self.job = job
        self.model = load(job.model, **job.loading)
        self.task = _Noted(job.task_of(self.model))
        self.options = GenerationOptions.of(job.options)

    def __call__(self, table: pa.Table) -> pa.Table:
        """A block of `Opened` → a block of `rows.SCHEMA`, for Ray Data."""
        return to_table(self.annotate(Opened(**row) for row in table.to_pylist()))

    def annotate(self, pictures: Iterable[Opened]) -> Iterator[Row]:
        """A row of each, in order; they are taken as the model has room. Never fails for one."""
        waiting = _guarded(pictures)
        while True:
            under_way: deque[Opened] = deque()
            try:
                yield from self._together(waiting, under_way)
                return
            except _SourceError as error:
                raise error.cause from None
            except Exception:
                yield from map(self._alone, under_way)

    def _together(self, pictures: Iterator[Opened], under_way: deque[Opened]) -> Iterator[Row]:
        """under_way: is given those that are taken and have no row yet."""

        def jobs() -> Iterator[tuple[int, Task[Any], list[PreparedPicture]]]:
            for picture in pictures:
                under_way.append(picture)
                if picture.square is not None:
                    yield picture.number, self.task, [self._prepared(picture)]

        for found, _ in self.model.answer(jobs(), self.options):
            yield from _failed_before(under_way, self._about)
            picture = under_way[0]
            if isinstance(found, PaliglassError):
                row = failed_row(self._about(picture), f"{picture.picture}: {found}")
            else:
                size = picture.width, picture.height
                row = to_row(self._about(picture), size, *found)
            under_way.popleft()  # only now: where no row could be made, it is tried alone
            yield row
        yield from _failed_before(under_way, self._about)

    def _alone(self, picture: Opened) -> Row:
        try:
            [row] = self._together(iter([picture]), deque())
        except Exception as error:
            kind = "" if isinstance(error, PaliglassError) else f"{type(error).__name__}: "
            row = failed_row(self._about(picture), f"{picture.picture}: {kind}{reason(error)}")
        return row

    def _prepared(self, picture: Opened) -> PreparedPicture:
        assert picture.square is not None
        side = self.model.processor.image_size
        square = np.frombuffer(picture.square, np.uint8).reshape(side, side, 3)
        size = picture.width, picture.height
        return PreparedPicture(self.model.processor.scale(square), size)

    def _about(self, picture: Opened) -> dict[str, str]:
        asked = {"task": self.job.task, "prompt": self.job.prompt, "model": self.job.model}
        return {"id": picture.id, "picture": picture.picture, **asked}


def _failed_before(
    under_way: deque[Opened], about: Callable[[Opened], dict[str, str]]
) -> Iterator[Row]:
    """The rows of those in front that could not be opened."""
    while under_way and under_way[0].square is None:
        picture = under_way.popleft()
        yield failed_row(about(picture), picture.error or "cannot be read")
