"""A picture's name means the same in every command: frames, letters, slashes, addresses."""

from __future__ import annotations

import base64
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tests.cli.helpers import Result, picture

Cli = Callable[..., Result]
COMPOSED, APART = (unicodedata.normalize(form, "café é.png") for form in ("NFC", "NFD"))
COMMANDS: dict[str, list[str]] = {
    "caption": [],
    "embed": ["--out", "x.safetensors", "--overwrite"],
    "similarity": ["--text", "red"],
    "classify": ["--label", "red", "--label", "blue"],
}
every_command = pytest.mark.parametrize(("command", "more"), COMMANDS.items(), ids=COMMANDS.keys())


@pytest.fixture
def film() -> None:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue", "lime")]
    frames[0].save("film.gif", save_all=True, append_images=frames[1:])


def address() -> str:
    data = base64.b64encode(picture("b.png").read_bytes()).decode()
    return f"data:image/png;base64,{data}"


@every_command
def test_every_way_to_name_one_is_understood(
    cli: Cli, film: None, command: str, more: list[str]
) -> None:
    picture(APART)
    picture("folder/a.png")
    for name in ("film.gif#2", COMPOSED, "folder\\a.png", address()):
        result = cli(command, name, *more)
        assert (result.code, result.err.count("error")) == (0, 0), (name, result.err)


@every_command
def test_a_name_that_means_none_is_told_in_the_same_words(
    cli: Cli, film: None, command: str, more: list[str]
) -> None:
    wrong = {
        "film.gif#9": "film.gif#9: there is no frame 9, it has 3",
        "gone.png": "gone.png: no such file",
        "data:image/png;base64,AAAA": "picture (data: address): is not a picture",
        "half": "half: is empty",
    }
    Path("half").write_bytes(b"")
    result = cli(command, *wrong, *more)
    assert result.code == 1
    assert result.err.splitlines() == [
        *(f"error: {line}" for line in wrong.values()),
        "error: 4 of 4 pictures could not be read",
    ]


@every_command
def test_of_several_frames_the_first_is_taken_and_that_is_said(
    cli: Cli, film: None, command: str, more: list[str]
) -> None:
    assert "note: film.gif: only the first frame" in cli(command, "film.gif", *more).err
    assert "first frame" not in cli(command, "film.gif#1", *more).err


@pytest.mark.parametrize("folder", ["dossier é", "dossier é/sous-dossier ü"])
def test_a_folder_from_another_system_is_found(cli: Cli, folder: str) -> None:
    picture(Path(unicodedata.normalize("NFD", folder), "a.png"))
    name = unicodedata.normalize("NFC", folder)
    assert cli("caption", name).code == 0
    assert cli("search", name, "red", "--model", "mini-dual").code == 0


def test_where_no_picture_can_be_read_nothing_is_written(cli: Cli) -> None:
    assert cli("embed", "gone.png", "--out", "x.safetensors").code == 1
    assert not Path("x.safetensors").exists()
    picture("a.png")
    assert cli("embed", "a.png", "--out", "x.safetensors").code == 0
    before = Path("x.safetensors").read_bytes()
    assert cli("embed", "gone.png", "--out", "x.safetensors", "--overwrite").code == 1
    assert Path("x.safetensors").read_bytes() == before
