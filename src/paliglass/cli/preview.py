"""A picture in the terminal: kitty's protocol, iTerm2's, or half blocks in 24-bit colour."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from paliglass.errors import PaliglassError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["FORCE", "choose_protocol", "preview"]

Protocol = Literal["kitty", "iterm2", "blocks"]
PROTOCOLS: tuple[Protocol, ...] = ("kitty", "iterm2", "blocks")
FORCE = "PALIGLASS_PREVIEW"
CHUNK = 4096  # what kitty takes at most in one piece
WIDEST = 800  # pixels


def choose_protocol(environment: Mapping[str, str]) -> Protocol:
    """What a terminal can show, by what it says of itself; PALIGLASS_PREVIEW decides over it.

    Raises PaliglassError where that is no protocol.
    """
    forced = environment.get(FORCE, "")
    for protocol in PROTOCOLS:
        if forced == protocol:
            return protocol
    if forced:
        raise PaliglassError(f"{FORCE} is {forced!r}; choose {', '.join(PROTOCOLS)}")
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if "TMUX" in environment or term.startswith(("screen", "tmux")):
        return "blocks"  # they let no pictures through
    if term in ("xterm-kitty", "xterm-ghostty") or "KITTY_WINDOW_ID" in environment:
        return "kitty"
    return "iterm2" if program in ("iTerm.app", "WezTerm", "mintty") else "blocks"


def preview(image: Image.Image, protocol: Protocol, columns: int = 80) -> str:
    """What to write to a terminal so that it shows a picture, a line break at its end."""
    if protocol == "blocks":
        return _blocks(image, columns)
    image = image.copy()
    image.thumbnail((WIDEST, WIDEST))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    png = buffer.getvalue()
    text = base64.standard_b64encode(png).decode("ascii")
    if protocol == "iterm2":
        return f"\x1b]1337;File=inline=1;size={len(png)};preserveAspectRatio=1:{text}\a\n"
    chunks = [text[i : i + CHUNK] for i in range(0, len(text), CHUNK)]
    parts = []
    for number, chunk in enumerate(chunks):
        # a=T: transmit and show; f=100: PNG; m=1: more follows; q=2: answer nothing.
        keys = "a=T,f=100,q=2," if number == 0 else ""
        parts.append(f"\x1b_G{keys}m={int(number + 1 < len(chunks))};{chunk}\x1b\\")
    return "".join(parts) + "\n"


def _blocks(image: Image.Image, columns: int) -> str:
    """Two pixels a character: the upper half block's own colour and the one behind it."""
    from rich.color import Color
    from rich.console import Console
    from rich.segment import Segment, Segments
    from rich.style import Style

    image = image.convert("RGB")
    width = max(1, min(columns, image.width))
    height = max(2, 2 * round(image.height * width / image.width / 2))
    pixels = image.resize((width, height)).load()
    assert pixels is not None
    cells = []
    for y in range(0, height, 2):
        for x in range(width):
            upper, lower = (Color.from_rgb(*pixels[x, row]) for row in (y, y + 1))  # type: ignore[misc]
            cells.append(Segment("▀", Style(color=upper, bgcolor=lower)))
        cells.append(Segment.line())
    console = Console(
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        no_color=False,
        width=width + 1,
        legacy_windows=False,
    )
    with console.capture() as capture:
        console.print(Segments(cells), end="")
    return capture.get()
