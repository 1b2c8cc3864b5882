"""A command in several processes under `torchrun`: the first speaks and writes for all."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TextIO

import typer

from paliglass.cli.messages import complain
from paliglass.errors import PaliglassError
from paliglass.parallel.processes import is_first_to_fail, join, leave, num_processes, rank

__all__ = ["complain_once", "only_the_first_speaks", "refuse_several", "together"]

SHARED = frozenset("caption ask read detect segment generate train".split())

_stderr: TextIO | None = None  # a silent process's own


@contextmanager
def only_the_first_speaks() -> Iterator[None]:
    """Of several processes, the others print nothing in the block; but see `complain_once`."""
    global _stderr
    if not rank():
        yield
        return
    _stderr = sys.stderr
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
    ):
        yield


def complain_once(message: str) -> None:
    """Says what ends this process, unless another one has said what ends it.

    What fails in one of them most often fails in all, or makes the others fail.
    """
    if is_first_to_fail():
        with redirect_stderr(_stderr or sys.stderr):
            complain(message)


def refuse_several(command: str | None) -> None:
    """Raises PaliglassError where several processes would each run the whole of a command."""
    if num_processes() > 1 and command not in SHARED:
        raise PaliglassError(
            "torchrun is for training and for the commands that ask about pictures; run this one "
            "alone"
        )


@contextmanager
def together() -> Iterator[None]:
    """Several processes work together in the block, and end it together unless one fails."""
    if num_processes() == 1:
        yield
        return
    join()
    try:
        yield
    except typer.Exit:
        leave()
        raise
    leave()
