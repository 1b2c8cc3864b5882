"""A tiny random model in a folder, pictures, and the command line called in this process."""

from __future__ import annotations

import dataclasses
import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.helpers import Result
from tests.tiny import tiny_config, tiny_model, tiny_processor

from paliglass.checkpoints import save_folder
from paliglass.cli import main

# As many tokens as a test has the time for; detect and segment refuse fewer than an object needs.
LIMITS = {"caption": 6, "ask": 6, "read": 6, "generate": 6, "detect": 24, "segment": 40}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights: what it says means nothing, but is always the same."""
    processor = tiny_processor()
    image_token = processor.image_token_id  # the last one
    config = tiny_config(vocab_size=image_token + 1)
    model = tiny_model(dataclasses.replace(config, image_token_index=image_token), std=0.3)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_folder(model, folder, processor)
    return folder


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in a folder of its own, with the tiny model as the default."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PALIGLASS_MODEL", str(model_folder))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """`cli("caption", "a.png", stdin=…, terminal=…)` runs a command line, short answers only."""

    def run(*arguments: object, stdin: bytes = b"", terminal: bool = False) -> Result:
        words = [str(argument) for argument in arguments]
        if words[:1] and words[0] in LIMITS:
            words[1:1] = ["--max-new-tokens", str(LIMITS[words[0]])]
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            for stream in (sys.stdout, sys.stderr):
                patch.setattr(stream, "isatty", lambda: terminal)
            with pytest.raises(SystemExit) as ending:
                main(words)
        out, err = capsys.readouterr()
        return Result(int(ending.value.code or 0), out, err)

    return run
