"""Options that commands share; see `app.command` for how a class becomes options."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

MODEL_HELP = "mini, a folder, a hub id like google/paligemma2-3b-mix-224, or a big_vision .npz."


class Dtype(StrEnum):
    """Dtypes of weights; auto is the checkpoint's own."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


Pictures = Annotated[
    list[str],
    typer.Argument(
        metavar="PICTURE",
        show_default=False,
        help="Files, folders, quoted patterns like 'photos/*.jpg', or - for standard input.",
    ),
]
PicturesAndText = Annotated[
    list[str],
    typer.Argument(
        metavar="PICTURE|TEXT",
        show_default=False,
        help="Files, folders, quoted patterns like 'photos/*.jpg', or - for standard input. The "
        "last one is the text, unless an option gives that.",
    ),
]
Language = Annotated[str, typer.Option("--lang", help="ISO code of the answer's language.")]


@dataclass(frozen=True)
class RunOptions:
    """How the model is run."""

    model: Annotated[
        str, typer.Option("--model", "-m", envvar="PALIGLASS_MODEL", help=MODEL_HELP)
    ] = "mini"
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto"
    dtype: Annotated[Dtype, typer.Option(help="What to convert the weights to.")] = Dtype.AUTO
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures that run together.")] = 8
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The answer's limit.")] = 256
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
            "--allow-special-tokens", help="Let <loc0001> and the like in a prompt be tokens."
        ),
    ] = False

    def __post_init__(self) -> None:
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise typer.BadParameter(f"--top-p is {self.top_p}; it must lie in (0, 1]")
        if self.temperature == 0 and (self.top_p is not None or self.top_k is not None):
            raise typer.BadParameter("--top-p and --top-k need a --temperature above 0")

    def generation(self) -> dict[str, Any]:
        """The options of `PaliGemma.generate`, without its batch size."""
        return {
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "seed": self.seed,
            "allow_special_tokens": self.allow_special_tokens,
        }


@dataclass(frozen=True)
class OutputOptions:
    """Which pictures are meant and where the answers go."""

    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False
    out: Annotated[
        Path | None,
        typer.Option(
            file_okay=False, help="Folder for results.jsonl and the drawn pictures of detect."
        ),
    ] = None
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with --out: skip the pictures it has.")
    ] = False
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Look for pictures in folders of folders.")
    ] = False

    def __post_init__(self) -> None:
        if self.resume and self.out is None:
            raise typer.BadParameter("--resume needs --out, the folder to go on with")
