"""Whatever a source is, each of its pictures is one entry with an id of its own, and opens."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.scale.conftest import png

from paliglass.errors import PaliglassError, PictureError
from paliglass.scale.opening import Square
from paliglass.scale.sources import MANIFEST, Entry, entries, open_entry, open_place


def opened(*sources: object, **options: object) -> list[tuple[int, ...]]:
    """Widths of the pictures of some sources: they tell which is which. Checks ids and numbers."""
    found = list(entries([str(s) for s in sources], **options))
    assert len({entry.id for entry in found}) == len(found)
    assert [entry.number for entry in found] == list(range(len(found)))
    return [open_entry(entry).width - 160 for entry in found]


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, number in (("b.png", 1), ("a.png", 0), ("deep/c.png", 2)):
        path = tmp_path / "d" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    (tmp_path / "d" / ".hidden.png").write_bytes(png(8))
    (tmp_path / "d" / "notes.md").write_text("no picture")
    return tmp_path / "d"


def test_a_folder_is_its_own_pictures_in_order(folder: Path) -> None:
    assert opened(folder) == [0, 1]
    assert opened(folder, recursive=True) == [0, 1, 2]


def test_an_empty_name_is_not_the_folder_one_is_in() -> None:
    with pytest.raises(PaliglassError, match="is empty"):
        open_place("")


def test_a_pattern_is_what_it_matches(folder: Path) -> None:
    assert opened(f"{folder}/*/*.png") == [2]
    assert opened(f"{folder}/?.png") == [0, 1]


def test_keys_of_a_store_are_taken_as_they_are(tmp_path: Path) -> None:
    """`#`, `%` and `?` mean nothing in them."""
    names = ["a#1.png", "b%20c.png", "d?e.png"]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(png(number))
    (tmp_path / "list.txt").write_text("\n".join(names))
    address = f"file://{tmp_path}"
    assert opened(address) == opened(f"{address}/list.txt") == [0, 1, 2]
    assert [opened(f"{address}/{name}") for name in names] == [[0], [1], [2]]
    assert [entry.id for entry in entries([address])] == [f"{address}/{name}" for name in names]


def test_links_to_folders_are_not_followed(folder: Path) -> None:
    """They may lead round in a circle, and to pictures that are there already."""
    (folder / "deep" / "round").symlink_to(folder)
    (folder / "z.png").symlink_to(folder / "a.png")
    assert opened(folder, recursive=True) == [0, 1, 2, 0]


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_what_a_run_has_written_is_no_source(folder: Path, scheme: str) -> None:
    for place in (folder, folder / "rows"):
        (place / "parts").mkdir(parents=True)
        (place / "job.json").write_text("{}")
        for name in ("manifest.parquet", "parts/part-000000.parquet"):
            (place / name).write_bytes(b"no source")
    assert opened(f"{scheme}{folder}", recursive=True) == [0, 1, 2]


def test_a_name_that_is_no_text_ends_nothing(folder: Path) -> None:
    odd = os.fsencode(folder) + b"/\xff.png"
    Path(os.fsdecode(odd)).write_bytes(png(5))
    (folder / "list.txt").write_text("http://[x/y.png\na.png\n")
    found = list(entries([str(folder), str(folder / "list.txt")]))
    pa.Table.from_pylist([entry._asdict() for entry in found], MANIFEST)
    square = Square(8)
    errors = [square.open(entry).error for entry in found]
    assert errors[:2] == [None, None]
    assert "\\udcff.png: no such file" in errors[2]
    assert errors[3].startswith("http://[x/: cannot be opened")


def test_a_picture_that_cannot_be_resized_is_told(folder: Path) -> None:
    [entry] = entries([str(folder / "a.png")])
    assert "a.png: cannot be resized" in (Square(0).open(entry).error or "")


def test_what_two_sources_name_is_one_picture(folder: Path) -> None:
    assert opened(folder, folder / "a.png", f"{folder}/*.png") == [0, 1]


def test_a_list_names_pictures_from_its_own_folder(folder: Path) -> None:
    (folder / "list.txt").write_text(f"deep/c.png\n\n{folder / 'a.png'}\ndeep/c.png\n")
    assert opened(folder / "list.txt") == [2, 0]


def test_a_data_set_is_its_pictures(folder: Path) -> None:
    lines = [{"image": f"{n}.png", "prefix": "caption en", "suffix": "x"} for n in "bab"]
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert opened(folder / "data.jsonl") == [1, 0]


def test_a_tar_is_read_where_its_pictures_lie(tmp_path: Path) -> None:
    members = {"x/0.png": png(0), "x/0.json": b"{}", "x/1.png": png(1), "x/2.cls": b"7"}
    tars = [write_tar(tmp_path / f"{n}.tar", members) for n in "ab"]
    assert opened(*tars) == [0, 1, 0, 1]
    assert opened(tmp_path) == [0, 1, 0, 1]
    assert [entry.id for entry in entries([str(tars[0])])] == [
        f"{tars[0]}#x/0.png",
        f"{tars[0]}#x/1.png",
    ]


@pytest.mark.parametrize("kind", ["bytes", "struct", "path"])
def test_parquet_holds_bytes_or_paths(tmp_path: Path, kind: str) -> None:
    """Of several row groups: each row is found again."""
    numbers = [4, 1, 3, 0, 2]
    for number in numbers:
        (tmp_path / f"{number}.png").write_bytes(png(number))
    values = {
        "bytes": [png(n) for n in numbers],
        "struct": [{"bytes": png(n), "path": None} for n in numbers],
        "path": [f"{n}.png" for n in numbers],
    }[kind]
    path = tmp_path / "data.parquet"
    table = pa.table({"label": numbers, "image": values, "key": [f"k{n}" for n in numbers]})
    pq.write_table(table, path, row_group_size=2)
    assert opened(path) == numbers
    found = list(entries([str(path)], id_column="key"))
    assert [entry.id for entry in found] == [f"k{n}" for n in numbers]
    assert opened(path, column="image") == numbers


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ({"image": [1, 2]}, {}, "no column holds pictures' bytes or paths: image"),
        ({"x": [b""]}, {"column": "y"}, "has no column 'y': x"),
        ({"image": [b"", b""]}, {"id_column": "k"}, "has no column 'k': image"),
        ({"image": [b"", b""], "k": [1, 1]}, {"id_column": "k"}, "id '1' is another picture's too"),
    ],
)
def test_parquet_that_cannot_be_meant_is_refused(tmp_path, table, options, message) -> None:
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table(table), path)
    with pytest.raises(PaliglassError, match=message):
        list(entries([str(path)], **options))


def test_what_is_not_there_or_not_whole_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.tar").write_bytes(b"no tar" * 500)
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    for name, message in {
        "nowhere": "no such file or folder",
        "empty": "holds no pictures; --recursive looks into folders of folders",
        "bad.tar": "is no whole tar",
        "bad.parquet": "is no whole Parquet file",
    }.items():
        with pytest.raises(PaliglassError, match=message):
            list(entries([str(tmp_path / name)]))
    with pytest.raises(PaliglassError, match="cannot be opened"):
        list(entries(["nonsense://bucket/x.png"]))


def test_what_cannot_be_opened_names_the_picture(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"0.png": b"no picture"})
    write_tar(tmp_path / "b.tar", {"0.tga": b"no mark tells what it is"})
    pq.write_table(pa.table({"image": [None, png(0)]}), tmp_path / "a.parquet")
    for source, message in {
        tar: r"^{}#0\.png: is not a picture",
        tmp_path / "b.tar": r"^{}#0\.tga: is a \.tga picture, which is not read",
        tmp_path / "a.parquet": r"^{}#0: holds no bytes",
    }.items():
        entry = next(entries([str(source)]))
        with pytest.raises(PictureError, match=message.format(re.escape(str(source)))):
            open_entry(entry)
    with pytest.raises(PictureError, match="no such file"):
        open_entry(Entry(0, "x", "x", str(tmp_path / "gone.png")))
    with pytest.raises(PictureError, match="cannot be opened"):
        open_entry(Entry(0, "x", "x", "nonsense://bucket/x.png"))
