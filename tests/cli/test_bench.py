"""paliglass bench, as it is typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.helpers import Result

from paliglass.fast import available_methods

Cli = Callable[..., Result]
LIMITS = {"read_gb_per_s": 12.5, "bf16_gop_per_s": 107.1, "fp32_gop_per_s": 42.4}


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paliglass.inspect.bench.machine_limits", lambda threads: LIMITS)


def test_a_table_fits_a_terminal(
    cli: Cli, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = cli("bench", model_folder, "--rounds", "1", "--tokens", "3", "--threads", "1")
    assert result.code == 0, result.err
    assert max(map(len, result.out.splitlines())) <= 80
    assert "an answer of 3 tokens, s" in result.out
    assert "reads 12.5 GB/s and multiplies, in Gop/s, 42 (fp32), 107 (bf16)." in " ".join(
        result.out.split()
    )


def test_json_has_all_figures(cli: Cli, model_folder: Path) -> None:
    arguments = ["--rounds", "1", "--tokens", "3", "--threads", "1", "--json"]
    result = cli("bench", model_folder, *arguments)
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert (found["threads"], found["machine"]) == (1, LIMITS)
    assert list(found["engines"]) == ["float32", *available_methods()]
    figures = found["engines"]["float32"]
    assert {"load_s", "first_token_s", "tokens_per_s", "memory_gb", "token_share"} <= figures.keys()


def test_what_is_no_folder_is_refused(cli: Cli) -> None:
    Path("model.npz").touch()
    result = cli("bench", "model.npz")
    assert (result.code, "bench takes a folder" in result.err) == (1, True)
