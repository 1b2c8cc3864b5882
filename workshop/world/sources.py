"""Where the art comes from: npm packages pinned by hash, read in memory, kept as arrays.

`sources.tsv` names each package, its licence, what it is for and its sha512. A tarball is fetched
with `npm pack`, compared with that and read member by member, by exact name: it is never unpacked.
What is needed of all of them is kept in two files (`art.py`), so that later runs, and machines
without a network, need neither npm nor a renderer.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import subprocess
import tarfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal, cast

from paliglass.errors import PaliglassError

__all__ = ["SOURCES", "Source", "default_cache", "fetch", "read_members"]

Role = Literal["train", "test", "style", "both"]

_MAX_MEMBER_BYTES = 128 << 20


@dataclass(frozen=True)
class Source:
    """One pinned npm package.

    integrity: the sha512 as npm's registry gives it; family: the style or type family;
    role: what it is for; members: the files read from it, as paths inside the tarball; what: icons
    as SVG, pictures, fonts, handwritten digits or words.
    """

    name: str
    version: str
    integrity: str
    licence: str
    family: str
    role: Role
    members: tuple[str, ...] = ("package/icons.json",)
    what: str = "icons"

    @property
    def tarball(self) -> str:
        """The file name that `npm pack` gives."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


def _read() -> tuple[Source, ...]:
    table = (files("workshop.world") / "sources.tsv").read_text("utf-8")
    return tuple(
        Source(
            row["name"],
            row["version"],
            row["sha512"],
            row["licence"],
            row["family"],
            cast(Role, row["role"]),
            tuple(filter(None, row["members"].split(";"))),
            row["what"],
        )
        for row in csv.DictReader(io.StringIO(table), delimiter="\t")
    )


SOURCES: tuple[Source, ...] = _read()


def default_cache() -> Path:
    """The folder that art is kept in unless told otherwise: `.cache/world` where we stand."""
    return Path.cwd() / ".cache" / "world"


def fetch(source: Source, cache: Path) -> Path:
    """The package's tarball in `cache`, fetched with `npm pack` if it is not there yet.

    Raises:
        PaliglassError: npm is missing or fails, or the hash is not the pinned one.
    """
    path = cache / source.tarball
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        package = f"{source.name}@{source.version}"
        command = ["npm", "pack", package, "--silent", "--pack-destination", str(cache)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=600)
        except FileNotFoundError as error:
            raise PaliglassError(
                "the picture world's art comes through npm, which is not installed: install "
                f"Node.js, or put {source.tarball} into {cache}"
            ) from error
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise PaliglassError(
                f"npm could not fetch {package}: check the network, or put {source.tarball} "
                f"into {cache}"
            ) from error
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if digest != source.integrity:
        raise PaliglassError(
            f"{path} is not {source.name} {source.version} (its sha512 differs): delete it and "
            "run again"
        )
    return path


def read_members(tarball: Path, members: tuple[str, ...]) -> list[bytes]:
    """The contents of `members`, read in memory.

    Nothing is written, so a hostile path can escape nowhere; links and oversized members are
    refused all the same.

    Raises:
        PaliglassError: not a tarball, or a member is missing, no plain file, or too large.
    """
    contents: list[bytes] = []
    try:
        with tarfile.open(tarball) as archive:
            for name in members:
                member = archive.getmember(name)
                file = archive.extractfile(member) if member.isfile() else None
                if file is None or member.size > _MAX_MEMBER_BYTES:
                    raise PaliglassError(f"{tarball}: {name} is not a plain file of sane size")
                contents.append(file.read())
    except KeyError as error:
        raise PaliglassError(f"{tarball} lacks {error.args[0]}") from error
    except (tarfile.TarError, EOFError) as error:
        raise PaliglassError(f"{tarball} is not a readable tarball: delete it") from error
    return contents
