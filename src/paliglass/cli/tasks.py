"""caption, ask, read, detect, segment, generate: a task over pictures."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paliglass.cli.app import command
from paliglass.cli.messages import harmless, note, tell_unknown
from paliglass.cli.options import (
    FindOptions,
    Language,
    OutputOptions,
    Pictures,
    PicturesAndText,
    RunOptions,
    usage,
)
from paliglass.cli.pictures import open_picture, tell_first_frames
from paliglass.cli.preview import choose_protocol
from paliglass.cli.results import STDIN
from paliglass.cli.runner import Job, Remarks, load_model, run_job
from paliglass.parallel.processes import num_processes
from paliglass.tasks.prompts import (
    READ,
    CaptionStyle,
    answer_prompt,
    caption_prompt,
    detect_prompt,
    segment_prompt,
    split_labels,
    without_placeholders,
)
from paliglass.tasks.results import Answer

if TYPE_CHECKING:
    from paliglass.generation import FinishReason
    from paliglass.tasks.confidence import CalibratedTask

__all__ = ["ask", "caption", "detect", "generate", "read", "segment"]

# Of which task a command's scores are; `generate` could be any.
CALIBRATED: dict[str, CalibratedTask] = {"caption": "caption", "ask": "answer", "read": "ocr"}


@command
def caption(
    pictures: Pictures,
    *,
    lang: Language = "en",
    style: Annotated[
        CaptionStyle,
        typer.Option(help="cap is short, caption a sentence, describe more than that."),
    ] = "caption",
    run: RunOptions,
    output: OutputOptions,
) -> None:
    """Say in a sentence what each picture shows."""
    with usage():
        prompt = caption_prompt(lang, style)
    _answer("caption", pictures, prompt, run, output)


@command
def ask(
    pictures: PicturesAndText,
    *,
    question: Annotated[
        str | None, typer.Option("--question", help="The question, if not the last argument.")
    ] = None,
    choice: Annotated[
        list[str] | None,
        typer.Option("--choice", "-c", help="One of the answers to choose from."),
    ] = None,
    lang: Language = "en",
    run: RunOptions,
    output: OutputOptions,
) -> None:
    """Answer a question: paliglass ask PICTURE "what is on the left?".

    With --choice yes --choice no, the answer is one of these. With --together, the question is
    about all pictures at once: paliglass ask --together A.png B.png "what differs?".
    """
    pictures, question = _split(pictures, question, "a question", "--question")
    if not without_placeholders(question).strip():
        raise typer.BadParameter("the question is empty")
    with usage():
        prompt = answer_prompt(question, lang)
    if choice is not None and not all(some.strip() for some in choice):
        raise typer.BadParameter("a --choice is empty")
    if not choice:
        return _answer("ask", pictures, prompt, run, output)
    job = Job("ask", prompt, lambda m: m.ask_task(question, lang, choice), {"choices": choice})
    run_job(job, pictures, run, output)


@command
def read(pictures: Pictures, *, run: RunOptions, output: OutputOptions) -> None:
    """Read the text in each picture, line by line."""
    _answer("read", pictures, READ, run, output)


@command
def detect(
    pictures: PicturesAndText, *, find: FindOptions, run: RunOptions, output: OutputOptions
) -> None:
    """Find things and their boxes: paliglass detect PICTURE "dog ; apple".

    Boxes are x0, y0, x1, y1 in pixels from the upper left corner. With --out, each picture is
    saved with its boxes drawn.
    """
    _find("detect", detect_prompt, pictures, find, run, output)


@command
def segment(
    pictures: PicturesAndText,
    *,
    mask_codec: Annotated[
        Path | None,
        typer.Option(help="What turns codes into masks, if the model has none: vae-oid.npz."),
    ] = None,
    find: FindOptions,
    run: RunOptions,
    output: OutputOptions,
) -> None:
    """Find things pixel by pixel: paliglass segment PICTURE "dog ; apple".

    With --out, each picture is saved with its masks drawn, and each mask as a PNG; --json has them
    in COCO's run lengths.
    """
    _find("segment", segment_prompt, pictures, find, run, output, mask_codec)


@command
def generate(
    pictures: PicturesAndText,
    *,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="The prompt, if not the last argument.")
    ] = None,
    run: RunOptions,
    output: OutputOptions,
) -> None:
    """Give the raw answer to any prompt: paliglass generate PICTURE "caption en"."""
    pictures, prompt = _split(pictures, prompt, "a prompt", "--prompt")
    _answer("generate", pictures, without_placeholders(prompt), run, output)


def _split(arguments: list[str], text: str | None, what: str, option: str) -> tuple[list[str], str]:
    """(pictures, text): the text is the last argument, unless its option gave it."""
    if text is not None:
        return arguments, text
    *pictures, text = arguments
    is_picture = text == STDIN or os.path.exists(text)
    if not pictures or is_picture:
        raise typer.BadParameter(
            f"{what} is missing: put it after the pictures in quotes, or use {option}"
            + (f" ({text} names pictures)" if is_picture else "")
        )
    return pictures, text


def _answer(
    name: str, arguments: list[str], prompt: str, run: RunOptions, output: OutputOptions
) -> None:
    """A task that is answered in words; at a terminal, a single picture's come one by one."""
    is_file = len(arguments) == 1 and (arguments[0] == STDIN or os.path.isfile(arguments[0]))
    plain = output.printed == "text" and output.out is None
    job = Job(name, prompt, lambda m: m.text_task(prompt, CALIBRATED.get(name)), {})
    if plain and is_file and sys.stdout.isatty() and num_processes() == 1:
        _stream(job, arguments[0], run)
    else:
        run_job(job, arguments, run, output)


def _stream(job: Job, picture: str, run: RunOptions) -> None:
    image = open_picture(picture)
    tell_first_frames([picture] if image.info else [])
    pieces = load_model(run).generate(image, job.prompt, stream=True, **run.options())
    answer: list[str] = []
    reason: FinishReason = "stop"

    def told() -> Iterator[str]:
        nonlocal reason
        reason = yield from pieces

    for piece in told():
        answer.append(piece)
        print(harmless(piece), end="", flush=True)
    print()
    remarks = Remarks(job, run.max_new_tokens)
    remarks.add(picture, Answer("".join(answer), 1, reason))
    remarks.tell()


def _find(
    name: str,
    to_prompt: Callable[[list[str]], str],
    pictures: list[str],
    find: FindOptions,
    run: RunOptions,
    output: OutputOptions,
    mask_codec: Path | None = None,
) -> None:
    """detect and segment: labels, then boxes or masks."""
    labels = find.label
    if labels is None:
        pictures, text = _split(pictures, None, "what to find", "--label")
        labels = [text]
    with usage():
        labels = split_labels(labels, name)
        if find.preview:
            choose_protocol(os.environ)
    for label in labels:
        if "," in label:
            parts = " ; ".join(part.strip() for part in label.split(",") if part.strip())
            note(f'"{label}" is one label; several are written "{parts}"')
    if find.preview and output.printed != "text":
        raise typer.BadParameter("--preview is for people; leave out --json or --format")
    settings = {"labels": labels, "min_score": find.min_score, "free": find.free}
    if mask_codec is not None:
        settings["mask_codec"] = str(mask_codec)
    if run.adapter is None:
        tell_unknown(labels, run.model)
    job = Job(
        name,
        to_prompt(labels),
        lambda m: getattr(m, f"{name}_task")(labels, find.free, find.min_score),
        settings,
        tuple(labels),
        find.preview,
        mask_codec,
        find.min_score,
    )
    run_job(job, pictures, run, output)
