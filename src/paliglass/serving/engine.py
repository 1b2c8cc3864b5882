"""The scheduler: one thread owns the model and its running batch.

    submit      any thread; jobs wait in line, first come, first served
    the thread  drops who has gone or is late
                prefills the prompts of the next in line, as many as there are free rows
                lets every row say a token, and tells each job what is new of its answer

- a prompt is prefilled whole: all of it sees all of it, so it cannot come in pieces, nor share a
  beginning with another prompt
- a place is taken before a picture is unpacked, so that line and memory are bounded
- what one step raises ends the requests that were in it, and the next ones get a fresh batch; what
  ends the thread itself is told to everybody, then and later
"""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from paliglass.errors import PaliglassError, PromptError
from paliglass.generation import Event, Request, RunningBatch
from paliglass.model import PaliGemma
from paliglass.serving.metrics import Metrics

__all__ = [
    "BusyError",
    "Engine",
    "Job",
    "LateError",
    "ModelError",
    "NotReadyError",
    "Place",
    "State",
]

R = TypeVar("R")
State = Literal["loading", "ready", "draining", "dead"]
News = list[Event] | PaliglassError
Told = tuple[Callable[[News], None], News]


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
    """A request on its way. All but `request` and `is_over` is for the engine's thread alone.

    put: is told what is new. deadline: by the engine's clock. is_streamed: whether it is told at
    every token, or once at the end.
    """

    request: Request
    put: Callable[[News], None]
    deadline: float = math.inf
    is_streamed: bool = True
    unsent: list[Event] = field(default_factory=list)
    since: float = 0.0
    has_spoken: bool = False
    is_over: bool = False


class Place:
    """The right to submit a number of jobs; to be released once they are over, or not wanted."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        if self._release is not None:
            self._release()
            self._release = None


def tell_at_once(told: Sequence[Told]) -> None:
    """Calls each job's `put` where it stands."""
    for put, news in told:
        put(news)


