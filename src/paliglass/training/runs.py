"""A run's folder: one run at a time, its checkpoints whole, its log without a gap.

OUT/config.yaml        its settings, which --config takes
OUT/log.jsonl          a line every few steps
OUT/samples.jsonl      with validation: what was answered on the way, drawn in samples/
OUT/best.safetensors   with validation: the best weights so far
OUT/checkpoint/        the last one, whole: weights, optimizers, state.json
OUT/model/             what comes out (or adapter/)
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from paliglass.checkpoints.saving import refuse_existing
from paliglass.errors import CheckpointError, PaliglassError
from paliglass.files import lock_folder, read_json, write_whole
from paliglass.training.processes import fast_precision, is_first_process
from paliglass.training.recipes import Precision

if TYPE_CHECKING:
    from filelock import BaseFileLock

__all__ = [
    "STATE",
    "Resumable",
    "Run",
    "append",
    "check_same",
    "cut_log",
    "find_checkpoint",
    "new_checkpoint",
    "read_state",
]

LOCK = ".run.lock"
LOG = "log.jsonl"
SAMPLES = "samples.jsonl"
STATE = "state.json"


class Resumable(Protocol):
    """What a run asks of its trainer; see `loop.Trainer`."""

    step: int

    @property
    def progress(self) -> float: ...

    def resume(self, folder: Path) -> None: ...


class Run:
    """The folder of a run; closed (`with Run(…) as run`), it is free for another.

    past: the checkpoint to go on from, if there is one. Of several processes the first one writes
    and has the lock.

    Raises PaliglassError where another process writes there, and, unless `resume` is asked for,
    where a run or its result is there.
    """

    def __init__(self, out: Path, result: str = "model", *, resume: bool = False) -> None:
        self.out, self.result = out, out / result
        self.checkpoint = out / "checkpoint"
        self.is_first = is_first_process()
        self._lock: BaseFileLock | None = None
        self._is_new = not out.exists()
        if self.is_first:
            self._lock = lock_folder(out, LOCK)
        try:
            if not resume:
                refuse_existing(self.result)
            self.past = find_checkpoint(self.checkpoint)
            if self.past is not None and not resume:
                raise PaliglassError(
                    f"{out} holds a run; go on with --resume, or choose a new folder"
                )
        except PaliglassError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self.is_first and self._is_new:
            with suppress(OSError):  # a run that came to nothing leaves no folder
                if [path.name for path in self.out.iterdir()] == [LOCK]:
                    (self.out / LOCK).unlink()
                    self.out.rmdir()
        self.close()

    def close(self) -> None:
        """Lets other runs into the folder."""
        if self._lock is not None:
            self._lock.release()

    def precision(self, given: Precision | None) -> Precision:
        """What the run computes in: as asked, else as it began, else what is faster here."""
        if given is not None:
            return given
        if self.past is not None:
            found: Precision = read_state(self.past)["settings"]["precision"]
            return found
        return fast_precision()

    def start(self, trainer: Resumable) -> None:
        """Takes over the past run's checkpoint, and cuts its logs back to it.

        A run that is at its end may be given more steps: the result it had is then kept beside, as
        `model-STEP`. Raises CheckpointError where there is a result and nothing more to do.
        """
        if self.past is not None:
            trainer.resume(self.past)
        if not self.is_first:
            return
        if self.past is None:
            refuse_existing(self.result)
        elif trainer.progress == 1 and self.result.exists():
            raise CheckpointError(
                f"{self.out}: the run is at its end, and {self.result.name}/ in it is whole; "
                "given more to do (--steps, --minutes or --epochs) it goes on"
            )
        elif self.result.exists():
            kept = self.result.with_name(f"{self.result.name}-{trainer.step}")
            refuse_existing(kept)
            os.replace(self.result, kept)
        if self.past is None:  # of a run that came to no checkpoint
            (self.out / "best.safetensors").unlink(missing_ok=True)
        for name in (LOG, SAMPLES):
            cut_log(self.out / name, trainer.step)

    def record(self, settings: Mapping[str, Any]) -> None:
        """Writes config.yaml: what is None was not given, and is left out."""
        if self.is_first:
            import yaml

            given = {
                name: str(value) if isinstance(value, Path) else value
                for name, value in settings.items()
                if value is not None
            }
            write_whole(self.out / "config.yaml", yaml.safe_dump(given, sort_keys=True))

    def log(self, line: Mapping[str, Any], name: str = LOG) -> None:
        """Adds a line of JSON to a log."""
        append(self.out / name, line)


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Adds a line of JSON to a file."""
    with path.open("a", encoding="utf-8") as file:
        print(json.dumps(line, ensure_ascii=False), file=file)


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


def read_state(folder: Path) -> dict[str, Any]:
    """A checkpoint's state.json: the run's settings, its step and so on.

    Raises CheckpointError where it is damaged, or not of this version.
    """
    state = read_json(folder / STATE)
    if not isinstance(state.get("settings"), dict) or not isinstance(state.get("step"), int):
        raise CheckpointError(f"{folder / STATE}: is not a run's state; start anew in a new folder")
    return state


def check_same(folder: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
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
        # Not `splitlines`, which also splits at U+2028 inside an answer. What follows the last line
        # break is nothing, or a killed run's line cut short.
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        kept = [line for line in lines if json.loads(line)["step"] <= last_step]
        write_whole(path, "".join(f"{line}\n" for line in kept))
