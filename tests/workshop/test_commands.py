"""Every module of the workshop that can be run tells how; the package knows nothing of it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import workshop
from tests.training.runs import ROOT

import paliglass

FOLDER = Path(workshop.__file__).parent


def runnable() -> list[str]:
    """Modules with a main block, as `python -m` knows them."""
    found = []
    for path in sorted(FOLDER.rglob("*.py")):
        if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8"):
            name = ".".join(path.relative_to(FOLDER.parent).with_suffix("").parts)
            found.append(name.removesuffix(".__main__"))
    return found


ENGINES = {"workshop.peers.engines"}  # what `workshop.peers` starts, and nobody else
COMMANDS = [name for name in runnable() if name not in ENGINES]


def test_the_promised_commands_are_there() -> None:
    promised = "world pretrain score contrastive codec calibrate peers gallery tokenizer transfer"
    assert {f"workshop.{name}" for name in promised.split()} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_a_command_does_and_what_each_option_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import runpy

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    is_package = (FOLDER.parent / name.replace(".", "/")).is_dir()
    # What is run as a module must not be there yet, as in a new process.
    monkeypatch.delitem(sys.modules, f"{name}.__main__" if is_package else name, raising=False)
    with pytest.raises(SystemExit) as ending:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    assert ending.value.code == 0
    out = capsys.readouterr().out
    assert "Usage:" in out
    description = out.split("[OPTIONS]")[1].split("╭")[0].strip()
    assert len(description.split()) > 5
    assert list(tmp_path.iterdir()) == []


def test_a_command_runs_as_a_module_and_errors_are_a_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "workshop.calibrate", str(tmp_path / "nothing")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.startswith("error: ")
    assert len(run.stderr.splitlines()) == 1


def test_the_package_does_not_know_the_workshop() -> None:
    source = Path(paliglass.__file__).parent
    for path in source.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not any(name.split(".")[0] == "workshop" for name in names), path


def test_the_wheel_leaves_the_workshop_out() -> None:
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert settings["targets"]["wheel"]["packages"] == ["src/paliglass"]
    assert "workshop" not in settings["targets"]["wheel"]["force-include"]
