"""Pictures in the terminal, decoded again from what is written."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image
from tests.tiny import noise_picture

from paliglass.cli.preview import choose_protocol, preview
from paliglass.errors import PaliglassError


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({}, "blocks"),
        ({"TERM": "xterm-256color"}, "blocks"),
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1"}, "blocks"),
        ({"TMUX": "/x", "TERM_PROGRAM": "iTerm.app"}, "blocks"),
        ({"TERM": "xterm-kitty", "PALIGLASS_PREVIEW": "blocks"}, "blocks"),
        ({"PALIGLASS_PREVIEW": "kitty"}, "kitty"),
    ],
)
def test_a_terminal_is_known_by_its_environment(environment, protocol) -> None:
    assert choose_protocol(environment) == protocol


def test_what_is_no_protocol_is_refused() -> None:
    with pytest.raises(PaliglassError, match="is 'sixel'; choose kitty, iterm2, blocks"):
        choose_protocol({"PALIGLASS_PREVIEW": "sixel"})
    assert choose_protocol({"PALIGLASS_PREVIEW": ""}) == "blocks"


def test_kitty_gets_the_picture_in_pieces() -> None:
    picture = noise_picture(97, 131)
    text = preview(picture, "kitty")
    pieces = re.findall(r"\x1b_G([^;]*);([A-Za-z0-9+/=]*)\x1b\\", text)
    assert "".join(f"\x1b_G{keys};{data}\x1b\\" for keys, data in pieces) + "\n" == text
    keys = [dict(pair.split("=") for pair in keys.split(",")) for keys, _ in pieces]
    assert (keys[0]["a"], keys[0]["f"]) == ("T", "100")
    assert len(pieces) > 1
    assert [k["m"] for k in keys] == ["1"] * (len(pieces) - 1) + ["0"]
    assert all(len(data) <= 4096 and len(data) % 4 == 0 for _, data in pieces)
    png = base64.b64decode("".join(data for _, data in pieces))
    with Image.open(io.BytesIO(png)) as shown:
        assert shown.format == "PNG"
        assert shown.tobytes() == picture.tobytes()


def test_iterm_gets_the_picture_with_its_size() -> None:
    picture = noise_picture(40, 30)
    [(size, data)] = re.findall(
        r"\x1b\]1337;File=inline=1;size=(\d+);preserveAspectRatio=1:(.*)\a\n",
        preview(picture, "iterm2"),
    )
    png = base64.b64decode(data)
    assert len(png) == int(size)
    with Image.open(io.BytesIO(png)) as shown:
        assert shown.tobytes() == picture.tobytes()


def test_large_pictures_are_sent_small() -> None:
    text = preview(Image.new("RGB", (4000, 1000)), "iterm2")
    with Image.open(io.BytesIO(base64.b64decode(text.split(":")[1][:-2]))) as shown:
        assert shown.size == (800, 200)


def test_half_blocks_are_two_pixels_each(monkeypatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")  # a preview that was asked for is in colour all the same
    picture = noise_picture(12, 8)
    lines = preview(picture, "blocks", 80).splitlines()
    colours = [
        re.findall(r"38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m▀", line) for line in lines
    ]
    pixels = np.array(colours, dtype=int).reshape(4, 12, 2, 3).swapaxes(1, 2).reshape(8, 12, 3)
    assert (pixels == np.asarray(picture)).all()


def test_half_blocks_fit_the_terminal() -> None:
    for size in ((400, 300), (1, 1), (1, 90), (300, 1)):
        lines = preview(Image.new("RGB", size, "red"), "blocks", 40).splitlines()
        assert lines
        assert all(line.count("▀") == min(size[0], 40) for line in lines)
