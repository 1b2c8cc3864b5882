"""search: pictures that a dual encoder finds, pages that ColPali does; one command for both."""

from __future__ import annotations

import json as json_text
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from paliglass.cli.app import command
from paliglass.cli.contrastive import Dual, Encoder, EncoderOptions
from paliglass.cli.messages import cell, complain, note, waiting
from paliglass.cli.options import JsonLines, Overwrite, Quantize, RecursiveOption
from paliglass.cli.pictures import picture_names
from paliglass.cli.screen import Screen
from paliglass.errors import PaliglassError, PictureError

if TYPE_CHECKING:
    from torch import Tensor

    from paliglass.contrastive.index import Index
    from paliglass.retrieval.index import Page, PageIndex

__all__ = ["ColPali", "DualSearch", "Hit", "SearchOptions", "search"]

INDEX = ".paliglass"
COLPALI = "vidore/colpali-v1.3-hf"


@dataclass(frozen=True)
class SearchOptions(EncoderOptions):
    """Which dual encoder or ColPali, and how it is run."""

    panel = "Model"

    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            envvar="PALIGLASS_DUAL_MODEL",
            help=f"mini-dual, or a folder or hub id of a SigLIP or a ColPali, as {COLPALI}.",
        ),
    ] = "mini-dual"
    quantize: Annotated[
        Quantize | None, typer.Option(help="Make ColPali's weights smaller, on most CPUs faster.")
    ] = None
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Pictures that run together.", show_default="32; of ColPali's pages 4"
        ),
    ] = None


class Hit(NamedTuple):
    """file: absolute. page: of a PDF or a TIFF, from 1. drawing: its file, if asked for."""

    file: str
    page: int | None
    score: float
    drawing: str | None = None


@command
def search(
    documents: Annotated[
        Path,
        typer.Argument(help="Folder of pictures; for ColPali also of PDFs, or a single document."),
    ],
    text: Annotated[str, typer.Argument(help="What to look for.")],
    *,
    top: Annotated[int, typer.Option("--top", "-n", min=1, help="How many to show.")] = 10,
    index: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Where the index is kept: a file, ColPali's a folder.",
            show_default="DOCUMENTS/.paliglass",
        ),
    ] = None,
    recursive: RecursiveOption = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            file_okay=False,
            help="Folder for drawings of ColPali's pages: where on them the words are.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    json: JsonLines = False,
    options: SearchOptions,
) -> None:
    """Find the pictures or pages that a text asks for: paliglass search DOCUMENTS "a red apple".

    A dual encoder finds pictures by what they show. ColPali finds pages of PDFs, scans and pictures
    by what is written and drawn on them, and --out shows where.

    The index is kept; only what is new or has changed is encoded again.
    """
    from paliglass.pictures import find_file

    if not text.strip():
        raise typer.BadParameter("the query is empty; say what to look for")
    found: list[Hit]
    encoder: Searching
    documents = find_file(documents)
    if not documents.exists():
        raise PictureError(f"{documents}: is no folder and no file")
    if _is_paligemma(options.model):
        if out is not None:
            _refuse_out(out, documents, recursive, overwrite)
        encoder = ColPali(options)
        found = encoder.search(documents, text, top, index, recursive, out)
    else:
        for flag, value in (("--out", out), ("--quantize", options.quantize)):
            if value is not None:
                raise typer.BadParameter(
                    f"{flag} is for ColPali ({COLPALI}); {options.model} is a dual encoder"
                )
        if not documents.is_dir():
            raise PictureError(
                f"{documents}: is no folder; ColPali searches single documents too: "
                f"--model {COLPALI}"
            )
        if index is not None and index.is_dir():
            raise PaliglassError(f"{index}: is a folder; a dual encoder's index is a file")
        encoder = DualSearch(options, options.batch_size or 32)
        found = encoder.search(documents, text, top, index, recursive)
    for some in found:
        file = encoder.named(some.file)
        if json:
            data = {"file": file, "page": some.page, "score": round(some.score, 4)}
            data["drawing"] = some.drawing
            record = {key: value for key, value in data.items() if value is not None}
            print(json_text.dumps(record, ensure_ascii=False))
        else:
            name = file if some.page is None else f"{file}#{some.page}"
            print(f"{some.score:.3f}\t{cell(name)}")
    encoder.finish()


def _refuse_out(out: Path, documents: Path, recursive: bool, overwrite: bool) -> None:
    """Raises PaliglassError where drawings would be taken for documents, or lie among others."""
    place, searched = out.resolve(), documents.resolve()
    if place == searched or (recursive and place.is_relative_to(searched)):
        raise PaliglassError(
            f"{out}: is searched itself, and drawings would be taken for documents; choose another "
            "folder for --out"
        )
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise PaliglassError(
            f"{out}: holds files already; --overwrite draws beside them, --out names another"
        )


def _is_paligemma(model: str) -> bool:
    """Whether a model is to be loaded as ColPali; an adapter is, too."""
    from paliglass.checkpoints.hub import locate
    from paliglass.files import read_json

    folder = locate(model, kind="dual encoder")
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").exists():
        return True
    return read_json(folder / "config.json").get("model_type") in ("colpali", "paligemma")


