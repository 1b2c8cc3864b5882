"""What a command is told to write: what is there already is not replaced unasked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.cli.helpers import Result, picture

from paliglass.cli import app

Cli = Callable[..., Result]

# Commands that write a file, without the option that names it.
FILES = {
    "embed --out": "embed a.png --model mini-dual",
    "similarity --out": "similarity a.png -t dog --model mini-dual",
    "trace --out": "trace a.png --max-new-tokens 2",
    "lab --out": "lab --model mini",
    "eval --html": "eval --data data.jsonl --max-new-tokens 6",
    "data check --sheet": "data check data.jsonl",
}
# Those that write a folder: one that holds something is refused.
FOLDERS = {
    "caption --out": "caption a.png --out OUT",
    "ask --out": "ask a.png why? --out OUT",
    "read --out": "read a.png --out OUT",
    "detect --out": "detect a.png dog --out OUT",
    "segment --out": "segment a.png dog --out OUT --mask-codec codec.safetensors",
    "generate --out": "generate a.png ocr --out OUT",
    "convert target": "convert mini OUT",
    "export target": "export mini OUT",
    "data fetch out": "data fetch rows.json OUT",
    "train finetune --out": "train finetune --data data.jsonl --out OUT --steps 1",
    "train contrastive --out": "train contrastive --data pairs.jsonl --out OUT --steps 1",
}
ELSEWHERE = {"search --out"}  # of a ColPali: see test_search.py
READ = {  # places that are read; an index is search's own
    *("search documents", "search --index", "serve --mask-codec", "segment --mask-codec"),
    *("compare-server source",),
}


def places(command: Any, name: str = "") -> Iterator[str]:
    """Every parameter of every command that is a path and need not be there."""
    for child, some in getattr(command, "commands", {}).items():
        yield from places(some, f"{name} {child}".strip())
    for parameter in command.params:
        kind = parameter.type_descriptor
        if kind.is_path and not kind.parameter_info.exists:
            flags = [flag for flag in parameter.opts if flag.startswith("--")]
            yield f"{name} {(flags or [parameter.name])[0]}"


def test_every_file_and_folder_that_is_written_is_in_this_test() -> None:
    found = set(places(typer.main.get_command(app)))
    assert found == {*FILES, *FOLDERS, *ELSEWHERE, *READ}


@pytest.fixture
def data(tmp_path: Path) -> None:
    picture("a.png")
    line = {"image": "a.png", "prefix": "caption en", "suffix": "a dog"}
    Path("data.jsonl").write_text(json.dumps(line) + "\n")
    Path("pairs.jsonl").write_text(json.dumps({"image": "a.png", "text": "a dog"}) + "\n")


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize("place", FILES)
def test_a_file_is_replaced_where_one_says_so(cli: Cli, place: str) -> None:
    command = [*FILES[place].split(), place.split()[-1]]
    out = Path("mine.safetensors")  # embed takes no other
    out.write_text("mine")
    refused = cli(*command, out)
    assert (refused.code, refused.out) == (1, "")
    told = f"{out}: exists already; --overwrite replaces it, or name another\n"
    assert refused.err.endswith(told)
    assert out.read_text() == "mine"
    replaced = cli(*command, out, "--overwrite")
    assert replaced.code == 0, replaced.err
    assert out.read_bytes() != b"mine"
    new = cli(*command, "new/folder/of.safetensors")
    assert new.code == 0, new.err
    assert [path.name for path in Path("new/folder").iterdir()] == ["of.safetensors"]
    assert "of.safetensors" in new.out + new.err  # it is told where the file went


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize("place", FOLDERS)
def test_a_folder_that_holds_results_is_not_written_into(cli: Cli, place: str) -> None:
    out = Path("out")
    for name in ("results.jsonl", "config.yaml", "model/x", "checkpoint/state.json"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    refused = cli(*FOLDERS[place].replace("OUT", "out").split())
    assert (refused.code, refused.out) == (1, ""), refused.err
    assert "out" in refused.err.partition("error: ")[2]
    assert "choose" in refused.err
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {path: data for path, data in after.items() if path in before} == before
