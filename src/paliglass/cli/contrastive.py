"""embed, classify, similarity: what a dual encoder is good for; `search` is beside it."""

from __future__ import annotations

import json as json_text
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paliglass.cli.app import command, fail
from paliglass.cli.messages import cell, complain, counted, note, tell_unknown, waiting
from paliglass.cli.options import (
    BatchSizeOption,
    DeviceOption,
    DtypeOption,
    JsonLines,
    Overwrite,
    RecursiveOption,
    refuse_existing_file,
)
from paliglass.cli.pictures import open_picture, picture_names, tell_first_frames
from paliglass.cli.results import STDIN
from paliglass.cli.screen import Screen
from paliglass.cli.tables import print_table
from paliglass.errors import PictureError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from paliglass.contrastive.index import Index
    from paliglass.contrastive.modeling_contrastive import ContrastiveModel
    from paliglass.contrastive.processing import ContrastiveProcessor

__all__ = ["Dual", "DualOptions", "Encoder", "EncoderOptions", "classify", "embed", "similarity"]

MODEL_HELP = "mini-dual, a folder, or a SigLIP checkpoint's hub id."

Pictures = Annotated[
    list[str],
    typer.Argument(
        metavar="PICTURE",
        show_default=False,
        help="Files, folders, or quoted patterns like 'photos/*.jpg'.",
    ),
]
Texts = Annotated[
    list[str] | None, typer.Option("--text", "-t", help="A text.", show_default=False)
]


@dataclass(frozen=True)
class EncoderOptions:
    """Which encoder, and where it runs."""

    panel = "Model"

    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", metavar="NAME", envvar="PALIGLASS_DUAL_MODEL", help=MODEL_HELP
        ),
    ] = "mini-dual"
    device: DeviceOption = "auto"
    dtype: DtypeOption = "auto"


@dataclass(frozen=True)
class DualOptions(EncoderOptions):
    """Which dual encoder, and how it is run."""

    panel = "Model"

    batch_size: BatchSizeOption = 32


class Encoder:
    """What commands with an encoder have in common: they count what could not be read."""

    what = "pictures"

    def __init__(self) -> None:
        self.total = 0
        self.failures = 0
        self.empty = 0
        self.first_frames: list[str] = []  # files of whose frames only the first was looked at

    def named(self, text: str) -> str:
        """A file's name, or an error that begins with one, as the user would name it."""
        return text

    def files(self, arguments: list[str], recursive: bool, pdfs: bool = False) -> list[str]:
        """The files that arguments stand for; an empty folder is named on stderr."""
        names, complaints = picture_names(arguments, recursive, pdfs)
        for complaint in complaints:
            complain(complaint)
        self.empty += len(complaints)
        self.total = len(names)
        return names

    def open(self, name: str) -> Image.Image:
        """A picture. Raises PictureError."""
        from paliglass.pictures import IS_FIRST_OF_SEVERAL

        image = open_picture(name)
        if image.info.get(IS_FIRST_OF_SEVERAL):
            self.first_frames.append(name)
        return image

    def finish(self) -> None:
        """Ends with exit code 1 where a picture could not be read or a folder is empty."""
        tell_first_frames(sorted(map(self.named, self.first_frames)))
        if self.failures:
            fail(f"{self.failures} of {self.total} {self.what} could not be read")
        if self.empty:
            raise typer.Exit(1)


class Dual(Encoder):
    """A loaded dual encoder."""

    def __init__(self, options: EncoderOptions, batch_size: int = 32) -> None:
        from paliglass.checkpoints.hub import locate

        super().__init__()
        # Before torch is imported, which takes seconds.
        folder = locate(options.model, kind="dual encoder")
        self.batch_size = batch_size
        self.model: ContrastiveModel
        self.processor: ContrastiveProcessor
        with waiting(f"loading {options.model}"):
            from paliglass.contrastive.folders import load_contrastive
            from paliglass.contrastive.index import fingerprint

            self.model, self.processor = load_contrastive(folder, options.device, options.dtype)
            self.fingerprint = fingerprint(folder)

    def index(self, names: list[str], known: Index | None = None) -> Index:
        """The pictures' index; those that are broken are named on stderr and left out."""
        from paliglass.contrastive.index import build, embed_pictures

        def embed(images: list[Image.Image]) -> Tensor:
            return embed_pictures(self.model, self.processor, images)

        with Screen(len(names)) as screen:

            def failed(error: PictureError) -> None:
                self.failures += 1
                screen.complain(self.named(str(error)))
                screen.advance()

            return build(
                self.fingerprint,
                names,
                embed,
                known,
                batch_size=self.batch_size,
                load=self.open,
                failed=failed,
                done=screen.advance,
            )


