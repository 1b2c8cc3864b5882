"""What every training run needs: whole checkpoints, a log, a clean end on Ctrl-C."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from paliglass.checkpoints.files import write_whole
from paliglass.errors import CheckpointError, PaliglassError

if TYPE_CHECKING:
    from accelerate import Accelerator

Precision = Literal["fp32", "bf16"]  # of forward and backward; weights that learn are float32


@contextmanager
def new_checkpoint(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `folder` when the block has ended well.

    At any moment `folder` or, where that is missing, `folder`.old is a whole checkpoint.

    Raises CheckpointError where it cannot be written, as on a full disk.
    """
    new, old = folder.with_suffix(".new"), folder.with_suffix(".old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
    except Exception as error:  # torch, safetensors and the system have a kind each
        shutil.rmtree(new, ignore_errors=True)
        reason = " ".join(str(error).split())
        last = "; the one before it is whole" if find_checkpoint(folder) else ""
        raise CheckpointError(
            f"{folder}: cannot be written, is the disk full? ({reason}){last}: make room, and go "
            "on with --resume"
        ) from error
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def find_checkpoint(folder: Path) -> Path | None:
    """Where `new_checkpoint` left the last whole one, if it ever came to one."""
    return next((path for path in (folder, folder.with_suffix(".old")) if path.is_dir()), None)


def check_same(folder: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises CheckpointError where a run is resumed otherwise: its losses would be neither's.

    Settings are compared as JSON keeps them, where a tuple is a list.
    """
    now = json.loads(json.dumps(now))
    for name in sorted({*then, *now}):
        if then.get(name) != now.get(name):
            raise CheckpointError(
                f"{folder}: the run was started with {name} {then.get(name)}, not "
                f"{now.get(name)}; give the same, or start another run in a new folder"
            )


def cut_log(path: Path, last_step: int) -> None:
    """Drops the lines that a broken run wrote after its last checkpoint: they come again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        # A killed run's last line may be cut short.
        kept = [x for x in lines if x.endswith("\n") and json.loads(x)["step"] <= last_step]
        write_whole(path, "".join(kept))


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


def stopped_early(checkpoint: Path, step: int) -> KeyboardInterrupt:
    """What to raise where a run was asked to stop: it says how to go on."""
    return KeyboardInterrupt(
        f"{checkpoint} holds step {step}: the same command with --resume goes on from there"
    )


class Screen:
    """The progress bar, on stderr and at a terminal only."""

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

    def __enter__(self) -> Screen:
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


def largest(accelerator: Accelerator, *values: float) -> list[float]:
    """Of each value the largest of all processes: they must leave their loop at one step."""
    if accelerator.num_processes == 1:
        return list(values)
    import torch
    from torch import distributed as dist

    state = torch.tensor(values, dtype=torch.float64, device=accelerator.device)
    dist.all_reduce(state, dist.ReduceOp.MAX)
    found: list[float] = state.tolist()
    return found


def finish(accelerator: Accelerator) -> None:
    """Ends a run in all processes together; of several, each exits without Python's clean-up.

    One that left while the first still writes its result has been seen to keep the first from
    ending. And what FSDP2 keeps of a process group outlives its end: Gloo's threads would still
    drop tensors while the interpreter goes down, which aborts the process now and then.
    """
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if accelerator.num_processes > 1:
        for worker in multiprocessing.active_children():  # nothing else will end them
            worker.terminate()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def choose_precision(given: Precision | None, checkpoint: Path | None) -> Precision:
    """What a run computes in: as asked, else as it began, else what is faster here.

    A processor without instructions for bfloat16 takes several times as long with it.
    """
    if given is not None:
        return given
    if checkpoint is not None:
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        past: Precision = state["recipe"]["precision"]
        return past
    import torch

    from paliglass.fast import multiplies_bfloat16

    has_bf16 = torch.accelerator.is_available() or multiplies_bfloat16()
    return "bf16" if has_bf16 else "fp32"


def make_accelerator(
    precision: Precision = "fp32",
    accumulate: int = 1,
    out: Path | None = None,
    logs: str = "jsonl",
) -> Accelerator:
    """Accelerate's view of this process: device, precision, and the others if there are any.

    precision: with "bf16" autocast is on. out, logs: where and whether "tensorboard" is to
    write.

    Raises PaliglassError where accelerate, or tensorboard if it is to log, is not installed.
    """
    import torch

    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise PaliglassError('training needs accelerate: pip install "paliglass[train]"') from error
    if logs == "tensorboard":
        try:
            import tensorboard  # noqa: F401
        except ImportError as error:
            raise PaliglassError(
                "--logs tensorboard needs it installed: pip install tensorboard"
            ) from error
    return Accelerator(
        cpu=not torch.accelerator.is_available(),  # else it overlooks torchrun's other processes
        mixed_precision="bf16" if precision == "bf16" else "no",
        gradient_accumulation_steps=accumulate,
        log_with="tensorboard" if logs == "tensorboard" else None,
        project_dir=out,
    )
