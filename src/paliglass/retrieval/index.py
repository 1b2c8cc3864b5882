"""Pages embedded once and kept on the disk; a search reads them shard by shard.

A folder of safetensors files, each with some 32 pages: `pages`, N × T × D float16 of length 1, and
in its metadata whose they are. A shard is written as soon as its pages are embedded, so that a run
that is stopped goes on where it was. A page whose file has changed since (its time or size differs)
is embedded again.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from paliglass.contrastive.index import Stamp, stamp
from paliglass.errors import CheckpointError, PaliglassError, PictureError
from paliglass.pictures import Picture, load_picture, page_numbers
from paliglass.retrieval.modeling_colpali import ColPaliForRetrieval, late_interaction
from paliglass.retrieval.processing import ColPaliProcessor
from paliglass.tensors import open_tensors, read_tensor, save_file

__all__ = ["Page", "PageIndex", "embed_pages", "embed_query", "pages_of"]

SHARD = 32  # pages: some 8 MB of ColPali's


@dataclass(frozen=True)
class Page:
    """What is found. number: of a PDF's or a TIFF's page, from 1; None for a picture."""

    file: str
    number: int | None = None

    def __str__(self) -> str:
        """A name by which `load_picture` and the command line know it: `report.pdf#3`."""
        return self.file if self.number is None else f"{self.file}#{self.number}"

    def open(self) -> Image.Image:
        """The page as an upright RGB image. Raises PictureError."""
        return load_picture(str(self))


def pages_of(file: str) -> list[Page]:
    """A PDF's pages, a TIFF's, or the one that a picture is. Raises PictureError."""
    return [Page(file, number) for number in page_numbers(file)] or [Page(file)]


@torch.inference_mode()
def embed_pages(
    model: ColPaliForRetrieval, processor: ColPaliProcessor, pictures: Sequence[Picture]
) -> Tensor:
    """N pictures → N × T × D, of length 1, on the CPU. The first P of T are the patches'."""
    batch = processor.images(pictures)
    return model(**{key: value.to(model.device) for key, value in batch.items()}).cpu()


@torch.inference_mode()
def embed_query(model: ColPaliForRetrieval, processor: ColPaliProcessor, text: str) -> Tensor:
    """A text → Q × D, of length 1, on the CPU. Raises PromptError for an empty one."""
    batch = processor.queries([text])
    return model(**{key: value.to(model.device) for key, value in batch.items()})[0].cpu()


