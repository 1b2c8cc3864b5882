"""Requests on their way: what a job is, and the bounded line that they wait in."""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from paliglass.errors import PaliglassError, PromptError
from paliglass.generation import Event, Request

__all__ = [
    "BusyError",
    "Job",
    "LateError",
    "Line",
    "ModelError",
    "News",
    "NotReadyError",
    "Place",
    "log",
]

News = list[Event] | PaliglassError


class BusyError(PaliglassError):
    """All places are taken. retry_after: in so many seconds there may be one."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("the server is full; try again a little later")
        self.retry_after = retry_after


class NotReadyError(PaliglassError):
    """The model is being loaded, or the server is ending, or the model's thread has died."""


class LateError(PaliglassError):
    """The request's deadline has passed."""


class ModelError(PaliglassError):
    """The model failed on a batch that held the request."""


@dataclass(eq=False)
class Job:
    """A request on its way.

    put: is told what is new, in the engine's thread or where its `deliver` takes it. deadline: by
    the engine's clock. is_streamed: whether it is told at every token, or once at the end. since:
    when it was submitted. unsent: of its events. is_over: nothing more will be told.
    """

    request: Request
    put: Callable[[News], None]
    deadline: float = math.inf
    is_streamed: bool = True
    since: float = 0.0
    unsent: list[Event] = field(default_factory=list)
    has_spoken: bool = False
    is_over: bool = False


def log(error: BaseException) -> None:
    """Its traceback, on stderr; a full disk there is no reason to stop answering."""
    with contextlib.suppress(OSError, ValueError):
        traceback.print_exception(error, file=sys.stderr)


class Place:
    """The right to submit a number of jobs; to be released once they are over, or not wanted."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        if self._release is not None:
            self._release()
            self._release = None


class Line:
    """Who waits, first come, first served; who has gone; how many places are taken.

    Any thread may call; the one that takes jobs out waits in `wait`.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.taken = capacity, 0
        self._changed = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._gone: set[Job] = set()
        self.is_closed = False

    def __len__(self) -> int:
        return len(self._jobs)

    def take_place(self, count: int, retry_after: Callable[[], int]) -> Place:
        """Raises BusyError; PromptError for more than will ever fit."""
        with self._changed:
            if count > self.capacity:
                raise PromptError(
                    f"this asks {count} things at once; the server takes {self.capacity}"
                )
            if self.taken + count > self.capacity:
                raise BusyError(retry_after())
            self.taken += count

        def release() -> None:
            with self._changed:
                self.taken -= count

        return Place(release)

    def join(self, jobs: Sequence[Job]) -> bool:
        """Puts jobs at the end; False where the line is closed."""
        with self._changed:
            if not self.is_closed:
                self._jobs.extend(jobs)
                self._changed.notify()
            return not self.is_closed

    def leave(self, job: Job) -> None:
        """Marks a job, waiting or running, as not wanted any more."""
        with self._changed:
            if not job.is_over:
                self._gone.add(job)
                self._changed.notify()

    def close(self) -> list[Job]:
        """Lets nobody in any more: those who still wait."""
        with self._changed:
            self.is_closed = True
            left, self._jobs = list(self._jobs), deque()
            self._changed.notify()
            return left

    def wait(self) -> None:
        """Returns once somebody waits, or the line is closed."""
        with self._changed:
            while not self._jobs and not self.is_closed:
                self._gone.clear()  # nobody is left who could go
                self._changed.wait()

    def take(self, count: int) -> list[Job]:
        """The next ones in line, at most so many."""
        with self._changed:
            return [self._jobs.popleft() for _ in range(min(count, len(self._jobs)))]

    def drop(self, running: Collection[Job], now: float) -> tuple[list[Job], list[Job]]:
        """Takes out who has gone and who is late, of those in line and of those running."""
        with self._changed:
            gone = [job for job in (*running, *self._jobs) if job in self._gone]
            late = [
                job
                for job in (*running, *self._jobs)
                if job.deadline <= now and job not in self._gone
            ]
            out = {*gone, *late}
            if not out.isdisjoint(self._jobs):
                self._jobs = deque(job for job in self._jobs if job not in out)
            self._gone.clear()
            for job in out:
                job.is_over = True
            return gone, late
