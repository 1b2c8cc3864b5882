"""Options that commands share; see `app.command` for how a class becomes options."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from paliglass.errors import PaliglassError

if TYPE_CHECKING:
    from paliglass.model import PaliGemma
    from paliglass.tasks.answering import GenerationOptions, Options

__all__ = [
    "MIN_SCORE",
    "MODEL_HELP",
    "AdapterOption",
    "BatchSizeOption",
    "CocoTask",
    "DeviceOption",
    "Dtype",
    "DtypeOption",
    "FindOptions",
    "Format",
    "JsonLines",
    "JsonObject",
    "Language",
    "LoadOptions",
    "MaxNewTokensOption",
    "ModelOptions",
    "OutputOptions",
    "Overwrite",
    "Pictures",
    "PicturesAndText",
    "Quantize",
    "RecursiveOption",
    "RunOptions",
    "locate_model",
    "refuse_existing_file",
    "usage",
]

MODEL_HELP = "mini, a folder, a hub id like google/paligemma2-3b-mix-224, or a big_vision .npz."
DEVICE_HELP = "auto, cpu, cuda, cuda:1 or mps."
MIN_SCORE = 0.05
"""What is found is left out below this: calibrated, it is right one time in twenty at most."""

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
"""Dtypes of weights; auto is the checkpoint's own."""

Quantize = Literal["int8", "int4"]
"""Ways of making weights smaller."""

CocoTask = Literal["detect", "segment"]
"""What COCO's boxes and masks are made into."""

Format = Literal["text", "json", "jsonl", "csv", "coco", "yolo"]
"""How results are written; text is for people, and in columns for programs."""


def _known_device(name: str) -> str:
    """As `parse_device`, which needs torch; whether the machine has it is told there."""
    if not re.fullmatch(r"auto|(cpu|cuda|mps)(:\d+)?", name):
        raise typer.BadParameter(f"{name!r} is unknown: choose auto, cpu, cuda, mps")
    return name


PICTURES_HELP = (
    "Files, folders, quoted patterns like 'photos/*.jpg', a frame or page like 'film.gif#3', or - "
    "for standard input."
)
Pictures = Annotated[
    list[str], typer.Argument(metavar="PICTURE", show_default=False, help=PICTURES_HELP)
]
PicturesAndText = Annotated[
    list[str],
    typer.Argument(
        metavar="PICTURE|TEXT",
        show_default=False,
        help=f"{PICTURES_HELP} The last one is the text, unless an option gives that.",
    ),
]
Language = Annotated[
    str, typer.Option("--lang", metavar="CODE", help="ISO 639 code of the answer's language.")
]
DtypeOption = Annotated[Dtype, typer.Option(help="What to convert the weights to.")]
AdapterOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="A LoRA adapter of the model: a folder or a hub id."),
]
DeviceOption = Annotated[
    str, typer.Option(metavar="NAME", help=DEVICE_HELP, callback=_known_device)
]
BatchSizeOption = Annotated[int, typer.Option(min=1, help="Pictures that run together.")]
MaxNewTokensOption = Annotated[int, typer.Option(min=1, help="The answer's limit.")]
RecursiveOption = Annotated[
    bool, typer.Option("--recursive", "-r", help="Look for pictures in folders of folders.")
]
JsonLines = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]
JsonObject = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the file to write where there is one.")
]


@contextmanager
def usage() -> Iterator[None]:
    """Makes what the block complains of bad usage: it is about a value given, not about a file."""
    try:
        yield
    except PaliglassError as error:
        raise typer.BadParameter(str(error)) from None


def refuse_existing_file(path: Path | None, overwrite: bool) -> None:
    """Raises PaliglassError where a file would be replaced that nobody said to replace.

    To be called before any work is done, by every command that writes a file.
    """
    if path is not None and path.exists() and not overwrite:
        raise PaliglassError(f"{path}: exists already; --overwrite replaces it, or name another")


def locate_model(model: str, adapter: str | None = None) -> None:
    """Raises CheckpointError where one is not there: before torch is imported, which takes long."""
    from paliglass.checkpoints.hub import locate

    locate(model)
    if adapter is not None:
        locate(adapter, kind="adapter")


@dataclass(frozen=True)
class LoadOptions:
    """Which model."""

    panel = "Model"

    model: Annotated[
        str,
        typer.Option("--model", "-m", metavar="NAME", envvar="PALIGLASS_MODEL", help=MODEL_HELP),
    ] = "mini"
    adapter: AdapterOption = None
    device: DeviceOption = "auto"
    dtype: DtypeOption = "auto"

    def load(self, **more: Any) -> PaliGemma:
        """Loads it; what is not there is said before torch is imported, which takes seconds."""
        locate_model(self.model, self.adapter)
        from paliglass.model import load

        return load(self.model, device=self.device, dtype=self.dtype, adapter=self.adapter, **more)


