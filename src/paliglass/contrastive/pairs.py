"""Pictures with their texts, for contrastive training: from files, folders or a cache.

    pairs.jsonl           {"image": "dog.png", "text": "a dog"} a line, paths relative to the file
    folder of pictures    dog.png beside dog.txt; or class folders, whose names are the texts
    folder of `save_pairs`  pairs composed once, as one array on disk that runs share

Every source answers `source[index]` with a `Pair`. Which index comes when follows from the seed and
the step alone (`batch_indices`), so a resumed run, or one of several processes, needs no state.
Pixels stay uint8 until the model gets them: a quarter of the memory to move.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from paliglass.errors import PaliglassError, PictureError, from_workers
from paliglass.formats.records import decode, parse_json, read_lines
from paliglass.pictures import SUFFIXES, load_picture
from paliglass.training.order import batch_indices, share_of

if TYPE_CHECKING:
    from paliglass.contrastive.processing import ContrastiveProcessor

__all__ = [
    "Collate",
    "Pair",
    "PairBatch",
    "PairLine",
    "PairSource",
    "PictureFiles",
    "SavedPairs",
    "batches",
    "open_pairs",
    "pixel_values",
    "save_pairs",
]

PIXELS, TEXTS = "pixels.npy", "texts.json"


class PairLine(msgspec.Struct):
    """A line of pairs.jsonl; the first of the three that is not empty is the text."""

    image: str = ""
    text: str | None = None
    caption: str | None = None
    suffix: str | None = None


class Pair(NamedTuple):
    """A picture (uint8 S × S × 3), what it shows, and what had to be skipped to get it."""

    pixels: NDArray[np.uint8]
    text: str
    skipped: tuple[str, ...] = ()


@dataclass
class PairBatch:
    """B pairs: pixels uint8 B × S × S × 3; ids and mask B × T; messages about broken pictures."""

    pixels: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    texts: list[str]
    skipped: tuple[str, ...] = ()


class PairSource(Protocol):
    """Where pairs come from. `count` is None where there is no end of them."""

    count: int | None

    def __getitem__(self, index: int) -> Pair: ...

    def texts(self) -> Iterator[str]:
        """The texts that a tokenizer is to know: all of them, or a sample of an endless source."""
        ...


class PictureFiles:
    """Picture files with their texts.

    A broken picture gives way to the next whole one of the list, so a batch is always full; the
    pair says in `skipped` what was wrong.

    Args:
        pairs: path and text of each.
        size: side of the square that pictures are squeezed into, as PaliGemma does.
    """

    def __init__(self, pairs: Sequence[tuple[Path, str]], size: int) -> None:
        self.pairs, self.size = list(pairs), size
        self.count: int | None = len(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        """The pair. Raises PictureError where not one picture of the list is whole."""
        skipped: list[str] = []
        for offset in range(len(self.pairs)):
            path, text = self.pairs[(index + offset) % len(self.pairs)]
            try:
                picture = load_picture(path)
            except PictureError as error:
                skipped.append(str(error))
                continue
            picture = picture.resize((self.size, self.size), Image.Resampling.BICUBIC)
            return Pair(np.asarray(picture), text, tuple(skipped))
        raise PictureError(f"not one of the {len(self.pairs)} pictures can be read: {skipped[0]}")

    def texts(self) -> Iterator[str]:
        return (text for _, text in self.pairs)


class SavedPairs:
    """What `save_pairs` wrote; the pixels stay on disk and are mapped into memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self._texts: list[str] = json.loads((folder / TEXTS).read_text(encoding="utf-8"))
            self.pixels = np.load(folder / PIXELS, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise PaliglassError(f"{folder}: the saved pairs are broken: make them anew") from error
        if len(self._texts) != len(self.pixels):
            raise PaliglassError(
                f"{folder}: {len(self.pixels)} pictures with {len(self._texts)} texts: make them "
                "anew"
            )
        self.count: int | None = len(self._texts)

    def __getitem__(self, index: int) -> Pair:
        return Pair(np.asarray(self.pixels[index]), self._texts[index])

    def texts(self) -> Iterator[str]:
        return iter(self._texts)


def save_pairs(source: PairSource, count: int, folder: Path, workers: int = 0) -> None:
    """Writes pairs 0 … `count` − 1 for `SavedPairs`, whole or not at all."""
    new = folder.with_name(f".{folder.name}.{os.getpid()}")
    new.mkdir(parents=True)
    try:
        loader: DataLoader[Pair] = DataLoader(
            _Pairs(source),
            batch_size=64,
            sampler=range(count),
            collate_fn=_as_is,
            num_workers=workers,
            worker_init_fn=_quiet_worker,
        )
        texts: list[str] = []
        pixels: NDArray[np.uint8] | None = None
        for pairs in loader:
            if pixels is None:
                shape = (count, *pairs[0].pixels.shape)
                pixels = np.lib.format.open_memmap(new / PIXELS, "w+", np.uint8, shape)
            pixels[len(texts) : len(texts) + len(pairs)] = [pair.pixels for pair in pairs]
            texts += [pair.text for pair in pairs]
        del pixels
        (new / TEXTS).write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")
        os.replace(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def open_pairs(path: Path, size: int) -> PairSource:
    """The source that a file or folder of the kinds listed above holds, pictures of `size` pixels.

    Raises PaliglassError, naming file and line, where it is none or a line is wrong. Pictures are
    opened only when their turn comes.
    """
    if path.is_dir():
        if (path / PIXELS).exists():
            return SavedPairs(path)
        return PictureFiles(_folder_pairs(path), size)
    return PictureFiles(_file_pairs(path), size)


def _file_pairs(path: Path) -> list[tuple[Path, str]]:
    pairs = [_line_pair(line, where, path.parent) for where, line in read_lines(path)]
    if not pairs:
        raise PaliglassError(f"{path}: holds no pairs")
    return pairs


def _line_pair(text: str, where: str, folder: Path) -> tuple[Path, str]:
    example = '{"image": "dog.png", "text": "a dog"}'
    line = decode(parse_json(text, where, example), PairLine, where, example)
    words = next((given for given in (line.text, line.caption, line.suffix) if given), "")
    for name, value in (("image", line.image), ("text", words)):
        if not value.strip():
            raise PaliglassError(f'{where}: lacks "{name}"; write {example}')
    return folder / line.image, words


def _folder_pairs(folder: Path) -> list[tuple[Path, str]]:
    pictures = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not pictures:
        raise PaliglassError(f"{folder}: holds no pictures ({', '.join(sorted(SUFFIXES))})")
    beside = [path.with_suffix(".txt") for path in pictures]
    if not any(path.exists() for path in beside):
        if any(path.parent == folder for path in pictures):
            raise PaliglassError(
                f"{folder}: its pictures have no texts; put NAME.txt beside each NAME.png, or sort "
                "the pictures into folders named after what they show"
            )
        return [(path, path.parent.name.replace("_", " ")) for path in pictures]
    pairs = []
    for picture, text in zip(pictures, beside, strict=True):
        if not text.exists():
            raise PaliglassError(f"{text}: no such file; {picture.name} has no text")
        try:
            words = " ".join(text.read_text(encoding="utf-8").split())
        except UnicodeDecodeError:
            raise PaliglassError(f"{text}: is no text in UTF-8") from None
        if not words:
            raise PaliglassError(f"{text}: is empty")
        pairs.append((picture, words))
    return pairs


def pixel_values(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 S × H × W × 3 → S × 3 × H × W in [−1, 1], as the processor scales them."""
    return (pixels.permute(0, 3, 1, 2).float() / 127.5 - 1).to(dtype)


class Collate:
    """Pairs → `PairBatch`; runs in the worker processes."""

    def __init__(self, processor: ContrastiveProcessor) -> None:
        self.processor = processor

    def __call__(self, pairs: list[Pair]) -> PairBatch:
        texts = [pair.text for pair in pairs]
        words = self.processor.words(texts)
        return PairBatch(
            torch.from_numpy(np.stack([pair.pixels for pair in pairs])),
            words["input_ids"],
            words["attention_mask"],
            texts,
            tuple(message for pair in pairs for message in pair.skipped),
        )


def batches(
    source: PairSource,
    processor: ContrastiveProcessor,
    batch_size: int,
    seed: int,
    first: int,
    last: int | None,
    *,
    rank: int = 0,
    processes: int = 1,
    workers: int = 0,
) -> Iterator[PairBatch]:
    """Batches `first` … `last` − 1 (None: no end), or of each the share of process `rank`.

    batch_size: pairs of all processes together, which must be a multiple of their number.
    """
    order = batch_indices(source.count, batch_size, seed, first, last)
    loader = DataLoader(
        _Pairs(source),
        batch_sampler=share_of(order, rank, processes),
        collate_fn=Collate(processor),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_quiet_worker,
    )
    with from_workers():
        yield from loader


class _Pairs(Dataset[Pair]):
    """torch's DataLoader asks for a Dataset."""

    def __init__(self, source: PairSource) -> None:
        self.source = source

    def __getitem__(self, index: int) -> Pair:
        return self.source[index]


def _as_is(pairs: list[Pair]) -> list[Pair]:
    return pairs


def _quiet_worker(_: int) -> None:
    # Ctrl-C reaches every process of a terminal; the main one decides when the work ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
