"""What a user names: nothing is passed over in silence, and no name speaks to the terminal."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.cli.helpers import Result, finds, picture
from tests.tiny import tiny_tokenizer
from tests.tiny_dual import CONFIGS, dual_model

from paliglass import Box, Detection
from paliglass.cli.pictures import picture_names
from paliglass.contrastive.folders import save_contrastive

Cli = Callable[..., Result]


def gif(path: str) -> None:
    first, *others = (Image.new("RGB", (40, 30), colour) for colour in ("red", "lime", "blue"))
    first.save(path, save_all=True, append_images=others)


@pytest.mark.parametrize(
    "command",
    [
        ("caption", "d", "--json"),
        ("detect", "d", "dog", "--json"),
        ("embed", "d", "--out", "x.safetensors"),
        ("classify", "d", "--label", "red", "--label", "blue", "--json"),
        ("search", "d", "red", "--index", "x", "--json"),
    ],
    ids=lambda command: command[0],
)
def test_pictures_of_formats_that_are_not_read_are_named_and_counted(
    cli: Cli, photos: Path, command: tuple[str, ...]
) -> None:
    picture("d/a.png")
    for name in ("b.HEIC", "c.heic", "e.svg", "notes.txt"):
        Path("d", name).write_bytes(b"x")
    result = cli(*command)
    if "--json" in command:
        assert "d/a.png" in result.out
    assert result.code == 1
    assert "d: 2 .heic pictures are left out" in result.err
    assert "d: 1 .svg picture is left out" in result.err
    assert "txt" not in result.err


@pytest.mark.parametrize("name", ["a.jfif", "a.JPE", "a.avif", "a.apng", "a.pgm", "a.jp2"])
def test_every_suffix_of_what_is_read_counts(name: str) -> None:
    Path("d", name).parent.mkdir()
    Path("d", name).touch()
    assert picture_names(["d"]) == ([f"d/{name}"], [])


def test_a_folder_that_cannot_be_opened_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    picture("d/a.png")
    picture("d/locked/b.png")
    real = os.scandir

    def scandir(path: str) -> Iterator[os.DirEntry[str]]:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    names, complaints = picture_names(["d"], recursive=True)
    assert names == ["d/a.png"]
    assert complaints == ["d/locked: cannot be opened (Permission denied)"]
    assert picture_names(["d"]) == (["d/a.png"], [])


def test_a_link_to_its_own_folder_makes_no_second_picture() -> None:
    picture("d/a.png")
    Path("d/again").symlink_to(Path("d").absolute())
    assert picture_names(["d/**/*.png"]) == (["d/a.png"], [])
    assert picture_names(["d"], recursive=True) == (["d/a.png"], [])


def test_of_several_frames_the_first_is_taken_and_that_is_said(cli: Cli) -> None:
    gif("movie.gif")
    picture("a.png")
    result = cli("caption", "movie.gif", "a.png", "--json")
    assert result.code == 0
    assert result.err.splitlines()[0] == (
        "note: movie.gif: only the first frame or page was looked at; the next is movie.gif#2"
    )
    picture("red.png", "red")
    picture("blue.png", "blue")
    answers = [
        cli("caption", name).out for name in ("movie.gif#1", "red.png", "movie.gif#3", "blue.png")
    ]
    assert answers[0] == answers[1]
    assert answers[2] == answers[3]
    named = cli("caption", "movie.gif#3")
    assert named.code == 0
    assert "first frame" not in named.err
    missing = cli("caption", "movie.gif#4")
    assert missing.code == 1
    assert "movie.gif#4: there is no frame 4, it has 3" in missing.err


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("command", ["caption", "classify", "embed"])
def test_names_do_not_speak_to_the_terminal(
    cli: Cli, photos: Path, command: str, terminal: bool
) -> None:
    name = "a\x1b[31m\u202eb\r.png"
    Path(name).write_bytes(b"no picture")
    more = {"classify": ["-l", "red", "-l", "blue"], "embed": ["--out", "x.safetensors"]}
    names = name, "gone\x1b]0;title\x07.png"
    err = cli(command, *names, *more.get(command, []), terminal=terminal).err
    assert r"a\x1b[31m\u202eb\r.png: is not a picture" in err
    assert r"gone\x1b]0;title\x07.png: no such file" in err
    assert "\x1b[31m" not in err
    assert "\x07" not in err


def test_no_name_and_no_label_parts_a_row_of_columns(
    cli: Cli, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = "d/a\tb\nc.png", "d/e\\t.png"
    shown = ["d/a\\tb\\nc.png", "d/e\\t.png"]
    for name in names:
        picture(name)
    finds(monkeypatch, Detection("a\tdog\r", Box(1, 2, 21, 20), 0.875))
    found = ["a\\tdog\\r", "0.875", "1.0", "2.0", "21.0", "20.0"]
    rows = [line.split("\t") for line in cli("detect", "d", "dog").out.splitlines()]
    assert rows == [[name, *found] for name in shown]
    for command, at in {
        ("caption", "d"): 0,
        ("classify", "d", "-l", "red\ndog", "-l", "blue"): 0,
        ("search", "d", "a dog", "--index", "kept"): 1,
    }.items():
        rows = [line.split("\t") for line in cli(*command).out.splitlines()]
        assert sorted(row[at] for row in rows) == shown, command
        assert [len(row) for row in rows] == [2, 2], command


def test_keys_of_a_checkpoint_do_not_speak_to_the_terminal(cli: Cli, model_folder: Path) -> None:
    import shutil

    shutil.copytree(model_folder, "spoilt")
    state = load_file("spoilt/model.safetensors")
    save_file({**state, "\x1b[2Jevil\n": torch.zeros(1)}, "spoilt/model.safetensors")
    picture("a.png")
    result = cli("caption", "a.png", "--model", "spoilt")
    assert result.code == 1
    assert r"\x1b[2Jevil\n" in result.err
    assert "\x1b" not in result.err


@pytest.mark.parametrize(
    "command",
    [
        ("caption", "a.png", "--model", "nano"),
        ("caption", "a.png", "--adapter", "nano"),
        ("detect", "a.png", "dog", "-m", "nano"),
        ("trace", "a.png", "-m", "nano"),
        ("convert", "nano", "new"),
        ("export", "nano", "new"),
        ("verify", "nano"),
        ("eval", "--data", ".", "-m", "nano"),
        ("embed", "a.png", "--out", "x", "-m", "nano"),
        ("search", ".", "dog", "-m", "nano"),
        ("classify", "a.png", "dog", "-m", "nano"),
        ("similarity", "a.png", "-t", "dog", "-m", "nano"),
        ("serve", "-m", "nano"),
        ("serve", "--embedding-model", "nano"),
    ],
    ids=lambda command: command[0],
)
def test_a_model_that_is_not_there_is_missed_before_torch_is_imported(
    command: tuple[str, ...],
) -> None:
    picture("a.png")
    code = (
        "import sys\n"
        "sys.modules['torch'] = None  # to import it raises\n"
        "from paliglass.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: nano: no such folder"), done.stderr
    assert not done.stdout
    wanted = "adapter_config.json" if "--adapter" in command else "or mini"
    assert wanted in done.stderr


@pytest.fixture
def photos(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("dual") / "siglip"
    save_contrastive(dual_model(CONFIGS["siglip"]), folder, tiny_tokenizer())
    monkeypatch.setenv("PALIGLASS_DUAL_MODEL", str(folder))
    for colour in ("red", "lime"):
        picture(f"photos/{colour}.png", colour)
    return Path("photos")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_search_in_a_folder_that_takes_no_index_shows_what_it_found(
    cli: Cli, photos: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number), "photos/.paliglass")

    expected = cli("search", photos, "a dog", "--index", "kept")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        result = cli("search", photos, "a dog")
    assert (result.code, result.out) == (0, expected.out)
    assert f"cannot be kept ({os.strerror(number)})" in result.err
    assert "--index FILE" in result.err


@pytest.mark.parametrize("shape", [(2, 7), (2,), (2, 3, 4), (3, 32)])
def test_an_index_of_another_shape_is_refused(
    cli: Cli, photos: Path, shape: tuple[int, ...]
) -> None:
    cli("search", photos, "a dog", "--index", "kept")
    from safetensors import safe_open

    with safe_open("kept", "pt") as file:
        metadata = file.metadata()
    save_file({"images": torch.zeros(shape), "texts": torch.zeros(0, 0)}, "kept", metadata)
    result = cli("search", photos, "a dog", "--index", "kept")
    assert result.code == 1
    assert result.err.startswith("error: kept: ")
    assert "delete it" in result.err
