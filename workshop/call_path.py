"""The way of a picture to its answer: the files, functions and frames that `caption` enters.

    python -m workshop.call_path           the plain modules
    python -m workshop.call_path --fast    with what replaces them on this processor

A function counts once, whoever calls it. Frames are paliglass's own, without torch's between them:
the first is the call itself, the last the decoder's attention.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Annotated, Any

import numpy as np
import typer

import paliglass
from workshop.commands import run

PACKAGE = Path(paliglass.__file__).parent

__all__ = ["CallPath", "follow"]


class CallPath:
    """What a call entered: functions by file, and the frames from it to the deepest attention.

    caller: the frame that calls, with which the counting of frames ends.
    """

    def __init__(self, caller: FrameType) -> None:
        self._caller = caller
        self.functions: defaultdict[str, set[str]] = defaultdict(set)
        self.frames: list[str] = []
        self._names: dict[CodeType, tuple[str, str] | None] = {}

    @property
    def num_functions(self) -> int:
        return sum(map(len, self.functions.values()))

    def enter(self, frame: FrameType) -> None:
        """Takes in a frame that has just begun."""
        named = self._named(frame.f_code)
        if named is None:
            return
        self.functions[named[0]].add(named[1])
        if named[0].endswith("attention.py"):
            frames = self._stack(frame)
            is_decoder = not any(name.startswith("modeling_siglip") for name in frames)
            if is_decoder and len(frames) > len(self.frames):
                self.frames = frames

    def _stack(self, frame: FrameType | None) -> list[str]:
        frames = []
        while frame is not None and frame is not self._caller:
            if named := self._named(frame.f_code):
                frames.append(f"{named[0]}: {named[1]}")
            frame = frame.f_back
        return frames[::-1]

    def _named(self, code: CodeType) -> tuple[str, str] | None:
        """File and name of a function of paliglass; None for others and for a module."""
        if code not in self._names:
            path = Path(code.co_filename)
            # Not `<module>`; nor `<listcomp>` and such, which later Pythons make no frames of.
            own = path.is_relative_to(PACKAGE) and not code.co_name.startswith("<")
            self._names[code] = (
                (path.relative_to(PACKAGE).as_posix(), code.co_qualname) if own else None
            )
        return self._names[code]


def follow(call: Callable[[], Any]) -> CallPath:
    """Runs a call and returns what it entered."""
    path = CallPath(sys._getframe())
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, _: path.enter(frame) if event == "call" else None)
    try:
        call()
    finally:
        sys.setprofile(before)
    return path


def call_path(
    fast: Annotated[bool, typer.Option("--fast", help="With what replaces plain modules.")] = False,
    functions: Annotated[
        bool, typer.Option("--functions", help="Name the functions of each file.")
    ] = False,
) -> None:
    """Print what a caption by mini enters: files, functions, frames down to the attention."""
    model = paliglass.load("mini", device="cpu", fast=fast)
    picture = np.zeros((64, 96, 3), np.uint8)
    model.caption(picture)  # what is imported or measured at first use is no part of the way
    path = follow(lambda: model.caption(picture))
    for file, names in sorted(path.functions.items()):
        print(f"{len(names):4} {file}")
        if functions:
            print(*(f"       {name}" for name in sorted(names)), sep="\n")
    print(f"{len(path.functions)} files, {path.num_functions} functions")
    print(f"{len(path.frames)} frames from the call to the decoder's attention:")
    for depth, name in enumerate(path.frames, 1):
        print(f"{depth:4} {name}")


if __name__ == "__main__":
    run(call_path)
