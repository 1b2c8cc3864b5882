"""The scheduler: first come, first served; nobody lost, nobody's answer another's."""

from __future__ import annotations

import ctypes
import io
import math
import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from tests.serving.helpers import GUARD_SECONDS, Held, tiny
from tests.tiny import noise_picture, tiny_processor

from paliglass.errors import PaliglassError, PromptError
from paliglass.generation import Event, Request, complete
from paliglass.model import PaliGemma
from paliglass.sampling import Sampling
from paliglass.serving import engine as scheduler
from paliglass.serving.engine import Engine
from paliglass.serving.jobs import BusyError, Job, LateError, ModelError, NotReadyError
from paliglass.tasks.grammar import YES_NO, ChoiceGrammar, ObjectGrammar

PROCESSOR = tiny_processor()
PICTURES = [PROCESSOR.prepare(noise_picture(40 + 3 * i, 50, seed=i)) for i in range(4)]


def ask(prompt: str = "what?", picture: int = 0, **options: Any) -> Request:
    return Request(prompt, [PICTURES[picture]], **options)


class Client:
    """Submits requests and collects what it is told."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def submit(self, request: Request, deadline: float = math.inf, streamed: bool = True) -> Job:
        news: queue.Queue[Any] = queue.Queue()
        job = Job(request, news.put, deadline, streamed)
        job.news = news  # type: ignore[attr-defined]
        self.engine.submit([job])
        return job

    @staticmethod
    def next(job: Job) -> Any:
        return job.news.get(timeout=GUARD_SECONDS)  # type: ignore[attr-defined]

    def answer(self, job: Job) -> list[Event]:
        events: list[Event] = []
        while not events or events[-1].finish_reason is None:
            news = self.next(job)
            if isinstance(news, Exception):
                raise news
            events += news
        return events


@contextmanager
def running(model: PaliGemma, **options: Any) -> Iterator[tuple[Engine, Client]]:
    engine = Engine(lambda: model, **options)
    engine.start()
    assert engine.has_loaded.wait(GUARD_SECONDS)
    yield engine, Client(engine)
    engine.stop()
    engine.thread.join(GUARD_SECONDS)
    assert not engine.thread.is_alive()


def ids(events: list[Event]) -> list[int]:
    return [event.token for event in events if event.finish_reason != "stop"]


def alone(model: PaliGemma, request: Request) -> list[int]:
    [done] = complete(model.model, model.processor, [request])
    return done.ids


def test_every_answer_under_load_is_the_requests_alone() -> None:
    model = tiny(eos=1)
    boxes = ObjectGrammar(PROCESSOR, ["dog", "dog house"])
    choice = ChoiceGrammar(PROCESSOR, YES_NO)
    kinds = [
        {"max_new_tokens": 20},
        {"max_new_tokens": 30, "constraint": boxes.start()},
        {"max_new_tokens": 9, "constraint": choice.start()},
        {"max_new_tokens": 12, "sampling": Sampling(1.5, 40, 0.95)},
    ]
    requests = [
        ask("abc"[i % 3], i % 4, seed=i, **kinds[(i // 3) % 4])
        for i in range(36)  # some prompts come several times
    ]
    with running(model, max_batch=4) as (_, client):
        jobs = [client.submit(request, streamed=i % 2 == 0) for i, request in enumerate(requests)]
        found = [ids(client.answer(job)) for job in jobs]
    assert found == [alone(model, request) for request in requests]


def test_first_come_first_served_within_the_rows_there_are() -> None:
    order: list[int] = []
    with running(tiny(), max_batch=2) as (engine, client):
        jobs = [client.submit(ask(str(i), max_new_tokens=3 + 2 * i)) for i in range(6)]
        for i, job in enumerate(jobs):
            client.answer(job)
            order.append(i)
        rows = engine.metrics.registry.get_sample_value(
            "paliglass_batch_rows_bucket", {"le": "2.0"}
        )
        total = engine.metrics.registry.get_sample_value("paliglass_batch_rows_count")
    assert rows == total


def test_long_prompts_are_prefilled_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "PREFILL_TOKENS", 2 * PROCESSOR.num_image_tokens + 1)
    held = Held(tiny())
    with running(held.model, max_batch=8) as (engine, client):
        first = client.submit(ask("a", max_new_tokens=40))
        held.until_held()
        batch = engine.batch
        assert batch is not None
        admit, admitted = batch.admit, []

        def noted(requests: Sequence[Request]) -> list[bool]:
            admitted.append([request.prompt for request in requests])
            return admit(requests)

        monkeypatch.setattr(batch, "admit", noted)
        others = [
            client.submit(ask(prompt, i % 4, max_new_tokens=5)) for i, prompt in enumerate("bcdef")
        ]
        held.free()
        assert [ids(client.answer(job)) for job in others] == [
            alone(held.model, job.request) for job in others
        ]
        assert len(client.answer(first)) == 40
    assert admitted == [["b", "c"], ["d", "e"], ["f"]]


def test_a_place_is_needed_and_there_are_so_many() -> None:
    with running(tiny(), max_batch=2, max_queue=3) as (engine, _):
        places = [engine.take_place(2), engine.take_place(3)]
        with pytest.raises(BusyError) as busy:
            engine.take_place()
        assert busy.value.retry_after >= 1
        places[0].release()
        places[0].release()  # once is enough
        engine.take_place(2)
        with pytest.raises(BusyError):
            engine.take_place()
        with pytest.raises(PromptError, match="6 things at once"):
            engine.take_place(6)


def test_who_goes_away_frees_the_row_at_the_next_step() -> None:
    held = Held(tiny())
    with running(held.model, max_batch=1) as (engine, client):
        endless = client.submit(ask("a", max_new_tokens=200), streamed=False)
        next_in_line = client.submit(ask("b", 1, max_new_tokens=2))
        held.until_held()
        engine.cancel(endless)
        held.free()
        assert len(client.answer(next_in_line)) == 2
        assert endless.news.empty()  # type: ignore[attr-defined]
        assert engine.metrics.registry.get_sample_value("paliglass_generated_tokens_total") < 10


def test_who_goes_away_in_line_is_never_run() -> None:
    held = Held(tiny())
    with running(held.model, max_batch=1) as (engine, client):
        first = client.submit(ask("a", max_new_tokens=3))
        second = client.submit(ask("b", max_new_tokens=3))
        third = client.submit(ask("c", max_new_tokens=3))
        held.until_held()
        engine.cancel(second)
        held.free()
        client.answer(first)
        client.answer(third)
        assert engine.metrics.registry.get_sample_value("paliglass_prompts_total") == 2


def test_a_deadline_ends_a_request_and_the_others_go_on() -> None:
    now = [0.0]
    held = Held(tiny())
    with running(held.model, max_batch=2, clock=lambda: now[0]) as (_, client):
        late = client.submit(ask("a", max_new_tokens=50), deadline=10, streamed=False)
        other = client.submit(ask("b", 1, max_new_tokens=8), deadline=1000)
        held.until_held()
        now[0] = 11
        held.free()
        with pytest.raises(LateError):
            client.answer(late)
        assert ids(client.answer(other)) == alone(held.model, other.request)


class FullDisk(io.StringIO):
    def write(self, _: str) -> int:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("log_is_full", [False, True])
def test_a_step_that_fails_ends_who_is_in_it_and_the_next_are_answered(
    log_is_full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if log_is_full:
        monkeypatch.setattr("sys.stderr", FullDisk())
    model = tiny()
    held = Held(model)
    with running(model, max_batch=2) as (engine, client):
        jobs = [client.submit(ask(str(i), max_new_tokens=5)) for i in range(3)]
        held.until_held()
        fail = model.model.language_model.model.layers[1].register_forward_pre_hook(
            lambda *_: (_ for _ in ()).throw(RuntimeError("a broken kernel at /some/path"))
        )
        held.let_on()
        for job in jobs[:2]:
            with pytest.raises(ModelError, match="the model failed on a batch"):
                client.answer(job)
        held.until_held()
        fail.remove()
        held.free()
        assert ids(client.answer(jobs[2])) == alone(model, jobs[2].request)
        assert engine.state == "ready"


def test_a_model_without_numbers_is_named() -> None:
    model = tiny()
    next(iter(model.model.parameters())).data.fill_(math.nan)
    with running(model) as (_, client), pytest.raises(PaliglassError, match="NaN"):
        client.answer(client.submit(ask()))


@pytest.mark.parametrize("streamed", [False, True])
def test_a_request_whose_numbers_overflow_fails_alone(streamed: bool) -> None:
    model = tiny()
    nothing = replace(PICTURES[1], pixels=PICTURES[1].pixels * math.inf)
    with running(model, max_batch=3) as (engine, client):
        bad = client.submit(Request("b", [nothing], max_new_tokens=5), streamed=streamed)
        good = [client.submit(ask(str(i), i, max_new_tokens=5)) for i in range(3)]
        with pytest.raises(PaliglassError, match="overflowed"):
            client.answer(bad)
        assert bad.is_over
        for job in good:
            assert ids(client.answer(job)) == alone(model, job.request)
        assert engine.state == "ready"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_killed_thread_is_told_to_everybody_then_and_later() -> None:
    held = Held(tiny())
    with running(held.model, max_batch=1) as (engine, client):
        jobs = [client.submit(ask(str(i))) for i in range(3)]
        held.until_held()
        thread = ctypes.c_ulong(engine.thread.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(SystemExit))
        held.free()
        for job in jobs:
            with pytest.raises(NotReadyError, match="thread died"):
                client.answer(job)
        engine.thread.join(GUARD_SECONDS)
        assert engine.state == "dead"
        for refused in (lambda: engine.take_place(), lambda: client.submit(ask())):
            with pytest.raises(NotReadyError, match="has died"):
                refused()


def test_draining_answers_those_who_have_a_place_and_takes_no_more() -> None:
    with running(tiny()) as (engine, client):
        engine.take_place()
        engine.drain()
        with pytest.raises(NotReadyError, match="ending"):
            engine.take_place()
        assert len(client.answer(client.submit(ask(max_new_tokens=4)))) == 4


def test_what_is_left_at_the_end_is_told_so() -> None:
    held = Held(tiny())
    with running(held.model, max_batch=1) as (engine, client):
        jobs = [client.submit(ask(str(i))) for i in range(2)]
        held.until_held()
        engine.stop()
        held.free()
        for job in jobs:
            with pytest.raises(NotReadyError, match="ending"):
                client.answer(job)
            assert job.is_over


def test_a_model_that_cannot_be_loaded_leaves_its_reason() -> None:
    def fail() -> PaliGemma:
        raise PaliglassError("no such folder")

    engine = Engine(fail)
    engine.start()
    assert engine.has_loaded.wait(GUARD_SECONDS)
    assert engine.could_not_load
    assert str(engine.failure) == "no such folder"
    with pytest.raises(NotReadyError):
        engine.take_place()


def test_a_request_that_cannot_be_answered_is_found_before_it_is_in_line() -> None:
    with running(tiny()) as (engine, _), pytest.raises(PromptError, match="max_new_tokens is 0"):
        engine.check(ask(max_new_tokens=0))
