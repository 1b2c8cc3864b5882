"""The loop that all runs go through, with the smallest thing that can be trained."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.runs import log
from torch import nn

from paliglass.errors import CheckpointError, PaliglassError
from paliglass.training import loop
from paliglass.training.loop import ProgressBar, StepSums, Trainer, stop_signals, train
from paliglass.training.optimizers import Optimizers
from paliglass.training.processes import make_accelerator
from paliglass.training.recipes import Recipe
from paliglass.training.runs import Run, check_same, cut_log, find_checkpoint, new_checkpoint


@dataclass(frozen=True)
class LineRecipe(Recipe):
    minutes: float | None = None


class Line(Trainer[float]):
    """Learns to double a number."""

    recipe: LineRecipe
    rows = 1

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.recipe = LineRecipe(**settings)
        self.accelerator = make_accelerator()
        torch.manual_seed(0)
        self.model = nn.Linear(1, 1)
        parameters = dict(self.model.named_parameters())
        self.weights = parameters
        self.optimizers = Optimizers(parameters)

    @property
    def rate(self) -> float:
        return 0.1 * (1 - self.progress)

    @property
    def minutes(self) -> float | None:
        return self.recipe.minutes

    def train_step(self, group: Sequence[float]) -> StepSums:
        (number,) = group
        loss = (self.model(torch.tensor([number])) - 2 * number).square().sum()
        self.accelerator.backward(loss)
        self.optimizers.step(self.rate)
        self.step += 1
        return {"loss": (loss.item(), 1), "number": (number, 1)}


def numbers(first: int, wrong: str = "") -> Iterator[tuple[float, list[str]]]:
    """Number n for step n."""
    while True:
        yield float(first), [wrong] if wrong else []
        first += 1


def signal_at(step: int, kind: int = signal.SIGINT) -> Iterator[tuple[float, list[str]]]:
    """Numbers from 0 on; the process gets a signal before it has the one of that step."""
    for number, wrong in numbers(0):
        if number == step:
            os.kill(os.getpid(), kind)
        yield number, wrong


def ticks() -> Callable[[], float]:
    """A clock that is a second further each time one looks at it."""
    seconds = iter(range(10**6))
    return lambda: float(next(seconds))


def finished(out: Path, **settings: Any) -> Line:
    """A run that went to its end."""
    trainer = Line(**settings)
    with Run(out) as run:
        run.start(trainer)
        train(trainer, numbers(0), run, log_every=1)
    return trainer


def test_a_line_has_the_means_since_the_last_and_the_end_has_one(tmp_path: Path) -> None:
    trainer = Line(steps=7)
    with Run(tmp_path) as run:
        train(trainer, numbers(0), run, log_every=3)
    lines = log(str(tmp_path))
    assert [line["step"] for line in lines] == [3, 6, 7]
    assert [line["number"] for line in lines] == [1.0, 4.0, 6.0]
    assert [line["progress"] for line in lines] == [0.4286, 0.8571, 1.0]
    assert lines[0]["learning_rate"] == pytest.approx(0.1 * 5 / 7)


def test_a_run_that_validation_ends_has_a_last_line_too(tmp_path: Path) -> None:
    trainer = Line(steps=9)
    with Run(tmp_path) as run:
        train(
            trainer,
            numbers(0),
            run,
            log_every=3,
            validate=lambda bar: trainer.step == 4,
            validate_every=2,
        )
    assert [(line["step"], line["progress"]) for line in log(str(tmp_path))] == [
        (3, 0.3333),
        (4, 1.0),
    ]


def test_the_speed_of_steps_does_not_count_validation(tmp_path: Path) -> None:
    trainer, clock = Line(steps=4), ticks()

    def validate(bar: ProgressBar) -> bool:
        for _ in range(100):
            clock()
        return False

    with Run(tmp_path) as run:
        train(trainer, numbers(0), run, log_every=2, validate=validate, clock=clock)
    # Of a clock that each look moves on: one look a step, and one after each validation.
    lines = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert [line["rows_per_second"] for line in lines] == [1.0, 1.0]


@pytest.mark.parametrize("log_every", [1, 3])
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_goes_on_to_the_log_of_an_unbroken_one(
    tmp_path: Path, log_every: int, kind: int
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    unbroken = Line(steps=9)
    with Run(whole) as run:
        train(unbroken, numbers(0), run, log_every=log_every)
    stopped = Line(steps=9)
    with Run(broken) as run, pytest.raises(KeyboardInterrupt, match="holds step 5: the same"):
        train(stopped, signal_at(4, kind), run, log_every=log_every, checkpoint_seconds=1e9)
    resumed = Line(steps=9)
    with Run(broken, resume=True) as run:
        run.start(resumed)
        assert resumed.step == 5
        train(resumed, numbers(5), run, log_every=log_every)
    assert log(str(broken)) == log(str(whole))
    assert torch.equal(resumed.model.weight, unbroken.model.weight)


def test_a_second_signal_is_not_held_back() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with stop_signals() as received:
            os.kill(os.getpid(), signal.SIGINT)
            assert received == [signal.SIGINT]
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_clock_tells_when_checkpoints_are_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    monkeypatch.setattr(Line, "save", lambda self, folder: saved.append(self.step))
    with Run(tmp_path) as run:
        train(Line(steps=10), numbers(0), run, checkpoint_seconds=4, clock=ticks())
    assert saved == [4, 8, 10]


def test_a_run_may_end_by_the_clock_over_all_sittings(tmp_path: Path) -> None:
    trainer = Line(minutes=0.1)
    trainer.elapsed = 2.0
    with Run(tmp_path) as run:
        train(trainer, numbers(0), run, clock=ticks())
    assert (trainer.step, trainer.elapsed) == (4, 6.0)


def test_broken_pictures_are_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Run(tmp_path) as run:
        train(Line(steps=3), numbers(0, "a.png: is [empty]"), run)
    told = capsys.readouterr().err
    assert told.splitlines() == ["skipped: a.png: is [empty]", "1 broken pictures were skipped"]


def test_validation_may_end_a_run_and_then_it_is_over(tmp_path: Path) -> None:
    trainer = Line(steps=9)
    asked: list[int] = []

    def no_better(_: object) -> bool:
        asked.append(trainer.step)
        return len(asked) == 3

    with Run(tmp_path) as run:
        train(trainer, numbers(0), run, validate=no_better, validate_every=2)
    assert asked == [2, 4, 6]
    again = Line(steps=9)
    with Run(tmp_path, resume=True) as run:
        run.start(again)
        train(again, numbers(6), run, validate=no_better)
    assert (again.step, again.progress, asked) == (6, 1.0, [2, 4, 6])


def test_a_run_at_its_end_may_be_given_more_steps(tmp_path: Path) -> None:
    finished(tmp_path, steps=4)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    over = Line(steps=4)
    with (
        Run(tmp_path, resume=True) as run,
        pytest.raises(CheckpointError, match="at its end, and model/ in it is whole"),
    ):
        run.start(over)
    more = Line(steps=8)
    with Run(tmp_path, resume=True) as run:
        run.start(more)
        assert (more.step, more.progress, more.rate) == (4, 0.5, 0.05)
        train(more, numbers(4), run, log_every=1)
    assert [line["step"] for line in log(str(tmp_path))] == list(range(1, 9))
    assert (tmp_path / "model-4" / "config.json").exists()  # what the shorter run had come to
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(("steps", "at_end"), [(12, False), (4, True), (4, False)])
def test_steps_may_not_change_otherwise(tmp_path: Path, steps: int, at_end: bool) -> None:
    trainer = Line(steps=8)
    trainer.step = 8 if at_end else 5
    trainer.save(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match=f"started with steps 8, not {steps}"):
        Line(steps=steps).resume(tmp_path / "checkpoint")


def test_another_recipe_is_refused_by_name(tmp_path: Path) -> None:
    finished(tmp_path, steps=2)
    with pytest.raises(CheckpointError, match="started with seed 0, not 1"):
        Line(steps=2, seed=1).resume(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="precision None, not bf16"):
        Line(steps=4, precision="bf16").resume(tmp_path / "checkpoint")


def test_another_model_is_refused_by_name(tmp_path: Path) -> None:
    finished(tmp_path, steps=2)
    other = Line(steps=2)
    other.weights = {"slope": other.model.weight}
    with pytest.raises(CheckpointError, match="bias is in one of model and file alone"):
        other.resume(tmp_path / "checkpoint")


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizers.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_told_of_in_a_line(tmp_path: Path, name: str) -> None:
    finished(tmp_path, steps=2)
    path = tmp_path / "checkpoint" / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=name):
        Line(steps=2).resume(tmp_path / "checkpoint")
    path.write_text("{}") if name == "state.json" else path.unlink()
    with pytest.raises(CheckpointError, match=name):
        Line(steps=2).resume(tmp_path / "checkpoint")


def test_settings_are_compared_as_json_keeps_them(tmp_path: Path) -> None:
    check_same(tmp_path, {"sizes": [1, 2]}, {"sizes": (1, 2)})
    with pytest.raises(CheckpointError, match=r"sizes \[1, 2\], not \[1, 3\]"):
        check_same(tmp_path, {"sizes": [1, 2]}, {"sizes": (1, 3)})


def test_a_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    finished(tmp_path, steps=2)
    names = {path.name for path in (tmp_path / "checkpoint").iterdir()}
    assert names == {"weights.safetensors", "optimizers.safetensors", "state.json"}


def test_a_save_cut_short_between_its_two_renames_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoint"
    first = Line(steps=9)
    first.save(folder)
    assert find_checkpoint(folder) == folder
    replace_ = os.replace

    def killed(source: Path, target: Path) -> None:
        if target == folder:
            raise KeyboardInterrupt
        replace_(source, target)

    first.step = 5
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            first.save(folder)
    left = find_checkpoint(folder)
    assert left == tmp_path / "checkpoint.old"
    second = Line(steps=9)
    second.resume(left)
    assert second.step == 0
    second.save(folder)  # and what is left over is in nobody's way
    assert list(tmp_path.iterdir()) == [folder]


def test_a_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Line(steps=9)
    with monkeypatch.context() as patch:
        patch.setattr("paliglass.training.sharding.save_file", full_disk)
        with pytest.raises(CheckpointError) as first:
            trainer.save(tmp_path / "checkpoint")
    assert "the one before it" not in str(first.value)
    trainer.save(tmp_path / "checkpoint")
    trainer.step = 3
    with monkeypatch.context() as patch:
        patch.setattr("paliglass.training.sharding.save_file", full_disk)
        with pytest.raises(CheckpointError, match=r"disk full.*; the one before it is whole"):
            trainer.save(tmp_path / "checkpoint")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    assert json.loads((tmp_path / "checkpoint" / "state.json").read_text())["step"] == 0


def full_disk(*_: object) -> None:
    raise RuntimeError("unexpected pos 247616 vs 247508")


def test_there_is_no_checkpoint_before_the_first(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.new").mkdir()  # may be half written
    assert find_checkpoint(tmp_path / "checkpoint") is None
    with new_checkpoint(tmp_path / "checkpoint") as new:
        (new / "a").touch()
    assert find_checkpoint(tmp_path / "checkpoint") == tmp_path / "checkpoint"


@pytest.mark.parametrize("name", ["run", "run/../run", "link"])
@pytest.mark.parametrize("resume", [False, True])
def test_one_run_at_a_time_has_a_folder(tmp_path: Path, name: str, resume: bool) -> None:
    (tmp_path / "link").symlink_to("run")
    with (
        Run(tmp_path / "run"),
        pytest.raises(PaliglassError, match="another run is writing there"),
    ):
        Run(tmp_path / name, resume=resume)
    Run(tmp_path / name).close()


def test_a_run_is_not_begun_over_another(tmp_path: Path) -> None:
    finished(tmp_path, steps=2)
    with pytest.raises(PaliglassError, match="holds a run; go on with --resume"):
        Run(tmp_path)
    Run(tmp_path, resume=True).close()  # the refusal has left no lock


def test_the_log_of_a_broken_run_is_cut_back_to_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    cut_log(path, 0)  # none yet
    path.write_text('{"step": 50}\n{"step": 100}\n{"step": 150}\n{"st')
    cut_log(path, 100)
    assert path.read_text() == '{"step": 50}\n{"step": 100}\n'


def test_a_run_keeps_its_precision_and_a_new_one_has_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    with Run(tmp_path) as run:
        for has, precision in ((True, "bf16"), (False, "fp32")):
            monkeypatch.setattr("paliglass.fast.multiplies_bfloat16", lambda has=has: has)
            assert run.precision(None) == precision
            assert run.precision("bf16") == "bf16"
    trainer = Line(steps=2)
    trainer.recipe = replace(trainer.recipe, precision="bf16")
    trainer.save(tmp_path / "checkpoint")
    with Run(tmp_path, resume=True) as run:
        assert run.precision(None) == "bf16"
        assert run.precision("fp32") == "fp32"


def test_nothing_but_what_was_given_is_in_a_runs_record(tmp_path: Path) -> None:
    import yaml

    with Run(tmp_path) as run:
        run.record({"data": Path("a.jsonl"), "steps": 3, "adapter": None})
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"data": "a.jsonl", "steps": 3}


def test_sums_of_one_process_are_its_own() -> None:
    sums = {"loss": [3.0, 2.0]}
    assert loop.total_of(sums, make_accelerator()) == sums
