"""The art that scenes are composed of, rendered once and kept as files of plain arrays.

`stickers-ROLE-….npz` holds every concept as every vendor of that role draws it, as WebP in one
array; `text-….npz` the type faces and the handwritten digits. They are made from the packages of
`sources.tsv` the first time that they are needed, and loaded without npm or a renderer: that is how
the world travels to a machine without a network (`python -m workshop.world pack`).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFont

from paliglass.errors import PaliglassError
from workshop.world.concepts import CONCEPTS
from workshop.world.photos import fetch_photos
from workshop.world.sources import SOURCES, Source, fetch, read_members
from workshop.world.splits import SPLITS, Split

__all__ = ["Art", "Drawings", "Face", "build", "load_art"]

PIXELS = 96  # the longer side of a kept sticker
_QUALITY = 88  # of WebP's 100


@dataclass(frozen=True)
class Face:
    """A type face, as the bytes of its file; it can be pickled."""

    name: str
    data: bytes

    def at(self, size: int) -> ImageFont.FreeTypeFont:
        """The face at a size in pixels."""
        return _opened(self.name, self.data, size)

    def edges(self, text: str, size: int) -> list[float]:
        """Where each character begins, and where the last one ends, from the text's start."""
        edges = [0.0]
        for character in text:
            edges.append(edges[-1] + _advance(self.name, self.data, size, character))
        return edges


@lru_cache(maxsize=1 << 16)
def _advance(name: str, data: bytes, size: int, character: str) -> float:
    return _opened(name, data, size).getlength(character)


