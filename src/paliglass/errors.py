"""The one exception a user is meant to read: a single line that names the cause and the mend."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "CheckpointError",
    "ConfigError",
    "PaliglassError",
    "PictureError",
    "PromptError",
    "from_workers",
    "not_installed",
    "printable",
]

# Embeddings, overrides and isolates of writing direction.
_DIRECTIONS = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))


def printable(text: str) -> str:
    r"""Text that a terminal shows and does not obey, on one line: `\n` for a line break.

    Names of files and of tensors may hold a terminal's own codes, turn a line's direction round, or
    hold half a character, which cannot be written at all.
    """
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _DIRECTIONS
        else character
        for character in text
    )


class PaliglassError(Exception):
    """Something the user can put right. The command line prints its message and exits with 1."""

    def __str__(self) -> str:
        return printable(super().__str__())


class CheckpointError(PaliglassError):
    """A checkpoint that is not what it should be: the message names the key, the file or both."""


class ConfigError(PaliglassError, ValueError):
    """A configuration with an unknown key or a value this implementation does not have."""


class PictureError(PaliglassError):
    """A file that is not a picture, or one that must not be opened."""


class PromptError(PaliglassError, ValueError):
    """A prompt that does not fit its pictures or the model's length."""


@contextmanager
def from_workers() -> Iterator[None]:
    """Gives errors of a torch DataLoader's workers the message that they had there.

    torch raises them again with the worker's whole traceback for a message.
    """
    try:
        yield
    except PaliglassError as error:
        _, found, message = str(error.args[0]).rpartition(f"{type(error).__name__}: ")
        if not found:
            raise
        raise type(error)(message.strip()) from None


def not_installed(module: str) -> str:
    """What to install for a module; which extra has it, the package's own metadata tell."""
    # Imported here: it takes some milliseconds, and most runs lack nothing.
    from importlib.metadata import PackageNotFoundError, requires

    name = {"yaml": "pyyaml", "PIL": "pillow"}.get(module, module)
    try:
        required = requires("paliglass") or []
    except PackageNotFoundError:
        required = []
    extras = []
    for line in required:
        package = re.split(r"[^\w.-]", line, maxsplit=1)[0]
        if package.replace("-", "_").lower() == name.replace("-", "_").lower():
            match = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
            extras.append(match[1] if match else "")
    own = set(extras) - {"test", "dev", "workshop"}
    if own > {"ray"}:  # large; it has what `annotate` and `serve` have too
        own.remove("ray")
    first = sorted(own, key=lambda extra: (extra != "train", extra))
    install = " or ".join(f"'paliglass[{extra}]'" for extra in first) or name
    if "" in own:  # every installation has it: this one is damaged
        install = "paliglass"
    return f"this needs {name}, which is not installed: pip install {install}"
