"""Pages on the disk: embedded once, found again, whatever stops a run in between."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.TiffImagePlugin import AppendingTiffWriter
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from paliglass.errors import PaliglassError, PictureError
from paliglass.pictures import page_numbers
from paliglass.retrieval.index import SHARD, Page, PageIndex, pages_of
from paliglass.retrieval.modeling_colpali import late_interaction

T, D = 5, 8
QUERY = F.normalize(torch.randn(3, D, generator=torch.Generator().manual_seed(9)), dim=-1)


def embed(images: Sequence[Image.Image]) -> Tensor:
    """Vectors that only the picture's first pixel decides about."""
    rows = []
    for image in images:
        seed = int.from_bytes(np.asarray(image)[0, 0].tobytes(), "big")
        generator = torch.Generator().manual_seed(seed)
        rows.append(F.normalize(torch.randn(T, D, generator=generator), dim=-1))
    return torch.stack(rows)


class Counted:
    """`embed`, and what it was asked for."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        self.batches.append(len(images))
        return embed(images)


def pictures(folder: Path, count: int) -> list[Page]:
    folder.mkdir(exist_ok=True)
    pages = []
    for number in range(count):
        path = folder / f"{number:03}.png"
        Image.new("RGB", (3, 3), (number % 256, number // 256, 7)).save(path)
        pages.append(Page(str(path)))
    return pages


def index(folder: Path, model: str = "m", width: int = D) -> PageIndex:
    return PageIndex(folder, model, width)


def test_search_is_a_search_in_all_vectors_at_once(tmp_path: Path) -> None:
    pages = pictures(tmp_path / "docs", 2 * SHARD + 3)
    kept, counted = index(tmp_path / "index"), Counted()
    kept.add(pages, counted, batch_size=5)
    assert sum(counted.batches) == len(pages)
    assert max(counted.batches) == 5
    assert len(list((tmp_path / "index").iterdir())) == 2
    vectors = embed([page.open() for page in pages]).half().float()
    scores = late_interaction(QUERY, vectors)
    best = scores.topk(7)
    for again in (kept, index(tmp_path / "index")):
        found = again.search(QUERY, pages, 7)
        assert [page for page, _ in found] == [pages[i] for i in best.indices]
        assert [score for _, score in found] == pytest.approx(best.values.tolist(), abs=1e-6)
        assert torch.equal(again.vectors(pages[40]), vectors[40])


def test_float16_costs_little(tmp_path: Path) -> None:
    pages = pictures(tmp_path / "docs", 9)
    kept = index(tmp_path / "index")
    kept.add(pages, embed)
    exact = late_interaction(QUERY, embed([page.open() for page in pages]))
    found = dict(kept.search(QUERY, pages, 9))
    assert [found[page] for page in pages] == pytest.approx(exact.tolist(), abs=2e-3)


def test_only_what_is_new_or_has_changed_is_embedded(tmp_path: Path) -> None:
    pages = pictures(tmp_path / "docs", 4)
    index(tmp_path / "index").add(pages[:3], embed)
    Image.new("RGB", (3, 3), "white").save(pages[1].file)
    os.utime(pages[1].file, ns=(1, 1))
    counted, kept = Counted(), index(tmp_path / "index")
    assert [page in kept for page in pages] == [True, False, True, False]
    kept.add(pages, counted)
    assert counted.batches == [2]
    assert torch.equal(kept.vectors(pages[1]), embed([pages[1].open()])[0].half().float())
    again = Counted()
    index(tmp_path / "index").add(pages, again)
    assert again.batches == []


def test_a_shard_of_which_nothing_is_left_is_removed(tmp_path: Path) -> None:
    pages = pictures(tmp_path / "docs", 2)
    index(tmp_path / "index").add(pages, embed)
    os.rename(pages[0].file, tmp_path / "away")
    os.utime(pages[1].file, ns=(1, 1))
    assert pages[0] not in index(tmp_path / "index")
    os.rename(tmp_path / "away", pages[0].file)  # it may come back
    assert pages[0] in index(tmp_path / "index")
    os.utime(pages[0].file, ns=(1, 1))
    index(tmp_path / "index")
    assert list((tmp_path / "index").iterdir()) == []


def test_search_keeps_to_the_pages_asked_for(tmp_path: Path) -> None:
    pages = pictures(tmp_path / "docs", 6)
    kept = index(tmp_path / "index")
    kept.add(pages[:5], embed)
    found = {page for page, _ in kept.search(QUERY, [pages[2], pages[4], pages[5]], 9)}
    assert found == {pages[2], pages[4]}
    assert kept.search(QUERY, [], 3) == []


def test_a_run_that_is_stopped_loses_the_batch_under_way_alone(tmp_path: Path) -> None:
    pages = pictures(tmp_path / "docs", 10)

    def interrupted(images: Sequence[Image.Image]) -> Tensor:
        if images[0].getpixel((0, 0))[0] >= 6:  # type: ignore[index]
            raise KeyboardInterrupt
        return embed(images)

    with pytest.raises(KeyboardInterrupt):
        index(tmp_path / "index").add(pages, interrupted, batch_size=2)
    counted, kept = Counted(), index(tmp_path / "index")
    assert [page in kept for page in pages] == [True] * 6 + [False] * 4
    kept.add(pages, counted, batch_size=2)
    assert counted.batches == [2, 2]


def test_a_broken_page_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    pages = pictures(tmp_path / "docs", 3)
    Path(pages[1].file).write_bytes(b"")
    missing = Page(str(tmp_path / "nothing.png"))
    errors: list[PictureError] = []
    kept = index(tmp_path / "index")
    kept.add([*pages, missing], embed, failed=errors.append)
    assert [page in kept for page in pages] == [True, False, True]
    assert [str(error).partition(": ")[0] for error in errors] == [pages[1].file, missing.file]
    with pytest.raises(PictureError, match="is empty"):
        kept.add(pages, embed)


def test_an_index_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    pages = pictures(tmp_path / "docs", 1)
    folder = tmp_path / "index"
    index(folder).add(pages, embed)
    with pytest.raises(PaliglassError, match="is the index of another model"):
        index(folder, "n")
    with pytest.raises(PaliglassError, match="of another shape"):
        index(folder, width=D + 1)
    with pytest.raises(PaliglassError, match="is a file; ColPali's index is a folder"):
        index(Path(pages[0].file))


@pytest.mark.parametrize("content", [None, {}, {"pages": "["}, {"pages": '{"model": "m"}'}])
def test_something_else_in_the_folder_is_named(
    tmp_path: Path, content: dict[str, str] | None
) -> None:
    path = tmp_path / "x.safetensors"
    if content is None:
        path.write_bytes(b"nothing")
    else:
        save_file({"pages": torch.zeros(0, T, D)}, path, content)
    with pytest.raises(PaliglassError, match=r"x\.safetensors: is no index of ColPali's"):
        index(tmp_path)
    assert path.exists()


def test_a_shard_without_its_vectors_is_named(tmp_path: Path) -> None:
    data = json.dumps({"model": "m", "pages": []})
    save_file({"vectors": torch.zeros(0, T, D)}, tmp_path / "x.safetensors", {"pages": data})
    with pytest.raises(PaliglassError, match="is no index of ColPali's"):
        index(tmp_path)


def test_rows_and_names_of_unlike_number_are_refused(tmp_path: Path) -> None:
    data = json.dumps({"model": "m", "pages": [["a.png", None, [1, 1]]]})
    save_file({"pages": torch.zeros(2, T, D)}, tmp_path / "x.safetensors", {"pages": data})
    with pytest.raises(PaliglassError, match="of another shape"):
        index(tmp_path)


def test_a_folder_that_cannot_be_written_is_known_before_the_work(tmp_path: Path) -> None:
    pages = pictures(tmp_path / "docs", 1)
    counted = Counted()
    with pytest.raises(PaliglassError, match="--index FOLDER keeps it elsewhere"):
        index(Path(pages[0].file) / "below").add(pages, counted)
    assert counted.batches == []


def test_a_tiff_is_its_pages_without_their_small_copies(tmp_path: Path) -> None:
    file = str(tmp_path / "a.tif")
    with AppendingTiffWriter(file, new=True) as writer:
        for colour, kind in (("red", 0), ("red", 1), ("lime", 0), ("blue", 0)):
            page = Image.new("RGB", (40, 30), colour)
            page.save(writer, format="TIFF", tiffinfo={254: kind})
            writer.newFrame()
    pages = pages_of(file)
    assert [str(page) for page in pages] == [f"{file}#{number}" for number in (1, 3, 4)]
    centres = [page.open().getpixel((20, 20)) for page in pages]
    assert [int(np.argmax(pixel)) for pixel in centres] == [0, 1, 2]
    Path(file).write_bytes(Path(file).read_bytes()[:200])
    with pytest.raises(PictureError, match=r"a\.tif: "):
        pages_of(file)[0].open()


def tiff(file: Path, *kinds: int) -> str:
    """Frames of tag 254's kinds, as small as they can be: one black dot, which they share."""
    data = bytearray(struct.pack("<2sHIQ", b"II", 42, 16, 0))
    for i, kind in enumerate(kinds, 1):
        tags = [(254, 4, kind), (256, 3, 1), (257, 3, 1), (258, 3, 8), (259, 3, 1), (262, 3, 1)]
        tags += [(273, 4, 8), (277, 3, 1), (278, 3, 1), (279, 4, 1)]
        following = len(data) + 2 + 12 * len(tags) + 4 if i < len(kinds) else 0
        entries = b"".join(struct.pack("<HHII", tag, form, 1, value) for tag, form, value in tags)
        data += struct.pack("<H", len(tags)) + entries + struct.pack("<I", following)
    file.write_bytes(data)
    return str(file)