class Searching(Encoder):
    """What is searched is known by its absolute name, and told as the user named it."""

    documents: Path

    def named(self, text: str) -> str:
        whole = os.path.abspath(self.documents)
        return f"{self.documents}{text[len(whole) :]}" if text.startswith(whole) else text


class DualSearch(Searching, Dual):
    """Pictures of a folder, by a dual encoder."""

    def search(
        self, folder: Path, text: str, most: int, place: Path | None, recursive: bool
    ) -> list[Hit]:
        """The best, best first. place: of the index, a file."""
        from paliglass.contrastive.index import Index, embed_words

        self.documents = folder
        with_pdfs, _ = picture_names([str(folder)], recursive, pdfs=True)
        names = [os.path.abspath(name) for name in self.files([str(folder)], recursive)]
        if pdfs := len(with_pdfs) - len(names):
            those = "1 PDF is" if pdfs == 1 else f"{pdfs} PDFs are"
            note(f"{folder}: {those} left out: only ColPali finds pages: --model {COLPALI}")
        if not names:  # that has been told, and there is nothing to keep
            return []
        path = folder / INDEX / "index.safetensors" if place is None else place
        width = self.model.config.projection_dim
        known = Index.load(path, self.fingerprint, width) if path.exists() else None
        now = self.index(names, known)
        if known is None or (known.model, known.names, known.stamps) != (
            now.model,
            now.names,
            now.stamps,
        ):
            _keep(now, path)
        query = embed_words(self.model, self.processor, [text])[0]
        return [Hit(name, None, score) for name, score in now.search(query, most)]


def _keep(index: Index, path: Path) -> None:
    """Saves an index where that can be done; what was found is worth showing all the same."""
    is_new = not path.exists()
    try:
        index.save(path)
    except OSError as error:
        note(
            f"{path}: the index cannot be kept ({error.strerror}) and will be made anew; "
            "--index FILE keeps it elsewhere"
        )
    else:
        if is_new:
            note(f"the index is kept in {path}; --index FILE keeps it elsewhere")


class ColPali(Searching):
    """Pages of documents, by ColPali."""

    what = "pages"

    def __init__(self, options: SearchOptions) -> None:
        super().__init__()
        self.batch_size = options.batch_size or 4
        with waiting(f"loading {options.model}"):
            from paliglass.contrastive.index import fingerprint
            from paliglass.retrieval.folders import load_colpali, parts

            self.model, self.processor = load_colpali(
                options.model,
                device=options.device,
                dtype=options.dtype,
                quantize=options.quantize,
            )
            self.fingerprint = fingerprint(*parts(options.model))

    def search(
        self,
        documents: Path,
        text: str,
        most: int,
        place: Path | None,
        recursive: bool,
        out: Path | None,
    ) -> list[Hit]:
        """The best, best first. place: of the index, a folder. out: where they are drawn to."""
        from paliglass.retrieval.index import PageIndex, embed_query

        self.documents = documents
        query = embed_query(self.model, self.processor, text)  # an empty one is refused at once
        pages = self._pages(self.files([str(documents)], recursive, pdfs=True))
        if place is None:
            folder = documents if documents.is_dir() else documents.parent
            place = folder / INDEX / f"pages-{self.fingerprint[:12]}"
        index = PageIndex(place, self.fingerprint, self.model.embedding_dim)
        self._add(pages, index)
        found = index.search(query, pages, most)
        if out is None:
            return [Hit(page.file, page.number, score) for page, score in found]
        return [
            Hit(page.file, page.number, score, self._draw(page, index, query, text, rank, out))
            for rank, (page, score) in enumerate(found, 1)
        ]

    def _pages(self, files: list[str]) -> list[Page]:
        """All pages of all files; those that cannot be opened are named on stderr and left out."""
        from paliglass.retrieval.index import pages_of

        pages: list[Page] = []
        for file in files:
            try:
                pages += pages_of(os.path.abspath(file))
            except PictureError as error:
                self.failures += 1
                complain(self.named(str(error)))
        self.total = self.failures + len(pages)
        return pages

    def _add(self, pages: list[Page], index: PageIndex) -> None:
        """Embeds the pages that are not in the index yet."""
        from paliglass.retrieval.index import embed_pages

        missing = [page for page in pages if page not in index]
        is_new = not index.folder.exists()
        with Screen(len(missing)) as screen:

            def failed(error: PictureError) -> None:
                self.failures += 1
                screen.complain(self.named(str(error)))
                screen.advance()

            index.add(
                missing,
                lambda images: embed_pages(self.model, self.processor, images),
                batch_size=self.batch_size,
                failed=failed,
                done=screen.advance,
            )
        if is_new and missing:
            note(f"the index is kept in {index.folder}; --index FOLDER keeps it elsewhere")

    def _draw(
        self, page: Page, index: PageIndex, query: Tensor, text: str, rank: int, out: Path
    ) -> str:
        """Saves a page with the patches tinted that the words are near to: the file's name."""
        from paliglass.files import replacing
        from paliglass.retrieval.drawing import highlight, patch_heat

        words = query[self.processor.words(text)]
        side = self.model.vlm.config.vision_config.patches_per_side
        heat = patch_heat(words, index.vectors(page), side)
        number = "" if page.number is None else f".{page.number}"
        path = out / f"{rank:02}.{Path(page.file).stem[:100]}{number}.png"
        out.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished:
            highlight(page.open(), heat).save(unfinished, format="PNG")
        return str(path)
