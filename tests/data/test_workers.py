"""Errors of the processes that prepare batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.data.files import paint
from tests.tiny import tiny_processor, tiny_tokenizer

from paliglass.contrastive.pairs import PictureFiles
from paliglass.contrastive.pairs import batches as pair_batches
from paliglass.contrastive.processing import ContrastiveProcessor
from paliglass.data.example import Example
from paliglass.data.rows import batches
from paliglass.errors import PaliglassError, PictureError


def rows(files: list[Path], suffix: str, workers: int) -> Iterator[Any]:
    examples = [Example((file,), "ocr", suffix, "data.jsonl, line 1") for file in files]
    return batches(examples, tiny_processor(), iter([[0]]), workers)


def pairs(files: list[Path], suffix: str, workers: int) -> Iterator[Any]:
    source = PictureFiles([(file, suffix) for file in files], 56)
    return pair_batches(
        source, ContrastiveProcessor(tiny_tokenizer(), 16, 12), 2, 0, 0, 1, workers=workers
    )


@pytest.mark.parametrize("make", [rows, pairs])
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("content", [None, b"", b"no picture"], ids=["gone", "empty", "text"])
def test_that_no_picture_can_be_read_is_one_line(
    tmp_path: Path, make: Any, workers: int, content: bytes | None
) -> None:
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file in files if content is not None else ():
        file.write_bytes(content or b"")
    with pytest.raises(PictureError, match=r"^not one of the 2 pictures can be read: ") as error:
        list(make(files, "a", workers))
    assert str(error.value).count(": ") <= 3  # no traceback of a worker
    assert "\n" not in error.value.args[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_text_that_cannot_be_encoded_is_one_line(tmp_path: Path, workers: int) -> None:
    with pytest.raises(PaliglassError, match=r"^'.*' is not text that can be written as UTF-8$"):
        list(rows([paint(tmp_path / "a.png")], "half \ud800", workers))
