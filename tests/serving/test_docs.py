"""What docs/serving.md and docs/deploy show runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.serving.helpers import Running
from typer.testing import CliRunner

from paliglass.cli import app
from paliglass.model import PaliGemma

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text("utf-8")
BLOCKS = re.findall(r"```py\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("client", ["openai", "moondream"])
def test_the_pages_code_runs(
    client: str,
    server: Running,
    model: PaliGemma,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip(client)
    monkeypatch.chdir(ROOT)
    [code] = [block for block in BLOCKS if f"import {client}" in block]
    exec(code.replace("http://127.0.0.1:8000", server.url), {})
    expected = {"openai": "yellow", "moondream": "tractor"}
    assert expected[client] in capsys.readouterr().out


def test_every_option_that_is_named_is_there() -> None:
    help_text = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).output
    texts = [PAGE, *(path.read_text("utf-8") for path in (ROOT / "docs" / "deploy").iterdir())]
    for text in texts:
        commands = " ".join(re.findall(r"paliglass serve.*|ExecStart.*|ENTRYPOINT.*|`--.*?`", text))
        for option in set(re.findall(r"--[a-z][a-z-]+", commands)) - {"--no-deps"}:
            assert option in help_text, option