class Engine:
    """Answers jobs with the model that `load` returns.

    Args:
        load: runs in the engine's thread.
        max_batch: rows that run together. max_queue: jobs that may wait beside them.
        feature_bytes, prefix_bytes: see `RunningBatch`.
        deliver: is given what a step has to tell; an event loop can hear of it in one call.
        clock: seconds, of deadlines.
    """

    def __init__(
        self,
        load: Callable[[], PaliGemma],
        *,
        max_batch: int = 8,
        max_queue: int = 64,
        feature_bytes: int = 1 << 28,
        prefix_bytes: int = 1 << 28,
        deliver: Callable[[Sequence[Told]], None] = tell_at_once,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load, self.deliver, self.clock = load, deliver, clock
        self.max_batch, self.capacity = max_batch, max_batch + max_queue
        self._bytes = feature_bytes, prefix_bytes
        self.metrics = metrics or Metrics()
        self.state: State = "loading"
        self.failure: BaseException | None = None
        self.has_loaded = threading.Event()  # or failed to
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._gone: set[Job] = set()
        self._running: dict[Request, Job] = {}
        self._taken = 0
        self._is_stopped = False
        self._seconds = 1.0  # that a request took, lately
        self._model: PaliGemma | None = None
        self._batch: RunningBatch | None = None
        self.thread = threading.Thread(target=self._live, name="model", daemon=True)
        self.metrics.watch(self)

    # -------------------------------------------------------- for any thread

    def start(self) -> None:
        self.thread.start()

    @property
    def model(self) -> PaliGemma:
        """Raises NotReadyError before it is loaded."""
        if self._model is None:
            raise NotReadyError("the model is being loaded; try again a little later")
        return self._model

    @property
    def could_not_load(self) -> bool:
        return self.state == "dead" and self._model is None

    @property
    def batch(self) -> RunningBatch | None:
        return self._batch

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def is_full(self) -> bool:
        return self._taken >= self.capacity

    @property
    def retry_after(self) -> int:
        """Seconds in which a place may become free."""
        rounds = math.ceil(max(self._taken, 1) / self.max_batch)
        return min(max(math.ceil(rounds * self._seconds / 4), 1), 60)

    def check(self, request: Request) -> int:
        """The number of its prompt's tokens. Raises PromptError for what cannot be answered."""
        if self._batch is None:
            raise NotReadyError("the model is being loaded; try again a little later")
        return self._batch.check(request)

    def take_place(self, count: int = 1) -> Place:
        """Room for so many jobs. Raises BusyError, NotReadyError; PromptError for more than ever fit."""
        with self._changed:
            if self.state != "ready":
                raise NotReadyError(self._why_not_ready())
            if count > self.capacity:
                raise PromptError(
                    f"this asks {count} things at once; the server takes {self.capacity}"
                )
            if self._taken + count > self.capacity:
                raise BusyError(self.retry_after)
            self._taken += count

        def release() -> None:
            with self._changed:
                self._taken -= count

        return Place(release)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Puts jobs in line; there is a `Place` for each. Raises NotReadyError."""
        with self._changed:
            if self.state == "dead" or self._is_stopped:
                raise NotReadyError(self._why_not_ready())
            for job in jobs:
                job.since = self.clock()
            self._waiting.extend(jobs)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Takes a job out at the next step; it is told no more."""
        with self._changed:
            if not job.is_over:
                self._gone.add(job)
                self._changed.notify()

    def drain(self) -> None:
        """Gives no more places; who has one is answered."""
        with self._changed:
            if self.state == "ready":
                self.state = "draining"

    def stop(self) -> None:
        """Ends the thread after its step; whoever is left is told so."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify()

    def _why_not_ready(self) -> str:
        if self.state == "loading":
            return "the model is being loaded; try again a little later"
        return "the model's thread has died" if self.state == "dead" else "the server is ending"

    # ------------------------------------------------ the thread that owns the model

    def _live(self) -> None:
        try:
            self._model = self._load()
            self._batch = self._new_batch(self._model)
            self.state = "ready"
            self.has_loaded.set()
            while self._wait_for_work():
                self._drop()
                self._admit(self._batch)
                self._step(self._batch)
        except BaseException as error:  # a thread that ends without a word would hang everybody
            self.failure = error
            if self.has_loaded.is_set():
                traceback.print_exception(error)
        finally:
            with self._changed:
                self.state = "dead"
                left = [*self._running.values(), *self._waiting]
                self._running.clear()
                self._waiting.clear()
            self.has_loaded.set()
            reason = "the server is ending" if self.failure is None else "the model's thread died"
            self._tell([(job, NotReadyError(reason)) for job in left])

    def _wait_for_work(self) -> bool:
        with self._changed:
            while not (self._waiting or self._running or self._is_stopped):
                self._gone.clear()
                self._changed.wait()
            return not self._is_stopped

    def _drop(self) -> None:
        """Takes out who has gone, and who is late."""
        now = self.clock()
        with self._changed:
            gone, self._gone = self._gone, set()
            jobs = [*self._running.values(), *self._waiting]
            late = [job for job in jobs if job.deadline <= now and job not in gone]
            for job in (*gone, *late):
                if self._running.pop(job.request, None) is not None and self._batch is not None:
                    self._batch.cancel(job.request)
                elif job in self._waiting:
                    self._waiting.remove(job)
                job.is_over = True
        self._tell(
            [(job, LateError("the answer took longer than the server allows")) for job in late]
        )

    def _admit(self, batch: RunningBatch) -> None:
        """The next in line take the free rows: their prompts are prefilled together."""
        with self._changed:
            room = min(self.max_batch - len(self._running), len(self._waiting))
            jobs = [self._waiting.popleft() for _ in range(room)]
            self._running.update((job.request, job) for job in jobs)
        if jobs:
            known = self._try(lambda: batch.admit([job.request for job in jobs]))
            self.metrics.prefills(len(jobs), sum(known or ()))

    def _step(self, batch: RunningBatch) -> None:
        """Every row says a token."""
        if self._running:
            self.metrics.rows(len(self._running))
            self._hand_out(self._try(batch.step) or [])

    def _try(self, work: Callable[[], R]) -> R | None:
        """Does it; where that fails, all rows are told so and leave."""
        try:
            return work()
        except Exception as error:
            if not isinstance(error, PaliglassError):
                traceback.print_exception(error)
            with self._changed:
                failed = list(self._running.values())
                self._running.clear()
                self._batch = self._new_batch(self.model)
            told = error if isinstance(error, PaliglassError) else ModelError("the model failed")
            self._tell([(job, told) for job in failed])
            return None

    def _hand_out(self, events: Sequence[Event]) -> None:
        now = self.clock()
        jobs = {event.request: self._running[event.request] for event in events}
        for event in events:
            jobs[event.request].unsent.append(event)
        told: list[tuple[Job, News]] = []
        for request, job in jobs.items():
            if not job.has_spoken:
                job.has_spoken = True
                self.metrics.first_token(now - job.since)
            ends = job.unsent[-1].finish_reason is not None
            if ends:
                del self._running[request]
                self._seconds += 0.1 * (now - job.since - self._seconds)
            if ends or job.is_streamed:
                told.append((job, job.unsent))
                job.unsent = []
        self.metrics.tokens(len(events))
        self._tell(told)

    def _tell(self, news: Sequence[tuple[Job, News]]) -> None:
        for job, some in news:
            job.is_over |= isinstance(some, PaliglassError) or some[-1].finish_reason is not None
        if news:
            self.deliver([(job.put, some) for job, some in news])

    def _new_batch(self, model: PaliGemma) -> RunningBatch:
        features, prefixes = self._bytes
        return RunningBatch(
            model.model, model.processor, feature_bytes=features, prefix_bytes=prefixes
        )