@pytest.mark.parametrize(
    ("kinds", "pages"), [([0], []), ([1], []), ([1, 0], [2]), ([0, 1], []), ([4, 0, 0], [2, 3])]
)
def test_a_page_behind_its_small_copy_is_found(
    tmp_path: Path, kinds: list[int], pages: list[int]
) -> None:
    assert page_numbers(tiff(tmp_path / "a.tif", *kinds)) == pages


def test_a_tiff_of_too_many_frames_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paliglass.pictures.MAX_FRAMES", 3)
    assert page_numbers(tiff(tmp_path / "a.tif", 0, 0, 0)) == [1, 2, 3]
    with pytest.raises(PictureError, match=r"a\.tif: has more than 3 frames"):
        page_numbers(tiff(tmp_path / "a.tif", 0, 0, 0, 0))


def test_a_pdf_is_its_pages(tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2")
    colours = ("red", "lime", "blue")
    first, *others = (Image.new("RGB", (40, 30), colour) for colour in colours)
    file = str(tmp_path / "a.pdf")
    first.save(file, save_all=True, append_images=others)
    pages = pages_of(file)
    assert [str(page) for page in pages] == [f"{file}#{number}" for number in (1, 2, 3)]
    centres = [page.open().getpixel((20, 20)) for page in pages]
    assert [int(np.argmax(pixel)) for pixel in centres] == [0, 1, 2]
    png = str(tmp_path / "a.png")
    first.save(png)
    assert pages_of(png) == [Page(png)]
    tiff = str(tmp_path / "a.tiff")
    first.save(tiff)
    assert pages_of(tiff) == [Page(tiff)]
    Path(file).write_bytes(b"%PDF-1.4 and no more")
    with pytest.raises(PictureError, match=r"a\.pdf: cannot be read"):
        pages_of(file)
    with pytest.raises(PictureError, match="no such file"):
        pages_of("nowhere.pdf")
