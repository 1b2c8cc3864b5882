"""The loop that every training run goes through, and what it asks of what is trained.

- which rows a step sees follows from its number alone (see `order`), and a checkpoint holds all
  else: a resumed run has the very losses of an unbroken one
- a checkpoint is written after a whole step; Ctrl-C and SIGTERM wait for one
- on accelerate: several processes take part in each step, and leave the loop at the same one
"""

from __future__ import annotations

import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from paliglass.training import sharding
from paliglass.training.optimizers import Optimizers
from paliglass.training.processes import largest
from paliglass.training.recipes import Recipe, TimedRecipe
from paliglass.training.runs import Run, check_same, read_state

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["ProgressBar", "StepSums", "Trainer", "stop_signals", "total_of", "train"]

Batch = TypeVar("Batch")
# Of each quantity the sum and the number of things summed over, in this process.
StepSums = Mapping[str, tuple[float, float]]
Sums = dict[str, list[float]]


class Trainer(ABC, Generic[Batch]):
    """A model in training.

    Attributes:
        weights: by name, what a checkpoint keeps of the model.
        rows: examples that each process takes at once.
        accumulate: how often it does so in a step.
        step: updates so far. elapsed: seconds, over all sittings.
        stopped: whether validation has ended the run before its time.
        sums: what was reported since the last line of the log.
    """

    recipe: Recipe
    accelerator: Accelerator
    weights: Mapping[str, Tensor]
    optimizers: Optimizers
    rows: int
    accumulate: int = 1

    def __init__(self) -> None:
        self.step = 0
        self.elapsed = 0.0
        self.stopped = False
        self.sums: Sums = {}

    @abstractmethod
    def train_step(self, group: Sequence[Batch]) -> StepSums:
        """One update from `accumulate` batches, of each this process's share."""

    @property
    @abstractmethod
    def rate(self) -> float:
        """The next step's learning rate."""

    @property
    def minutes(self) -> float | None:
        """The time that the run has, if it is bounded."""
        return self.recipe.minutes if isinstance(self.recipe, TimedRecipe) else None

    @property
    def progress(self) -> float:
        """How much of the run is over, 0 … 1; at 1 it ends."""
        if self.stopped:
            return 1.0
        steps, minutes = self.recipe.steps, self.minutes
        by_steps = 0.0 if steps is None else self.step / steps
        by_time = 0.0 if minutes is None else self.elapsed / (60 * minutes)
        return min(1.0, max(by_steps, by_time))

    def settings(self) -> dict[str, Any]:
        """What a resumed run must have as it was."""
        return asdict(self.recipe)

    def state(self) -> dict[str, Any]:
        """All that tells the next step from the first one beside weights and optimizers; JSON.

        To be asked for by every process, as a checkpoint is.
        """
        return {
            "step": self.step,
            "elapsed": self.elapsed,
            "ended": self.progress == 1,
            "stopped": self.stopped,
            "sums": total_of(self.sums, self.accelerator),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes over what `state` gave."""
        self.step, self.elapsed, self.stopped = (
            state[name] for name in ("step", "elapsed", "stopped")
        )
        first = self.accelerator.is_main_process
        self.sums = {name: pair if first else [0.0, 0.0] for name, pair in state["sums"].items()}

    def save(self, folder: Path) -> None:
        """Writes `folder` whole or not at all; what was there is replaced.

        To be called by every process.
        """
        about = {"settings": self.settings(), **self.state()}
        sharding.save(folder, self.accelerator, self.weights, self.optimizers.all, about)

    def resume(self, folder: Path) -> None:
        """Goes on from what `save` wrote, on however many processes, sharded or not.

        A run at its end may be given more steps or minutes: its rates are then those that a run of
        the new length has at this step.

        Raises CheckpointError where it was written with other settings.
        """
        state = read_state(folder)
        then, now = state["settings"], self.settings()
        if state["ended"]:
            for name in ("steps", "minutes"):
                if (now.get(name) or 0) > (then.get(name) or 0):
                    then[name], state["stopped"] = now[name], False
        check_same(folder, then, now)
        sharding.load(folder, self.weights, self.optimizers.all)
        self.load_state(state)

    def synchronized(self, module: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Of the batches that a step accumulates only the last one's gradients are exchanged."""
        alone = self.accelerator.num_processes == 1
        return nullcontext() if last or alone else sharding.no_sync(module)


def train(
    trainer: Trainer[Batch],
    batches: Iterator[tuple[Batch, Sequence[str]]],
    run: Run,
    *,
    log_every: int = 10,
    checkpoint_seconds: float = 120.0,
    validate: Callable[[ProgressBar], bool] | None = None,
    validate_every: int = 1,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Trains to the end, with lines of the run's log, a progress bar at a terminal, checkpoints.

    Ctrl-C ends it after the step at hand, with a checkpoint: KeyboardInterrupt then says how to go
    on. A line of the log has the means since the last one, over all processes.

    Args:
        batches: from the trainer's step on, each with what is wrong with its pictures.
        log_every, checkpoint_seconds: how often; the end has both.
        validate: called every so many steps and at the end; True ends the run.
        clock: what `elapsed` is counted by. `time.process_time` makes runs that share a machine
            with others comparable.
    """
    accelerator = trainer.accelerator
    first = accelerator.is_main_process
    rows = trainer.rows * trainer.accumulate * accelerator.num_processes
    before, started = trainer.elapsed, clock()
    saved, logged, steps = trainer.elapsed, started, 0
    complaints: dict[str, None] = {}
    with stop_signals() as stop, ProgressBar(trainer.progress, quiet=not first) as bar:
        while trainer.progress < 1:
            group = list(islice(batches, trainer.accumulate))
            rate = trainer.rate
            for name, pair in trainer.train_step([batch for batch, _ in group]).items():
                total = trainer.sums.setdefault(name, [0.0, 0.0])
                trainer.sums[name] = [total[0] + pair[0], total[1] + pair[1]]
            steps += 1
            for message in (m for _, wrong in group for m in wrong if m not in complaints):
                complaints[message] = None
                bar.say(f"skipped: {message}")
            now = clock()
            # The end may hang on the clock, so that it must be one clock.
            trainer.elapsed, stopped = largest(accelerator, before + now - started, bool(stop))
            at_end, validating = trainer.progress == 1, 0.0
            if validate is not None and (trainer.step % validate_every == 0 or at_end):
                trainer.stopped = validate(bar) and not at_end
                validating = clock() - now
            if trainer.step % log_every == 0 or trainer.progress == 1:
                sums = total_of(trainer.sums, accelerator)
                means = {name: total / max(count, 1) for name, (total, count) in sums.items()}
                speed = steps * rows / max(now - logged, 1e-9)
                if first:
                    line = {"step": trainer.step, **means, "learning_rate": rate}
                    timing = {
                        "seconds": round(trainer.elapsed, 2),
                        "progress": round(trainer.progress, 4),
                        "rows_per_second": round(speed, 2),
                    }
                    run.log(line | timing)
                    if accelerator.trackers:
                        accelerator.log({**means, "learning_rate": rate, **timing}, trainer.step)
                shown = "  ".join(f"{name} {mean:.3f}" for name, mean in means.items())
                bar.show(trainer.progress, f"step {trainer.step}  {shown}  {speed:.1f} rows/s")
                trainer.sums, logged, steps = {}, now, 0
            logged += validating
            at_end = trainer.progress == 1
            if trainer.elapsed - saved >= checkpoint_seconds or stopped or at_end:
                trainer.save(run.checkpoint)
                saved = trainer.elapsed
            if stopped and not at_end:
                raise KeyboardInterrupt(
                    f"{run.checkpoint} holds step {trainer.step}: the same command with --resume "
                    "goes on from there"
                )
        if complaints:
            bar.say(f"{len(complaints)} broken pictures were skipped")


def total_of(sums: Sums, accelerator: Accelerator) -> Sums:
    """(sum, count) of each quantity over all processes; each process must ask."""
    if accelerator.num_processes == 1 or not sums:
        return {name: list(pair) for name, pair in sums.items()}
    pairs = torch.tensor(list(sums.values()), dtype=torch.float64, device=accelerator.device)
    totals: Tensor = accelerator.reduce(pairs, "sum")
    return dict(zip(sums, totals.tolist(), strict=True))


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that Ctrl-C or SIGTERM adds to; a step is never cut in two. The second one kills."""
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)
        for kind in previous:
            signal.signal(kind, previous[kind])

    previous = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    for kind in previous:
        signal.signal(kind, note)
    try:
        yield received
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)


class ProgressBar:
    """How far a run is, on stderr and at a terminal only; its messages go there in any case."""

    def __init__(self, progress: float, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.start = progress
        self.console = Console(stderr=True, quiet=quiet)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
        )
        self.task = self.bar.add_task("training", total=1.0)

    def __enter__(self) -> ProgressBar:
        self.bar.start()
        self.bar.update(self.task, completed=self.start)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def show(self, progress: float, text: str) -> None:
        """How far the run is, 0 … 1, and what there is to say about it."""
        self.bar.update(self.task, completed=progress, description=text)

    def say(self, message: str) -> None:
        """One line, above the bar."""
        self.console.print(message, markup=False, highlight=False, soft_wrap=True)