@lru_cache(maxsize=4096)
def _opened(name: str, data: bytes, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(io.BytesIO(data), size, layout_engine=ImageFont.Layout.BASIC)


class Drawings(Sequence[Image.Image]):
    """One concept's drawings, premultiplied (`RGBa`) and cropped; decoded when asked for."""

    def __init__(self, encoded: Sequence[bytes]) -> None:
        self.encoded = encoded
        self.decoded: dict[int, Image.Image] = {}

    def __len__(self) -> int:
        return len(self.encoded)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> list[Image.Image]: ...
    def __getitem__(self, index: int | slice) -> Image.Image | list[Image.Image]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index not in self.decoded:
            picture = Image.open(io.BytesIO(self.encoded[index])).convert("RGBA")
            self.decoded[index] = picture.convert("RGBa")
        return self.decoded[index]

    def __getstate__(self) -> dict[str, Any]:
        return {"encoded": self.encoded, "decoded": {}}


@dataclass(frozen=True)
class Art:
    """What scenes are composed of.

    stickers: for each concept its drawings, premultiplied (`RGBa`) and cropped;
    digits: for 0-9 an array of handwritten digits, N×28×28, ink 255; fonts: type faces.
    """

    stickers: Mapping[str, Sequence[Image.Image]]
    digits: tuple[NDArray[np.uint8], ...]
    fonts: tuple[Face, ...]


def load_art(cache: Path, split: Split) -> Art:
    """The art of a split; the first call fetches and renders.

    Raises:
        PaliglassError: a package cannot be had, or the renderer is not installed.
    """
    rules = SPLITS[split]
    stickers: Mapping[str, Sequence[Image.Image]]
    if rules.stickers == "photos":
        photos = fetch_photos(cache, PIXELS)
        stickers = {
            name: [Image.fromarray(photo).convert("RGBa") for photo in own]
            for name, own in photos.items()
        }
    else:
        stickers = _load_stickers(build(cache, rules.stickers))
    with np.load(build(cache, "text"), allow_pickle=False) as kept:
        role = "test" if rules.held_out else "train"
        wanted = kept["roles"] == role
        faces = _split(kept["data"], kept["ends"])
        fonts = [Face(str(n), f) for n, f, w in zip(kept["names"], faces, wanted, strict=True) if w]
        digits = tuple(kept[f"digits {role} {digit}"] for digit in range(10))
    return Art(stickers, digits, tuple(fonts))


def _load_stickers(path: Path) -> dict[str, Drawings]:
    """Concepts in their own order, whatever the file's."""
    with np.load(path, allow_pickle=False) as kept:
        names, drawings = kept["names"].tolist(), _split(kept["data"], kept["ends"])
    found: dict[str, list[bytes]] = {}
    for name, drawing in zip(names, drawings, strict=True):
        found.setdefault(name, []).append(drawing)
    return {name: Drawings(found[name]) for name in CONCEPTS if name in found}


def _split(data: NDArray[np.uint8], ends: NDArray[np.int64]) -> list[bytes]:
    starts = [0, *ends[:-1].tolist()]
    return [data[a:b].tobytes() for a, b in zip(starts, ends.tolist(), strict=True)]


def _joined(parts: Sequence[bytes]) -> dict[str, NDArray[Any]]:
    return {
        "data": np.frombuffer(b"".join(parts), np.uint8),
        "ends": np.cumsum([len(part) for part in parts], dtype=np.int64),
    }


def build(cache: Path, role: str) -> Path:
    """The file of stickers of a role ("train", "style"), or of "text"; made if it is not there.

    Its name has a hash of all that went into it, so that versions of the world share a cache.
    """
    kinds = ("font", "digits") if role == "text" else ("icons", "pictures")
    sources = [s for s in SOURCES if s.what in kinds and (role == "text" or s.role == role)]
    icons = [] if role == "text" else [(name, c.icons) for name, c in CONCEPTS.items()]
    about = repr((sources, PIXELS, _QUALITY, icons, _aliases() if icons else ""))
    digest = hashlib.sha256(about.encode()).hexdigest()[:8]
    path = cache / f"{'text' if role == 'text' else f'stickers-{role}'}-{digest}.npz"
    if not path.exists():
        arrays = _text(sources, cache) if role == "text" else _stickers(sources, cache)
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.npz")  # others may be making the same
        np.savez_compressed(partial, allow_pickle=False, **arrays)
        partial.replace(path)
    return path


def _text(sources: Sequence[Source], cache: Path) -> dict[str, NDArray[Any]]:
    names, roles, faces = [], [], []
    arrays: dict[str, NDArray[Any]] = {}
    for source in sources:
        contents = read_members(fetch(source, cache), source.members)
        if source.what == "font":
            names += [f"{source.family}/{Path(member).stem}" for member in source.members]
            roles += [source.role] * len(contents)
            faces += contents
            continue
        for digit, member in enumerate(contents):
            ink = np.rint(np.array(json.loads(member)["data"], np.float64) * 255).astype(np.uint8)
            held = np.array([_is_held_out(one) for one in ink.reshape(-1, 28 * 28)])
            arrays[f"digits train {digit}"] = ink.reshape(-1, 28, 28)[~held]
            arrays[f"digits test {digit}"] = ink.reshape(-1, 28, 28)[held]
    return arrays | _joined(faces) | {"names": np.array(names), "roles": np.array(roles)}


def _is_held_out(digit: NDArray[np.uint8]) -> bool:
    """A handwritten digit's own pixels decide which side it belongs to: about one in ten."""
    return hashlib.sha256(digit.tobytes()).digest()[0] < 26


def _stickers(sources: Sequence[Source], cache: Path) -> dict[str, NDArray[Any]]:
    names, drawings = [], []
    characters = _characters(cache)
    for source in sources:
        for name, picture in _drawn_by(source, cache, characters):
            box = picture.getchannel("A").getbbox()
            if box is None:
                continue
            cut = picture.crop(box)
            cut.thumbnail((PIXELS, PIXELS), Image.Resampling.LANCZOS)
            file = io.BytesIO()
            cut.save(file, "WEBP", quality=_QUALITY, method=3)
            names.append(name)
            drawings.append(file.getvalue())
    return _joined(drawings) | {"names": np.array(names)}


def _characters(cache: Path) -> dict[str, str]:
    """Unicode's names of the icons, as in concepts.txt → the characters."""
    source = next(s for s in SOURCES if s.what == "words")
    (data,) = read_members(fetch(source, cache), source.members)
    return {
        emoji["slug"].replace("_", "-"): character for character, emoji in json.loads(data).items()
    }


def _codes(character: str) -> tuple[str, ...]:
    """A character as file names have it: code points in hexadecimal, with and without FE0F."""
    whole = "-".join(f"{ord(part):04x}" for part in character)
    return whole, whole.replace("-fe0f", "")


@lru_cache(maxsize=1)
def _aliases() -> dict[tuple[str, str], tuple[str, ...]]:
    """(family, icon) → what the family calls it, where neither Unicode nor a rule says."""
    table = (files("workshop.world") / "aliases.tsv").read_text("utf-8")
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for row in csv.DictReader(io.StringIO(table), delimiter="\t"):
        key = (row["family"], row["icon"])
        found[key] = (*found.get(key, ()), row["name"])
    return found


def _drawn_by(
    source: Source, cache: Path, characters: Mapping[str, str]
) -> Iterator[tuple[str, Image.Image]]:
    """Each concept's drawings by one vendor, as (name, picture)."""
    tarball = fetch(source, cache)
    icons = [(name, icon) for name, concept in CONCEPTS.items() for icon in concept.icons]
    if source.what == "pictures":
        members = {}
        for name, icon in icons:
            for code in _codes(characters[icon]):
                members[f"package/assets/{code}.webp"] = name
        for path, data in _present(tarball, members):
            yield members[path], Image.open(io.BytesIO(data)).convert("RGBA")
        return
    contents = read_members(tarball, source.members)
    collection = json.loads(contents[0])
    by_character: dict[str, str] = json.loads(contents[1]) if len(contents) > 1 else {}
    there = frozenset({*collection["icons"], *collection.get("aliases", {})})
    for name, icon in icons:
        for called in _called(source.family, icon, characters[icon], there, by_character):
            yield name, _render(_svg(collection, called), PIXELS + 32)


def _present(tarball: Path, members: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    """Those of the members that the tarball has, in its order."""
    import tarfile

    with tarfile.open(tarball) as archive:
        there = [name for name in archive.getnames() if name in members]
    yield from zip(there, read_members(tarball, tuple(there)), strict=True)


_BY_ALIAS_ALONE = ("fxemoji", "flat-color-icons")  # their names mean other things too


def _called(
    family: str,
    icon: str,
    character: str,
    there: frozenset[str],
    by_character: Mapping[str, str],
) -> list[str]:
    """What a collection calls an icon, if it has it; Streamline draws some things thrice."""
    aliases = _aliases().get((family, icon), ())
    if aliases or family in _BY_ALIAS_ALONE:
        return [name for name in aliases if name in there]
    for code in _codes(character):
        if code in by_character and by_character[code] in there:
            return [by_character[code]]
    plain = icon.replace("-s-", "s-").replace("-o-clock", "-oclock")
    for name in (icon, plain):
        if name in there:
            return [name]
        if numbered := [f"{name}-{i}" for i in (1, 2, 3) if f"{name}-{i}" in there]:
            return numbered
    return []


def _svg(icons: Mapping[str, Any], name: str) -> str:
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
            'drawing the stickers needs resvg-py: pip install "paliglass[workshop]"'
        ) from error
    png = resvg_py.svg_to_bytes(svg_string=svg, width=pixels, height=pixels)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")
