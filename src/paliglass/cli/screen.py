"""Where a run's output goes: answers to stdout, complaints and a progress bar to stderr."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from paliglass.cli.messages import complain, counted, detail, level, one_line, waiting

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from rich.table import Table

__all__ = ["Screen"]


class Screen:
    """Shows a progress bar while its block runs, and how fast it went when it has ended.

    For several pictures and at a terminal only. keeps_on: whether there is a reason to go on when
    nobody reads stdout any more, as a file that is written too.
    """

    def __init__(self, total: int, keeps_on: bool = False) -> None:
        self.total, self.keeps_on = total, keeps_on
        self.first_frames: list[str] = []  # files of whose frames only the first was looked at
        self.unanswered = 0  # pictures of which the model's numbers overflowed
        self._bar: tuple[Progress, TaskID] | None = None
        self._start = 0.0
        self._pictures = 0
        self._tokens = 0

    def __enter__(self) -> Self:
        if self.total > 1 and level() != "quiet" and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
            )

            progress = Progress(
                *Progress.get_default_columns()[:2],
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[speed]}"),
                console=Console(stderr=True),
                transient=True,
                # Else rich would send stdout's lines to stderr, away from a pipe.
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._bar = progress, progress.add_task("pictures", total=self.total, speed="")
            progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        shown = self._bar is not None
        if self._bar is not None:
            self._bar[0].stop()
            self._bar = None
        if self._pictures and error is None and (shown or level() == "verbose"):
            seconds = time.perf_counter() - self._start
            told = (
                f"{counted(self._pictures, 'picture')} in {seconds:.1f} s: {self._speed(seconds)}"
            )
            if not shown:
                detail(told)
            elif self._pictures > 1:
                print(told, file=sys.stderr)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Shows that the block is under way; see `messages.waiting`."""
        if self._bar is None:
            with waiting(what):
                yield
            return
        from rich.markup import escape

        bar, task = self._bar
        bar.update(task, description=escape(one_line(what)))
        yield
        bar.update(task, description="pictures")

    def start_clock(self) -> None:
        """From here on speed is measured: the model is there."""
        self._start = time.perf_counter()

    def answered(self, pictures: int, tokens: int) -> None:
        """So many more have been answered, with so many tokens."""
        self._pictures += pictures
        self._tokens += tokens
        if self._bar is not None:
            speed = self._speed(time.perf_counter() - self._start)
            self._bar[0].update(self._bar[1], speed=speed)

    def _speed(self, seconds: float) -> str:
        return f"{self._pictures / seconds:.1f} pictures/s, {self._tokens / seconds:.0f} tokens/s"

    def answer(self, text: str | Table) -> None:
        """Prints to stdout; at a terminal, above the bar."""
        try:
            self._answer(text)
        except BrokenPipeError:
            if not self.keeps_on:
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _answer(self, text: str | Table) -> None:
        if self._bar is not None and sys.stdout.isatty():
            self._bar[0].console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif isinstance(text, str):
            print(text, flush=True)
        else:
            from rich.console import Console

            Console().print(text)

    def write(self, text: str) -> None:
        """Writes text with a terminal's own codes to stdout, as it is; the bar makes room."""
        if self._bar is not None:
            self._bar[0].stop()
        sys.stdout.write(text)
        sys.stdout.flush()
        if self._bar is not None:
            self._bar[0].start()

    def complain(self, message: str) -> None:
        """One line on stderr; at a terminal, above the bar."""
        if self._bar is None:
            complain(message)
        else:
            line = f"error: {one_line(message)}"
            self._bar[0].console.print(line, markup=False, highlight=False, soft_wrap=True)

    def advance(self, pictures: int = 1) -> None:
        if self._bar is not None:
            self._bar[0].advance(self._bar[1], pictures)