@command
def embed(
    pictures: Pictures,
    *,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", dir_okay=False, metavar="FILE", help="The .safetensors file to write."
        ),
    ],
    overwrite: Overwrite = False,
    text: Texts = None,
    recursive: RecursiveOption = False,
    dual: DualOptions,
) -> None:
    """Write pictures (and texts) as vectors of one space, where what belongs together is near.

    The file has `images` (N × D) and `texts` (M × D), of unit length, and in its metadata whose
    they are.
    """
    if out.suffix not in ("", ".safetensors"):
        raise typer.BadParameter(f"--out {out}: embed writes .safetensors files, not {out.suffix}")
    _refuse_stdin(pictures)
    refuse_existing_file(out, overwrite)
    encoder = Dual(dual, dual.batch_size)
    from paliglass.contrastive.index import embed_words

    names = encoder.files(pictures, recursive)
    index = encoder.index(names)
    if not index.names:  # a file that is there stays as it is
        encoder.finish()
        return
    if text:
        index.words = list(text)
        index.texts = embed_words(encoder.model, encoder.processor, index.words)
    index.save(out)
    texts = f" and {counted(len(index.words), 'text')}" if text else ""
    width = encoder.model.config.projection_dim
    print(f"{out}: {counted(len(index.names), 'picture')}{texts}, {width} numbers each")
    encoder.finish()


def _refuse_stdin(pictures: list[str]) -> None:
    if STDIN in pictures:
        raise typer.BadParameter("- : these pictures have names; give a file for standard input")


@command
def classify(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="PICTURE|LABELS",
            show_default=False,
            help="Files, folders, quoted patterns, or - for standard input. The last one is the "
            "labels with ; between them, unless --label gives them.",
        ),
    ],
    *,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", "-l", help="What it may be.", show_default=False),
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            help='What stands around a label, as "a picture of a {}".',
            show_default=False,
        ),
    ] = None,
    recursive: RecursiveOption = False,
    json: JsonLines = False,
    dual: DualOptions,
) -> None:
    """Say which label fits, of any: paliglass classify PICTURE "dog ; cat".

    A model trained with CLIP's loss shares 1 out among the labels; one trained with SigLIP's gives
    each label its own probability.
    """
    pictures = arguments
    if label is None:
        *pictures, last = arguments
        label = [last]
    labels = list(
        dict.fromkeys(part.strip() for some in label for part in some.split(";") if part.strip())
    )
    if not pictures or not labels:
        raise typer.BadParameter('give pictures, then the labels: classify PICTURE "dog ; cat"')
    tell_unknown(labels, dual.model)
    encoder = Dual(dual, dual.batch_size)
    from paliglass.contrastive.zero_shot import TEMPLATES
    from paliglass.contrastive.zero_shot import classify as probabilities

    names = encoder.files(pictures, recursive)
    with Screen(len(names)) as screen:
        for name in names:
            try:
                image = encoder.open(name)
            except PictureError as error:
                encoder.failures += 1
                screen.complain(str(error))
                screen.advance()
                continue
            found = probabilities(
                encoder.model, encoder.processor, [image], labels, template or TEMPLATES
            )[0]
            if json:
                record = {"file": name, "labels": {k: round(v, 6) for k, v in found.items()}}
                screen.answer(json_text.dumps(record, ensure_ascii=False))
            else:
                answer = ", ".join(f"{cell(label)} {value:.3f}" for label, value in found.items())
                screen.answer(answer if len(names) == 1 else f"{cell(name)}\t{answer}")
            screen.advance()
    encoder.finish()


@command
def similarity(
    pictures: Pictures,
    *,
    text: Texts = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", dir_okay=False, help="A PNG to draw it to.")
    ] = None,
    overwrite: Overwrite = False,
    recursive: RecursiveOption = False,
    json: JsonLines = False,
    dual: DualOptions,
) -> None:
    """Compare every picture with every text: the matrix that contrastive training looks at.

    The numbers are cosines.
    """
    if not text:
        raise typer.BadParameter("give the texts: --text, once for each")
    _refuse_stdin(pictures)
    refuse_existing_file(out, overwrite)
    encoder = Dual(dual, dual.batch_size)
    from paliglass.contrastive.index import embed_words

    names = encoder.files(pictures, recursive)
    index = encoder.index(names)
    if index.names:
        cosines = (index.images @ embed_words(encoder.model, encoder.processor, text).T).tolist()
        if out is not None:
            from paliglass.contrastive.drawing import similarity_picture
            from paliglass.files import replacing

            out.parent.mkdir(parents=True, exist_ok=True)
            with replacing(out) as unfinished:
                similarity_picture(index.names, text, cosines).save(unfinished, format="PNG")
            note(f"drawn: {out}")
        if json:
            for name, row in zip(index.names, cosines, strict=True):
                values = dict(zip(text, (round(value, 4) for value in row), strict=True))
                print(json_text.dumps({"file": name, "texts": values}, ensure_ascii=False))
        else:
            rows = [
                [name, *(f"{value:.3f}" for value in row)]
                for name, row in zip(index.names, cosines, strict=True)
            ]
            print_table(["", *text], rows)
    encoder.finish()
