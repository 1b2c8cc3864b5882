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
from workshop.world import World
from workshop.world import art as arts
from workshop.world.art import Face, build, load_art
from workshop.world.concepts import CONCEPTS
from workshop.world.sources import SOURCES, Source, fetch, read_members
from workshop.world.words import WORDS, invented_word, is_held_out, random_line, random_text

from paliglass.errors import PaliglassError

ROOT = Path(__file__).parents[2]
# Errors and masks; and what draws boxes, for the contact sheet. The commands may use more.
ALLOWED = {
    f"paliglass.{name}"
    for name in (
        "errors",
        "files",
        "modeling_mask_codec",
        "tasks.boxes",
        "tasks.results",
        "tasks.masks",
    )
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
    tmp_path: Path, face: Face, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("resvg_py")
    body = '<rect x="2" y="4" width="8" height="4" fill="#f00"/>'
    icons = [icon for concept in CONCEPTS.values() for icon in concept.icons]
    collection = {
        "icons": {icon: {"body": body} for icon in icons if icon != "poodle"},
        "width": 16,
        "height": 16,
    }
    emoji = {chr(0x1F000 + i): {"slug": icon.replace("-", "_")} for i, icon in enumerate(icons)}
    digits = np.linspace(0, 1, 40 * 784).round(3).tolist()
    contents = {
        "noto-v1": {"package/icons.json": json.dumps(collection).encode()},
        "names": {"package/data-by-emoji.json": json.dumps(emoji).encode()},
        "mnist": {
            f"package/src/digits/{digit}.json": json.dumps({"data": digits}).encode()
            for digit in range(10)
        },
        "patrick-hand": {"package/400Regular/PatrickHand_400Regular.ttf": face.data},
        "gochi-hand": {"package/400Regular/GochiHand_400Regular.ttf": face.data},
    }
    chosen = [source for source in SOURCES if source.family in contents]
    monkeypatch.setattr(
        arts,
        "SOURCES",
        tuple(pinned(s, tarball(tmp_path / s.tarball, contents[s.family])) for s in chosen),
    )
    art = load_art(tmp_path, "train")
    assert art.stickers.keys() == {n for n, concept in CONCEPTS.items() if concept.icons}
    dogs = art.stickers["dog"]
    assert len(dogs) == len(CONCEPTS["dog"].icons) - 1  # one that the vendor does not draw
    assert dogs[0].mode == "RGBa"
    assert dogs[0].size == (64, 32)  # half and a quarter of what is rendered: cropped
    assert [font.name for font in art.fonts] == ["patrick-hand/PatrickHand_400Regular"]
    held_out = load_art(tmp_path, "test")
    assert [font.name for font in held_out.fonts] == ["gochi-hand/GochiHand_400Regular"]
    for ours, theirs in zip(art.digits, held_out.digits, strict=True):
        assert len(ours) + len(theirs) == 40
        assert not {d.tobytes() for d in ours} & {d.tobytes() for d in theirs}

    monkeypatch.setattr(arts, "_render", None)  # a second load needs no renderer,
    for kept in tmp_path.glob("*.tgz"):
        kept.unlink()  # and no package
    again = load_art(tmp_path, "train")
    assert again.stickers["dog"][0].tobytes() == dogs[0].tobytes()
    assert World(art=again).single("dog", 0).objects[0].name == "dog"


def test_another_world_is_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "found").mkdir()
    names = []
    for version in ("1", "2"):
        changed = [replace(s, version=version) for s in SOURCES if s.family == "noto"]
        monkeypatch.setattr(arts, "SOURCES", tuple(changed))
        monkeypatch.setattr(arts, "_stickers", lambda *_: {"names": np.array([])})
        names.append(build(tmp_path / "found", "train").name)
        assert build(tmp_path / "found", "train").name == names[-1]
    assert len(set(names)) == 2


def test_words_of_training_and_testing_are_disjoint() -> None:
    rng = np.random.default_rng(0)
    train = {random_text(rng, held_out=False) for _ in range(3000)}
    test = {random_text(rng, held_out=True) for _ in range(3000)}
    assert not train & test
    assert not {text.upper() for text in train} & {text.upper() for text in test}
    assert 10 < sum(is_held_out(word) for word in WORDS) < len(WORDS) / 5
    assert len(train - set(WORDS)) > 1000
    for held_out in (False, True):
        for count in (1, 2, 3):
            line = random_line(rng, held_out, count)
            words = line.replace(",", "").replace("&", "").strip("!?.:").split()
            assert any(map(is_held_out, words)) or not held_out
            assert held_out or not any(is_held_out(w) for w in words if w.isalpha())


def test_training_invents_more_words_than_it_could_remember() -> None:
    rng = np.random.default_rng(0)
    words = [invented_word(rng) for _ in range(3000)]
    assert len(set(words)) > 2000
    assert all(3 <= len(word) <= 9 and word.isalpha() and word.isupper() for word in words)
    assert not any(map(is_held_out, words))
    texts = [random_text(rng, held_out=False).upper() for _ in range(3000)]
    assert len(set(texts)) > 2500
    held_out = [random_text(rng, held_out=True).upper() for _ in range(500)]
    assert any(word in WORDS for word in held_out)


def test_vendors_and_fonts_are_disjoint() -> None:
    families: dict[str, set[str]] = {}
    for source in SOURCES:
        families.setdefault(source.family, set()).add(source.role)
    assert all(len(roles) == 1 for roles in families.values())
    assert len({source.name for source in SOURCES}) == len(SOURCES)
    of_kind = {kind: [s for s in SOURCES if s.what == kind] for kind in ("icons", "font")}
    held_out = {s.family for s in of_kind["icons"] if s.role == "style"}
    assert held_out == {"openmoji", "emojione"}
    assert sum(s.role == "test" for s in of_kind["font"]) >= 6


def test_the_attribution_names_every_source() -> None:
    page = (ROOT / "ATTRIBUTION.md").read_text()
    for source in SOURCES:
        row = next(line for line in page.splitlines() if line.startswith(f"| `{source.name}` "))
        assert source.version in row
        assert source.licence in row
        assert f"| `{source.name}@{source.version}` | `{source.integrity}` |" in page


def test_the_world_is_a_leaf() -> None:
    """It needs of the package its errors, how files are written and, for `segment`, the codec."""
    for path in Path(workshop.world.__path__[0]).glob("[!_]*.py"):
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
