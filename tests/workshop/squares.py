"""`python -m workshop.pretrain` on a tiny model and a world of squares: in a test, or as a process.

    python -m tests.workshop.squares --out run …

With DIE_AT=N in the environment, such a process kills itself before it has taken step N + 1.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from tests.workshop.fake_world import FakeWorld
from tests.workshop.test_pretrain import SMALL, TOKENIZER
from workshop.commands import run
from workshop.pretrain import __main__ as command
from workshop.pretrain.pretrainer import Pretrainer


def use_squares(patch: pytest.MonkeyPatch) -> None:
    """Puts them in the places of mini and of the picture world."""

    def world(cache: object, split: str, seed: int, size: int, **options: object) -> FakeWorld:
        return FakeWorld(size, seed)

    patch.setattr(command, "World", world)
    patch.setattr(command, "MINI", SMALL)
    patch.setattr(command, "run_tokenizer", lambda *_: TOKENIZER)


def signal_at(patch: pytest.MonkeyPatch, step: int, kind: signal.Signals) -> None:
    """The process sends itself a signal when it is about to take the step after this one."""
    train_step = Pretrainer.train_step

    def with_signal(self: Pretrainer, group: Any) -> Any:
        if self.step == step:
            os.kill(os.getpid(), kind)
        return train_step(self, group)

    patch.setattr(Pretrainer, "train_step", with_signal)


if __name__ == "__main__":
    patch = pytest.MonkeyPatch()
    use_squares(patch)
    if "DIE_AT" in os.environ:
        signal_at(patch, int(os.environ["DIE_AT"]), signal.SIGKILL)
    run(command.pretrain)
