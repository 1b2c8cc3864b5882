"""What a server allows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["MAX_TEXT", "Settings"]

MAX_TEXT = 50_000
"""Characters of a prompt, or of all choices: words cost time before their number is known, and no
PaliGemma reads more than 8,192 tokens."""


@dataclass(frozen=True)
class Settings:
    """What a server allows. Times in seconds, sizes in bytes.

    name: what clients call the model; embedding_name: and the dual encoder, if there is one.
    timeout: of an answer, from its place in line on. max_body: of a request, which may take
    body_seconds to arrive. max_picture: of a picture's file; max_pixels: of its unpacked form.
    keys: with none, everybody may ask. media_domains: hosts that pictures are fetched from.
    media_path: a folder that file: addresses may lie in. ignore_system: do without system messages
    rather than refuse them. is_local: whether only this machine can reach it; other Host headers
    are then refused, so that no web page can. ping_seconds: between signs of life in a stream.
    """

    name: str = "mini"
    embedding_name: str | None = None
    timeout: float = 120.0
    max_body: int = 32 << 20
    body_seconds: float = 30.0
    max_picture: int = 20_000_000
    max_pixels: int = 50_000_000
    max_pictures: int = 8
    max_samples: int = 8
    picture_cache: int = 64 << 20
    keys: tuple[str, ...] = ()
    media_domains: tuple[str, ...] = ()
    media_path: Path | None = None
    ignore_system: bool = False
    is_local: bool = True
    ping_seconds: float = 10.0
