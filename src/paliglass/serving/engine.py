"""The scheduler: one thread owns the model and its running batch.

    drop    who has gone, or is late, leaves the line or the batch
    admit   the next in line take the free rows: their prompts are prefilled whole
    step    every row says a token, and each job is told what is new of its answer

- a prompt is never prefilled in pieces, and shares no beginning with another: all of it sees all
  of it. The very same prompt about the very same pictures is run once; see `RunningBatch`
- what fails in a step ends the requests that were in it, and the next ones get a fresh batch; what
  ends the thread itself is told to everybody, then and later
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

from paliglass.errors import PaliglassError
from paliglass.generation import Event, Request, RunningBatch
from paliglass.model import PaliGemma
from paliglass.serving.jobs import (
    Job,
    LateError,
    Line,
    ModelError,
    News,
    NotReadyError,
    Place,
    log,
)
from paliglass.serving.metrics import Metrics

__all__ = ["Engine", "State", "Told", "tell_at_once"]

# Prompts prefilled together: beyond some hundreds of tokens a product gains nothing by more rows,
# and whoever was first would wait for the last one's prompt.
PREFILL_TOKENS = 1024
R = TypeVar("R")
State = Literal["loading", "ready", "draining", "dead"]
Told = tuple[Callable[[News], None], News]
WHY = {
    "loading": "the model is being loaded; try again a little later",
    "ready": "the server is ending",
    "draining": "the server is ending",
    "dead": "the model's thread has died",
}


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
        self.max_batch, self._bytes = max_batch, (feature_bytes, prefix_bytes)
        self.metrics = metrics or Metrics()
        self.state: State = "loading"
        self.failure: BaseException | None = None
        self.has_loaded = threading.Event()  # or failed to
        self.line = Line(max_batch + max_queue)
        self._running: dict[Request, Job] = {}
        self._seconds = 1.0  # that an answer took, lately
        self._model: PaliGemma | None = None
        self.batch: RunningBatch | None = None
        self.thread = threading.Thread(target=self._live, name="model", daemon=True)
        self.metrics.watch(
            lambda: len(self.line),
            lambda: self.num_running,
            {  # a batch without rows is false
                "features": lambda: 0 if self.batch is None else self.batch.features.num_bytes,
                "prefixes": lambda: 0 if self.batch is None else self.batch.prefixes.num_bytes,
            },
        )

    # ------------------------------------------------------------- the scheduler

    def _work(self) -> None:
        while True:
            if not self._running:
                self.line.wait()
            if self.line.is_closed:
                return
            self._drop()
            self._admit()
            self._step()

    def _drop(self) -> None:
        gone, late = self.line.drop(self._running.values(), self.clock())
        for job in (*gone, *late):
            if self._running.pop(job.request, None) is not None:
                self._batch.cancel(job.request)
        self._tell([(job, LateError("the answer took longer than is allowed")) for job in late])

    def _admit(self) -> None:
        free = self.max_batch - len(self._running)
        together = max(1, PREFILL_TOKENS // self.model.processor.num_image_tokens)
        # Short prompts that are prefilled one by one take longer each; see `generation.run`.
        is_time = free >= min(together, self.max_batch // 4)
        jobs = self.line.take(min(free, together)) if is_time else []
        if jobs:
            self._running.update((job.request, job) for job in jobs)
            known = self._try(lambda: self._batch.admit([job.request for job in jobs]))
            self.metrics.prefills(len(jobs), sum(known or ()))

    def _step(self) -> None:
        if self._running:
            self.metrics.rows(len(self._running))
            self._hand_out(self._try(self._batch.step) or [])

    def _hand_out(self, events: Sequence[Event]) -> None:
        now = self.clock()
        jobs = {self._running[event.request]: None for event in events}
        for event in events:
            self._running[event.request].unsent.append(event)
        told: list[tuple[Job, News]] = []
        for job in jobs:
            if not job.has_spoken:
                job.has_spoken = True
                self.metrics.first_token(now - job.since)
            last = job.unsent[-1]
            has_ended = last.finish_reason is not None
            if has_ended:
                del self._running[job.request]
                job.is_over = True
                self._seconds += 0.1 * (now - job.since - self._seconds)
            if has_ended or job.is_streamed:
                told.append((job, last.error or job.unsent))
                job.unsent = []
        self.metrics.tokens(len(events))
        self._tell(told)

    def _try(self, work: Callable[[], R]) -> R | None:
        """Does it; where that fails, all rows are told so and leave."""
        try:
            return work()
        except Exception as error:
            if not isinstance(error, PaliglassError):
                log(error)
                error = ModelError("the model failed on a batch that held this request")
            self._end_all(list(self._running.values()), error)
            self._running.clear()
            self._renew()
            return None

    def _end_all(self, jobs: Sequence[Job], error: PaliglassError) -> None:
        for job in jobs:
            job.is_over = True
        self._tell([(job, error) for job in jobs])

    def _tell(self, news: Sequence[tuple[Job, News]]) -> None:
        if news:
            self.deliver([(job.put, some) for job, some in news])

    # ------------------------------------------------------ the thread's life

    def _live(self) -> None:
        try:
            self._model = self._load()
            self._renew()
            self.state = "ready"
            self.has_loaded.set()
            self._work()
        except BaseException as error:  # a thread that ends without a word would hang everybody
            self.failure = error
            if self.has_loaded.is_set():
                log(error)
        finally:
            self.state = "dead"
            self.has_loaded.set()
            why = "the server is ending" if self.failure is None else "the model's thread died"
            self._end_all([*self._running.values(), *self.line.close()], NotReadyError(why))
            self._running.clear()

    def _renew(self) -> None:
        features, prefixes = self._bytes
        self.batch = RunningBatch(
            self.model.model,
            self.model.processor,
            feature_bytes=features,
            prefix_bytes=prefixes,
        )

    @property
    def _batch(self) -> RunningBatch:
        assert self.batch is not None
        return self.batch

    # -------------------------------------------------------- for other threads

    def start(self) -> None:
        self.thread.start()

    def drain(self) -> None:
        """Gives no more places; who has one is answered."""
        if self.state == "ready":
            self.state = "draining"

    def stop(self) -> None:
        """Ends the thread after its step; whoever is left is told so."""
        self._end_all(self.line.close(), NotReadyError(WHY["draining"]))

    def take_place(self, count: int = 1) -> Place:
        """Room for jobs. Raises BusyError, NotReadyError; PromptError for more than ever fit."""
        if self.state != "ready":
            raise NotReadyError(WHY[self.state])
        return self.line.take_place(count, lambda: self.retry_after)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Puts jobs in line; there is a `Place` for each. Raises NotReadyError."""
        for job in jobs:
            job.since = self.clock()
        if not self.line.join(jobs):
            raise NotReadyError(WHY[self.state])

    def cancel(self, job: Job) -> None:
        """Takes a job out at the next step; it is told no more."""
        self.line.leave(job)

    def check(self, request: Request) -> int:
        """The number of its prompt's tokens. Raises PromptError for what cannot be answered."""
        if self.batch is None:
            raise NotReadyError(WHY["loading"])
        return self.batch.check(request)

    @property
    def model(self) -> PaliGemma:
        """Raises NotReadyError before it is loaded."""
        if self._model is None:
            raise NotReadyError(WHY["loading"])
        return self._model

    @property
    def could_not_load(self) -> bool:
        return self.state == "dead" and self._model is None

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def is_full(self) -> bool:
        return self.line.taken >= self.line.capacity

    @property
    def retry_after(self) -> int:
        """Seconds in which a place may become free."""
        rounds = math.ceil(max(self.line.taken, 1) / self.max_batch)
        return min(max(math.ceil(rounds * self._seconds / 4), 1), 60)
