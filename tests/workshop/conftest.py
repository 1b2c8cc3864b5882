"""The workshop's commands called in this process, in a folder of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.helpers import Result
from tests.world.conftest import art, face
from workshop.commands import run

__all__ = ["art", "face"]

Command = Callable[..., Result]


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Command:
    """`command(function, "--out", "a.png")` runs a command line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")

    def call(function: Callable[..., None], *arguments: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ending:
            run(function, arguments=[str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Result(int(ending.value.code or 0), out, err)

    return call
