"""`paliglass train pretrain` on a tiny model and a world of squares: in a test, or as a process.

    python -m tests.cli.squares train pretrain …

With DIE_AT=N in the environment, such a process kills itself before it has taken step N + 1.
"""

from __future__ import annotations

import os
import signal
import sys

import pytest
from tests.training.fake_world import FakeWorld
from tests.training.test_pretrain import SMALL, TOKENIZER
from workshop.pretrain import loop as pretrain
from workshop.pretrain.pretrainer import Pretrainer

from paliglass.cli import main


def use_squares(patch: pytest.MonkeyPatch) -> None:
    """Puts them in the places of mini and of the picture world."""

    def world(cache: object, split: str, seed: int, size: int, **options: object) -> FakeWorld:
        return FakeWorld(size, seed)

    patch.setattr("workshop.world.World", world)
    patch.setattr(pretrain, "MINI", SMALL)
    patch.setattr(pretrain, "common_tokenizer", lambda *_: TOKENIZER)


def signal_at(patch: pytest.MonkeyPatch, step: int, kind: signal.Signals) -> None:
    """The process sends itself a signal when it is about to take the step after this one."""
    train_step = Pretrainer.train_step

    def with_signal(self: Pretrainer, batch: object) -> object:
        if self.step == step:
            os.kill(os.getpid(), kind)
        return train_step(self, batch)  # type: ignore[arg-type]

    patch.setattr(Pretrainer, "train_step", with_signal)


if __name__ == "__main__":
    patch = pytest.MonkeyPatch()
    use_squares(patch)
    if "DIE_AT" in os.environ:
        signal_at(patch, int(os.environ["DIE_AT"]), signal.SIGKILL)
    main(sys.argv[1:])
