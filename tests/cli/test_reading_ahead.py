"""Threads read the next pictures while the model runs, and nobody notices but by the speed."""

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tests.cli.helpers import picture

from paliglass.cli.pictures import open_picture
from paliglass.data.ahead import work_ahead
from paliglass.model import PaliGemma


@pytest.fixture
def pictures():
    """Six pictures in d/."""
    return [str(picture(f"d/{i}.png", size=(20 + 9 * i, 30))) for i in range(6)]


@pytest.fixture
def slow(monkeypatch):
    """Makes the first pictures the last to be read; the threads that read."""
    threads = []

    def read(name):
        threads.append(threading.current_thread())
        time.sleep(0.3 - 0.05 * int(Path(name).stem))
        return open_picture(name)

    monkeypatch.setattr("paliglass.cli.runner.open_picture", read)
    return threads


def workers():
    return [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")]


def test_results_keep_their_order_and_go_with_their_pictures(cli, pictures, slow, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    alone = [cli("caption", name, "--json").out for name in pictures]
    assert set(slow) == {threading.main_thread()}  # one picture is worth no thread
    slow.clear()
    for batch_size in ("1", "4"):
        assert cli("caption", "d", "--json", "--batch-size", batch_size).out == "".join(alone)
    assert len(set(slow)) > 2
    assert not workers()


def test_drawings_go_with_their_pictures(cli, pictures, slow):
    assert cli("detect", "d", "x", "--out", "o").code == 0
    for i, name in enumerate(pictures):
        with open_picture(f"o/drawings/{i}.detect.png") as drawing, open_picture(name) as before:
            assert drawing.size == before.size


def test_a_broken_picture_is_named_in_its_turn(cli, pictures, slow):
    Path(pictures[0]).write_bytes(b"broken")
    Path(pictures[3]).write_bytes(b"broken")
    result = cli("caption", "d", "--json")
    assert result.code == 1
    assert [r["file"] for r in result.records()] == [p for p in pictures if p[2] not in "03"]
    assert [line[:14] for line in result.err.splitlines()[:2]] == [
        "error: d/0.png",
        "error: d/3.png",
    ]


def test_an_interrupt_leaves_no_thread(cli, pictures, slow, monkeypatch):
    def interrupted(model, jobs, options):
        for _ in zip(range(3), jobs, strict=False):
            pass
        raise KeyboardInterrupt

    monkeypatch.setattr(PaliGemma, "answer", interrupted)
    assert cli("caption", "d", "--batch-size", "2").code == 130
    assert len(slow) > 2
    assert not workers()


def test_no_more_is_under_way_than_was_asked_for():
    made = []
    with ThreadPoolExecutor(2) as pool:
        ahead = work_ahead(pool, lambda item: made.append(item) or -item, iter(range(50)), 3)
        for taken, (item, future) in enumerate(ahead):
            assert (item, future.result()) == (taken, -taken)
            assert len(made) <= taken + 4
    assert sorted(made) == list(range(50))


def test_prepared_pictures_are_answered_like_the_files(model_folder, pictures):
    from paliglass import load

    model = load(model_folder)
    prepared = [model.processor.prepare(name) for name in pictures]
    assert [p.size for p in prepared] == [(20 + 9 * i, 30) for i in range(6)]
    assert torch.equal(prepared[2].pixels, model.processor.pixels(pictures[2]))
    short = {"max_new_tokens": 6}
    assert model.caption(prepared, **short) == model.caption(pictures, **short)
    assert model.detect(prepared, "x", **short) == model.detect(pictures, "x", **short)


def test_speed_is_told_at_a_terminal_where_there_are_several(cli, pictures):
    shown = cli("caption", "d", terminal=True).err
    assert re.search(r"6/6.*pictures/s, \d+ tokens/s", shown)
    told = r"6 pictures in \d+\.\d s: (\d+\.\d) pictures/s, (\d+) tokens/s$"
    speed = re.search(told, shown, re.MULTILINE)
    assert speed
    assert float(speed[1]) > 0
    assert "tokens/s" not in cli("caption", "d").err
    assert "tokens/s" not in cli("caption", pictures[0], terminal=True).err


def test_tokens_are_counted_without_padding(model_folder, pictures):
    from paliglass import load
    from paliglass.tasks.answering import GenerationOptions

    model = load(model_folder)
    prepared = [model.processor.prepare(name) for name in pictures]
    jobs = [
        (number, model.text_task(prompt), [picture])
        for number, (prompt, picture) in enumerate(
            zip(("a", "b c d", "e", "f"), prepared[:4], strict=True)
        )
    ]
    options = GenerationOptions(max_new_tokens=9)
    requests = [task.requests(group, options, number)[0] for number, task, group in jobs]
    done = list(model.complete(requests))
    told = [tokens for _, tokens in model.answer(jobs, options)]
    assert told == [len(some.ids) + (some.finish_reason == "stop") for some in done]
    assert len(set(map(len, (r.prompt for r in requests)))) > 1  # else there would be no padding
