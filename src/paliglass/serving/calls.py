"""A request's way from the event loop to the model and back.

    take a place → open the pictures → make and check the prompts → submit → hear the tokens

A `Call` gives back its place and its rows when it is closed, whatever happened: so a client that
goes away, a deadline and an error all free them at the next step.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from paliglass.generation import Completion, Event
from paliglass.model import PaliGemma
from paliglass.pictures import PreparedPicture
from paliglass.processing_paligemma import PaliGemmaProcessor, TextStream
from paliglass.serving.dual import Dual
from paliglass.serving.engine import Engine
from paliglass.serving.jobs import Job, News, Place
from paliglass.serving.metrics import Metrics
from paliglass.serving.pictures import PictureReader
from paliglass.serving.settings import Settings
from paliglass.tasks.answering import GenerationOptions, Task

__all__ = ["Call", "Question", "Service", "Speech"]

R = TypeVar("R")


@dataclass(frozen=True)
class Question(Generic[R]):
    """What a request asks.

    make: the task. num_requests: how many prompts that is. samples: how often each is answered.
    is_streamed: whether every token is waited for. num_alternatives: see `Request`.
    """

    make: Callable[[PaliGemma], Task[R]]
    addresses: Sequence[str]
    options: GenerationOptions
    num_requests: int = 1
    samples: int = 1
    is_streamed: bool = False
    num_alternatives: int = 0


class Call(Generic[R]):
    """A question under way. prompt_tokens: of all its prompts, each counted once."""

    def __init__(self, engine: Engine, place: Place, task: Task[R]) -> None:
        self.task = task
        self.pictures: Sequence[PreparedPicture] = ()
        self.prompt_tokens = 0
        self.completions: list[Completion] = []
        self._engine, self._place = engine, place
        self._jobs: list[Job] = []
        self._news: asyncio.Queue[tuple[int, News]] = asyncio.Queue()

    def submit(self, jobs: Sequence[Job]) -> None:
        self._jobs = list(jobs)
        self.completions = [Completion() for _ in jobs]
        for i, job in enumerate(jobs):
            job.put = lambda news, i=i: self._news.put_nowait((i, news))  # type: ignore[misc]
        self._engine.submit(jobs)

    async def events(self) -> AsyncIterator[tuple[int, list[Event]]]:
        """(which of the answers, its next events), until all have ended. Raises PaliglassError."""
        self._left = set(range(len(self._jobs)))
        while self._left:
            i, news = await self._news.get()
            if isinstance(news, Exception):
                raise news
            if i in self._left:
                if news[-1].finish_reason is not None:
                    self._left.discard(i)
                for event in news:
                    self.completions[i].add(event)
                yield i, news

    def end(self, i: int) -> None:
        """Wants no more of an answer."""
        self._left.discard(i)
        self._engine.cancel(self._jobs[i])

    async def results(self) -> list[R]:
        """What the task makes of each sample's answers."""
        async for _ in self.events():
            pass
        return self.made()

    def made(self) -> list[R]:
        count = self.task.requests_per_picture
        groups = [self.completions[i : i + count] for i in range(0, len(self.completions), count)]
        return [self.task.result(self.pictures, group) for group in groups]

    @property
    def completion_tokens(self) -> int:
        return sum(done.num_tokens for done in self.completions)

    def close(self) -> None:
        for job in self._jobs:
            self._engine.cancel(job)
        self._place.release()


@dataclass
class Service:
    """What the routes work with. dual: picture addresses and texts → vectors, if there is one."""

    settings: Settings
    engine: Engine
    pictures: PictureReader
    metrics: Metrics
    dual: Dual | None = None
    started: int = field(default=0)

    async def call(self, question: Question[R]) -> Call[R]:
        """Asks; the caller closes it. Raises PaliglassError, ApiError."""
        place = self.engine.take_place(question.num_requests * question.samples)
        try:
            model = self.engine.model
            task = await self.pictures.work(lambda: question.make(model))
            pictures = await self.pictures.prepare(model.processor, question.addresses)
            call = Call(self.engine, place, task)
            call.pictures = pictures
            call.submit(await self.pictures.work(lambda: self._jobs(question, call)))
        except BaseException:
            place.release()
            raise
        return call

    def _jobs(self, question: Question[R], call: Call[R]) -> list[Job]:
        deadline = self.engine.clock() + self.settings.timeout
        jobs = []
        for number in range(question.samples):
            for request in call.task.requests(call.pictures, question.options, number):
                request = dataclasses.replace(request, num_alternatives=question.num_alternatives)
                tokens = self.engine.check(request)
                call.prompt_tokens += tokens if number == 0 else 0
                jobs.append(Job(request, lambda _: None, deadline, question.is_streamed))
        return jobs


class Speech:
    """An answer's text as it grows, up to a stop string.

    tokens: (event, where in the text it begins) of what belongs to the text.
    """

    def __init__(self, processor: PaliGemmaProcessor, stops: Sequence[str] = ()) -> None:
        self._stream, self._stops = TextStream(processor), stops
        self.text = ""
        self.finish_reason: str | None = None
        self.tokens: list[tuple[Event, int]] = []
        self._told_tokens = self._told = 0

    def hear(self, events: Sequence[Event]) -> None:
        for event in events:
            if self.finish_reason is not None:
                return
            if event.finish_reason != "stop":
                self.tokens.append((event, len(self.text)))
                self.text += self._stream.add(event.token)
            if event.finish_reason is not None:
                self.text += self._stream.end()
                self.finish_reason = event.finish_reason
            self._look_for_stops()

    def _look_for_stops(self) -> None:
        places = [place for stop in self._stops if (place := self.text.find(stop)) >= 0]
        if places:
            self.text = self.text[: min(places)]
            self.tokens = [pair for pair in self.tokens if pair[1] < len(self.text)]
            self.finish_reason = "stop"

    def piece(self) -> tuple[str, list[Event]]:
        """What is new and certain, a stop string's possible beginning held back; its tokens."""
        end = len(self.text) if self.finish_reason is not None else self._certain()
        piece, self._told = self.text[self._told : end], max(end, self._told)
        tokens = self.tokens[self._told_tokens :] if piece or self.finish_reason else []
        self._told_tokens += len(tokens)
        return piece, [event for event, _ in tokens]

    def _certain(self) -> int:
        longest = max(map(len, self._stops), default=0)
        for length in range(min(longest - 1, len(self.text)), 0, -1):
            if any(stop.startswith(self.text[-length:]) for stop in self._stops):
                return len(self.text) - length
        return len(self.text)
