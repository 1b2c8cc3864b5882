"""Pairs come from files as the user meant them, in an order that the step alone settles."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tiny import tiny_tokenizer

from paliglass.contrastive.pairs import PictureFiles, SavedPairs, batches, open_pairs, save_pairs
from paliglass.contrastive.processing import ContrastiveProcessor
from paliglass.errors import PaliglassError, PictureError

COLOURS = ("red", "lime", "blue", "yellow", "black", "white", "cyan")


def paint(path: Path, colour: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 30), colour).save(path)
    return path


@pytest.fixture
def source(tmp_path: Path) -> PictureFiles:
    return PictureFiles([(paint(tmp_path / f"{c}.png", c), f"a {c} one") for c in COLOURS], 16)


def test_lines_of_json_name_pictures_beside_the_file(tmp_path: Path) -> None:
    for name in ("a.png", "folder/b.png", "c.png"):
        paint(tmp_path / name, "red")
    lines = [
        {"image": "a.png", "text": "one", "caption": "not this"},
        {"image": "folder/b.png", "caption": "two"},
        {"image": str(tmp_path / "c.png"), "suffix": "three"},
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n\n".join(map(json.dumps, lines)))
    pairs = open_pairs(file, 16)
    assert pairs.count == 3
    assert [pairs[i].text for i in range(3)] == list(pairs.texts()) == ["one", "two", "three"]
    assert pairs[1].pixels.shape == (16, 16, 3)
    assert (pairs[1].pixels == (255, 0, 0)).all()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "is not JSON"),
        ("[1]", "is no JSON object"),
        ('{"image": "a.png"}', 'lacks "text"'),
        ('{"image": 3, "text": "a"}', "image is 3; it must be text"),
        ('{"image": "a.png", "text": " "}', 'lacks "text"'),
    ],
)
def test_a_wrong_line_is_named_by_file_and_number(tmp_path: Path, line: str, problem: str) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"image": "a.png", "text": "a"}\n' + line)
    with pytest.raises(PaliglassError, match=f"pairs.jsonl, line 2: {problem}"):
        open_pairs(file, 16)


def test_files_without_pairs_are_errors(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "bare").mkdir()
    for name, problem in (
        ("empty.jsonl", "holds no pairs"),
        ("binary.jsonl", "no text in UTF-8"),
        ("bare", "holds no pictures"),
    ):
        with pytest.raises(PaliglassError, match=problem):
            open_pairs(tmp_path / name, 16)


def test_texts_lie_beside_pictures(tmp_path: Path) -> None:
    for name, text in (("b/1", " two\nwords "), ("a", "one")):
        paint(tmp_path / f"{name}.png", "red").with_suffix(".txt").write_text(text)
    assert list(open_pairs(tmp_path, 16).texts()) == ["one", "two words"]
    paint(tmp_path / "c.png", "red")
    with pytest.raises(PaliglassError, match=r"c.txt: no such file"):
        open_pairs(tmp_path, 16)


def test_a_class_folder_s_name_is_the_text(tmp_path: Path) -> None:
    for name in ("red_dog/1.png", "red_dog/2.png", "cat/1.png", ".hidden/3.png"):
        paint(tmp_path / name, "red")
    assert list(open_pairs(tmp_path, 16).texts()) == ["cat", "red dog", "red dog"]
    paint(tmp_path / "loose.png", "red")
    with pytest.raises(PaliglassError, match="its pictures have no texts"):
        open_pairs(tmp_path, 16)


def test_a_broken_picture_is_named_and_the_next_one_stands_in(source: PictureFiles) -> None:
    source.pairs[1][0].write_bytes(b"")
    pair = source[1]
    assert pair.text == "a blue one"
    assert (pair.pixels == (0, 0, 255)).all()
    assert len(pair.skipped) == 1
    assert "lime.png: is empty" in pair.skipped[0]
    assert source[0].skipped == ()


def test_nothing_but_broken_pictures_is_an_error(source: PictureFiles) -> None:
    for path, _ in source.pairs:
        path.unlink()
    with pytest.raises(PictureError, match="not one of the 7 pictures"):
        source[3]


@pytest.mark.parametrize("workers", [0, 1])
def test_processes_share_the_batch_of_one(source: PictureFiles, workers: int) -> None:
    processor = ContrastiveProcessor(tiny_tokenizer(), 16, 12)
    (whole,) = batches(source, processor, 6, 0, 1, 2, workers=workers)
    shares = [
        next(batches(source, processor, 6, 0, 1, 2, rank=rank, processes=2)) for rank in range(2)
    ]
    assert whole.texts == shares[0].texts + shares[1].texts
    assert torch.equal(whole.pixels, torch.cat([share.pixels for share in shares]))
    assert whole.pixels.dtype == torch.uint8
    assert whole.input_ids.shape == whole.attention_mask.shape
    assert len(whole.input_ids) == 6


def test_saved_pairs_are_the_pairs(source: PictureFiles, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    save_pairs(source, 5, folder)
    saved = open_pairs(folder, 16)
    assert isinstance(saved, SavedPairs)
    assert saved.count == 5
    for i in range(5):
        assert saved[i].text == source[i].text
        assert np.array_equal(saved[i].pixels, source[i].pixels)
    (folder / "texts.json").write_text('["a"]')
    with pytest.raises(PaliglassError, match="5 pictures with 1 texts"):
        open_pairs(folder, 16)


def test_a_save_that_fails_leaves_nothing(source: PictureFiles, tmp_path: Path) -> None:
    for path, _ in source.pairs:
        path.unlink()
    with pytest.raises(PictureError):
        save_pairs(source, 5, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []
