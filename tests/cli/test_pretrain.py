"""train pretrain: a run, what it leaves, how it stops and goes on."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.helpers import Result
from tests.training.fake_world import FakeWorld
from tests.training.test_pretrain import SMALL, TOKENIZER

from paliglass import load
from paliglass.training import pretrain
from paliglass.training.trainer import Pretrainer

Cli = Callable[..., Result]


@pytest.fixture
def arguments(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command that trains a tiny model on squares."""

    def world(cache: object, split: str, seed: int, size: int, **options: object) -> FakeWorld:
        return FakeWorld(size, seed)

    monkeypatch.setattr("paliglass.world.World", world)
    monkeypatch.setattr(pretrain, "MINI", SMALL)
    monkeypatch.setattr(pretrain, "common_tokenizer", lambda *_: TOKENIZER)
    given = "--steps 6 --scenes 4 --prompts 4 --workers 0 --log-every 1 --checkpoint-seconds 0"
    return ["train", "pretrain", *given.split()]


def losses(folder: str) -> list[dict[str, float]]:
    lines = (Path(folder) / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def test_a_run_leaves_a_model_and_its_log(
    cli: Cli, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = cli(*arguments, "--out", "run")
    assert result.out == "run/model: 6 steps, 0.0 minutes\n"
    assert [line["step"] for line in losses("run")] == list(range(1, 7))
    assert "caption" not in losses("run")[0]  # the vision tower looks first
    assert "caption" in losses("run")[-1]
    assert load("run/model").model.config.text_config == SMALL.text_config
    again = cli(*arguments, "--out", "run")
    assert (again.code, "exists already" in again.err) == (1, True)
    given = []
    monkeypatch.setattr(
        pretrain, "common_tokenizer", lambda *asked: given.append(asked[-1]) or TOKENIZER
    )
    on = cli(*arguments, "--out", "on", "--weights", "run/model")
    assert (on.code, len(losses("on"))) == (0, 6)
    assert given == [Path("run/model")]  # other words would undo all that it knows


def test_a_stopped_run_goes_on_to_the_losses_of_an_unbroken_one(
    cli: Cli, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli(*arguments, "--out", "whole").code == 0
    step = Pretrainer.train_step

    def stop_in_the_third(self: Pretrainer, batch: object) -> object:
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Pretrainer, "train_step", stop_in_the_third)
        stopped = cli(*arguments, "--out", "run")
    assert stopped.code == 130
    assert "run/checkpoint holds step 3: the same command with --resume goes on" in stopped.err
    refused = cli(*arguments, "--out", "run")
    assert (refused.code, "holds a run; go on with --resume" in refused.err) == (2, True)
    other = cli(*arguments, "--out", "run", "--resume", "--seed", "1")
    assert (other.code, "started with seed 0, not 1" in other.err) == (1, True)
    assert cli(*arguments, "--out", "run", "--resume").code == 0
    assert losses("run") == losses("whole")


def test_wrong_use_is_said_before_anything_is_loaded(cli: Cli) -> None:
    endless = cli("train", "pretrain", "--out", "run")
    assert (endless.code, "--steps or --minutes" in endless.err) == (2, True)
    Path("model").mkdir()
    both = cli(
        *("train", "pretrain", "--out", "run", "--steps", "1"),
        *("--weights", "model", "--vision", "mini-dual"),
    )
    assert (both.code, "leave out --vision" in both.err) == (2, True)
    assert not Path("run").exists()


@pytest.mark.parametrize("more", ["walk=2", "segment", "segment=0", "segment=two"])
def test_a_mixture_names_a_task_and_a_weight(cli: Cli, arguments: list[str], more: str) -> None:
    result = cli(*arguments, "--out", "run", "--more", more)
    assert result.code == 2
    assert "write TASK=WEIGHT" in result.err
