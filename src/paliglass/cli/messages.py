"""What is said on stderr beside the answers: errors, notes, details, and that something is loading.

Notes are left out with `--quiet`, details told with `--verbose`; errors are always told.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from paliglass.checkpoints.hub import SHIPPED
from paliglass.errors import printable
from paliglass.tasks.things import load_things

__all__ = [
    "cell",
    "complain",
    "counted",
    "detail",
    "harmless",
    "has_complained",
    "level",
    "note",
    "one_line",
    "set_level",
    "tell_unknown",
    "waiting",
]

Level = Literal["quiet", "normal", "verbose"]

_level: Level = "normal"
_has_complained = False


def set_level(level: Level) -> None:
    """From here on; a process runs one command."""
    global _level
    _level = level


def level() -> Level:
    """What `set_level` said last."""
    return _level


def complain(message: str) -> None:
    """An error, in one line whatever the message holds."""
    global _has_complained
    _has_complained = True
    print(f"error: {one_line(message)}", file=sys.stderr)


def has_complained() -> bool:
    """Whether this process has named an error."""
    return _has_complained


def note(message: str) -> None:
    """What a user would want to know, though nothing went wrong."""
    if _level != "quiet":
        print(f"note: {one_line(message)}", file=sys.stderr)


def tell_unknown(labels: Sequence[str], model: str) -> None:
    """A note where a model that has a list of what it can know has none of the labels in it."""
    things = load_things(SHIPPED.get(model, Path(model)))
    complaint = None if things is None else things.complaint(labels, model)
    if complaint is not None:
        note(complaint)


def detail(message: str) -> None:
    """What helps to find out why something is as it is."""
    if _level == "verbose":
        print(f"detail: {one_line(message)}", file=sys.stderr)


def cell(text: str) -> str:
    """Text that keeps to its column: `printable` for a terminal, else as it is but for tabs and
    line breaks.
    """
    if sys.stdout.isatty():
        return printable(text)
    return text.translate({ord("\t"): "\\t", ord("\n"): "\\n", ord("\r"): "\\r"})


def counted(count: int, what: str) -> str:
    """`1 picture`, `2 pictures`."""
    return f"{count} {what}" + "s" * (count != 1)


def one_line(message: str) -> str:
    """A message in one line that a terminal shows and does not obey."""
    return printable(" ".join(message.split()))


def harmless(text: str) -> str:
    """Text of several lines that a terminal shows and does not obey; see `errors.printable`."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Shows at a terminal that the block is under way, and for how long; `what`: "loading mini"."""
    start = time.perf_counter()
    if _level == "quiet" or not sys.stderr.isatty():
        yield
    else:
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        ) as progress:
            progress.add_task(escape(one_line(what)), total=None)
            yield
    detail(f"{what}: {time.perf_counter() - start:.1f} s")