@dataclass(frozen=True)
class ModelOptions(LoadOptions):
    """Which model, and how it is run."""

    panel = "Model"

    quantize: Annotated[
        Quantize | None, typer.Option(help="Make the weights smaller, and on most CPUs faster.")
    ] = None
    batch_size: BatchSizeOption = 8

    def load(self, **more: Any) -> PaliGemma:
        quantize = {} if self.quantize is None else {"quantize": self.quantize}
        return super().load(**quantize, **more)


@dataclass(frozen=True)
class RunOptions(ModelOptions):
    """Which model, and how it answers."""

    panel = "Answer"

    max_new_tokens: MaxNewTokensOption = 256
    temperature: Annotated[
        float, typer.Option(min=0, help="0 takes the likeliest token, 1 samples as trained.")
    ] = 0.0
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Sample among the k likeliest tokens.")
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option(help="Sample among the likeliest tokens that reach this probability."),
    ] = None
    seed: Annotated[int | None, typer.Option(min=0, help="Makes sampling repeatable.")] = None
    allow_special_tokens: Annotated[
        bool,
        typer.Option(
            "--allow-special-tokens",
            help="Let <loc0001> and the like in a prompt be tokens, as they are in training data.",
        ),
    ] = False

    def __post_init__(self) -> None:
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise typer.BadParameter(f"--top-p is {self.top_p}; it must lie in (0, 1]")
        if self.temperature == 0 and (self.top_p is not None or self.top_k is not None):
            raise typer.BadParameter("--top-p and --top-k need a --temperature above 0")

    def options(self) -> Options:
        """The options of the Python interface."""
        return {
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "allow_special_tokens": self.allow_special_tokens,
        }

    def generation(self) -> GenerationOptions:
        """How answers are generated."""
        from paliglass.tasks.answering import GenerationOptions

        return GenerationOptions.of(self.options())

    def settings(self) -> dict[str, Any]:
        """What decides about the answers, for a resumed run to agree with."""
        given = {"adapter": self.adapter, "quantize": self.quantize}
        options: dict[str, Any] = {**self.options()}
        del options["batch_size"]
        return {
            "dtype": self.dtype,
            **{name: value for name, value in given.items() if value is not None},
            **options,
        }


@dataclass(frozen=True)
class OutputOptions:
    """Which pictures are meant and where the answers go."""

    panel = "Pictures and results"

    together: Annotated[
        bool, typer.Option("--together", help="Ask once about all pictures, not about each.")
    ] = False
    recursive: RecursiveOption = False
    json: JsonLines = False
    format: Annotated[
        Format,
        typer.Option(
            "--format",
            "-f",
            help="Of what is printed; with --out, of files written there beside results.jsonl.",
        ),
    ] = "text"
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            file_okay=False,
            help="Folder for results.jsonl, drawn pictures and masks; one with results is refused.",
        ),
    ] = None
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with --out: skip the pictures it has.")
    ] = False

    def __post_init__(self) -> None:
        if self.resume and self.out is None:
            raise typer.BadParameter("--resume needs --out, the folder to go on with")
        if self.json and self.format not in ("text", "jsonl") and self.out is None:
            raise typer.BadParameter(f"--json and --format {self.format}: choose one")
        if self.format == "yolo" and self.out is None:
            raise typer.BadParameter("--format yolo needs --out, a folder for its files")

    @property
    def printed(self) -> Format:
        """The format of standard output."""
        if self.json:
            return "jsonl"
        return self.format if self.out is None else "text"

    @property
    def written(self) -> Format:
        """The format of --out beside results.jsonl; "text" is none."""
        return "text" if self.out is None or self.format == "jsonl" else self.format


@dataclass(frozen=True)
class FindOptions:
    """What detect and segment have in common."""

    panel = "What to find"

    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label",
            "-l",
            help="What to find, if not the last argument. A comma is part of a label; ; parts two.",
        ),
    ] = None
    min_score: Annotated[
        float, typer.Option(min=0, max=1, help="Leave out what is less sure than this.")
    ] = MIN_SCORE
    free: Annotated[
        bool, typer.Option("--free", help="Let the model write what it likes, and parse that.")
    ] = False
    preview: Annotated[
        bool,
        typer.Option(
            "--preview",
            help="Show the drawn picture in the terminal (PALIGLASS_PREVIEW=kitty, iterm2 or "
            "blocks tells how, and shows it in a pipe too).",
        ),
    ] = False
