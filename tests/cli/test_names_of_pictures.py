"""A picture's name means the same in every command: frames, letters, slashes, addresses."""

from __future__ import annotations

import base64
import io
import json
import os
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


def jpeg() -> bytes:
    data = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(data, "JPEG")
    return data.getvalue()


BROKEN = {
    "blp.png": b"BLP1" + bytes(40),
    "bomb.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\0\3\x0d\x40" * 2 + b"\x08\2\0\0\0" + bytes(4),
    "empty.png": b"",
    "eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "half.jpg": jpeg()[:400],
    "text.png": b"no picture at all",
    "tiff.tif": b"II*\0\xff\xff\xff\x7f",
}


@pytest.fixture
def good_and_bad() -> list[str]:
    """Names of pictures of which the first and the last alone can be read."""
    for name, data in BROKEN.items():
        Path(name).write_bytes(data)
    os.mkfifo("pipe.png")
    Path("folder.png").mkdir()
    bad = sorted((*BROKEN, "pipe.png", "gone.png"))
    return [picture("a.png").name, *bad, picture("z.png").name]


@every_command
def test_bad_pictures_end_no_run(
    cli: Cli, good_and_bad: list[str], command: str, more: list[str]
) -> None:
    result = cli(command, *good_and_bad, *more)
    told = [line.split(": ")[1] for line in result.err.splitlines() if "error: " in line]
    bad = good_and_bad[1:-1]
    assert (result.code, told[:-1]) == (1, bad), result.err
    assert f"{len(bad)} of {len(good_and_bad)} pictures could not be read" in result.err
    read = cli(command, "a.png", "z.png", *more)
    assert (read.code, result.out) == (0, read.out)


@pytest.mark.parametrize("command", ["eval", "data check", "search"])
def test_bad_pictures_of_a_set_end_no_run(cli: Cli, good_and_bad: list[str], command: str) -> None:
    rows = [{"image": name, "prefix": "caption en", "suffix": "a"} for name in good_and_bad]
    Path("data.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    arguments = {
        "eval": ["--data", "data.jsonl", "--json", "--max-new-tokens", 2],
        "data check": ["data.jsonl", "--json"],
        "search": [".", "red", "--model", "mini-dual"],
    }
    result = cli(*command.split(), *arguments[command])
    assert "Traceback" not in result.err
    said = result.out + result.err
    bad = [name for name in good_and_bad[1:-1] if Path(name).is_file() or command != "search"]
    assert [name for name in bad if name not in said] == []
    if command == "eval":
        assert json.loads(result.out)["data.jsonl"]["caption: exact"]["n"] == 2
    elif command == "data check":
        assert json.loads(result.out)["left_out"] == len(bad)
    else:
        assert {line.rpartition("/")[2] for line in result.out.splitlines()} == {"a.png", "z.png"}
