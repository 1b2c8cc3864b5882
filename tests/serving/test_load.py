"""Many clients at once, some of them cut off: none lost, none wrong, nothing left behind."""

from __future__ import annotations

import random

from tests.serving.helpers import Running, in_threads, noise_address, until
from workshop.serving_load import Work, ask_all, expected_answers


def test_every_answer_among_many_clients_is_the_same_as_alone(server: Running) -> None:
    addresses = [noise_address(seed) for seed in range(4)]
    work = Work.mixed(80, addresses, random.Random(0), cut_share=0.1)
    expected = expected_answers(server.engine.model, work)
    report = ask_all(server.url, work, clients=12)
    assert report.lost == []
    assert report.wrong(expected) == []
    assert report.cut == sum(item.is_cut for item in work) > 3
    # Who hung up is heard of when the connection is: then nothing is left behind.
    until(lambda: not server.engine.line.taken)
    in_threads([lambda: server.client.get("/health")] * 3)
    assert len(server.engine.line) == 0