class PageIndex:
    """The pages of one model that a folder holds.

    Args:
        folder: made when the first pages are added.
        model: fingerprint of the ColPali.
        width: D.

    Raises PaliglassError where the folder holds another model's pages, or something else.
    """

    def __init__(self, folder: Path, model: str, width: int) -> None:
        if folder.exists() and not folder.is_dir():
            raise PaliglassError(f"{folder}: is a file; ColPali's index is a folder")
        self.folder, self.model, self.width = folder, model, width
        self._places: dict[Page, tuple[Path, int]] = {}  # shard and row
        stamps: dict[str, Stamp | None] = {}
        for path in sorted(folder.glob("*.safetensors")):
            is_live = False
            for row, (page, known) in enumerate(self._read(path)):
                if page.file not in stamps:
                    stamps[page.file] = _stamp_of(page.file)
                now = stamps[page.file]
                if now == known:
                    self._places[page] = path, row
                is_live |= now in (None, known)  # a file that is away may come back
            if not is_live:
                with contextlib.suppress(OSError):  # no right to: it does no harm
                    path.unlink()

    def __contains__(self, page: Page) -> bool:
        return page in self._places

    def _read(self, path: Path) -> list[tuple[Page, Stamp]]:
        """Whose the rows of a shard are."""
        try:
            with open_tensors(path) as file:
                data = json.loads(file.metadata()["pages"])
                shape = file.get_slice("pages").get_shape()
            rows = [
                (Page(str(name), number and int(number)), (int(time), int(size)))
                for name, number, (time, size) in data["pages"]
            ]
            model = data["model"]
        except (CheckpointError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise PaliglassError(f"{path}: is no index of ColPali's; delete it") from error
        if model != self.model:
            raise PaliglassError(
                f"{path}: is the index of another model; delete it, or keep this model's elsewhere "
                "with --index FOLDER"
            )
        if len(shape) != 3 or shape[0] != len(rows) or shape[2] != self.width:
            raise PaliglassError(f"{path}: is an index of another shape; delete it")
        return rows

    def add(
        self,
        pages: Iterable[Page],
        embed: Callable[[list[Image.Image]], Tensor],
        *,
        batch_size: int = 4,
        failed: Callable[[PictureError], None] | None = None,
        done: Callable[[int], None] | None = None,
    ) -> None:
        """Embeds and keeps the pages that are not there yet; what is done is kept at any end.

        Args:
            pages: in any order.
            embed: pictures → N × T × D.
            batch_size: pages that are embedded together.
            failed: told of each page that is no whole picture, and then left out; else that is
                raised.
            done: told how many more pages there are.

        Raises PaliglassError where nothing can be written to the folder.
        """
        missing = [page for page in pages if page not in self]
        if missing:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=self.folder).close()
            except OSError as error:
                raise PaliglassError(
                    f"{self.folder}: the index cannot be kept there ({error.strerror}); --index "
                    "FOLDER keeps it elsewhere"
                ) from None
        batch: list[tuple[Page, Stamp, Image.Image]] = []
        rows: list[tuple[Page, Stamp, Tensor]] = []

        def run() -> None:
            vectors = embed([image for _, _, image in batch]).half()
            rows.extend(
                (page, time, row) for (page, time, _), row in zip(batch, vectors, strict=True)
            )
            if done is not None:
                done(len(batch))
            batch.clear()

        try:
            for entry in _opened(missing, failed):
                batch.append(entry)
                if len(batch) == batch_size:
                    run()
                if len(rows) >= SHARD:
                    self._save(rows)
            if batch:
                run()
        finally:
            if rows:
                self._save(rows)

    def _save(self, rows: list[tuple[Page, Stamp, Tensor]]) -> None:
        """Puts a shard in place in one step, and empties `rows`."""
        whose = [(page.file, page.number, time) for page, time, _ in rows]
        metadata = {"pages": json.dumps({"model": self.model, "pages": whose})}
        path = self.folder / f"{secrets.token_hex(8)}.safetensors"
        save_file({"pages": torch.stack([row for _, _, row in rows])}, path, metadata)
        self._places |= {page: (path, i) for i, (page, _, _) in enumerate(rows)}
        rows.clear()

    def search(self, query: Tensor, pages: Iterable[Page], most: int) -> list[tuple[Page, float]]:
        """The pages that answer a query best, best first, with their scores.

        One shard at a time is in memory, however many there are.

        Args:
            query: Q × D.
            pages: among which; those that are not in the index are passed over.
            most: how many.
        """
        shards: dict[Path, list[tuple[int, Page]]] = {}
        for page in pages:
            if page in self:
                path, row = self._places[page]
                shards.setdefault(path, []).append((row, page))
        best: list[tuple[Page, float]] = []
        for path, entries in shards.items():
            with open_tensors(path) as file:
                vectors = read_tensor(file, "pages", path)[[row for row, _ in entries]]
            scores = late_interaction(query, vectors.float()).tolist()
            found = zip((page for _, page in entries), scores, strict=True)
            best = heapq.nlargest(most, [*best, *found], key=lambda pair: pair[1])
        return best

    def vectors(self, page: Page) -> Tensor:
        """A page's vectors, T × D float32. Raises KeyError where it is not in the index."""
        path, row = self._places[page]
        with open_tensors(path) as file:
            return read_tensor(file, "pages", path)[row].float()


def _stamp_of(file: str) -> Stamp | None:
    try:
        return stamp(file)
    except OSError:
        return None


def _opened(
    pages: Iterable[Page], failed: Callable[[PictureError], None] | None
) -> Iterator[tuple[Page, Stamp, Image.Image]]:
    for page in pages:
        try:
            time = stamp(page.file)  # before it is read: who changes it then is noticed next time
            image = page.open()
        except PictureError as error:
            problem = error
        except OSError as error:
            problem = PictureError(f"{page}: {error.strerror}")
        else:
            yield page, time, image
            continue
        if failed is None:
            raise problem
        failed(problem)
