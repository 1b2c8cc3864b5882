"""compare-server: how far another server's answers are from this package's."""

from __future__ import annotations

import dataclasses
import json as json_text
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paliglass.cli.app import command
from paliglass.cli.messages import level, waiting
from paliglass.cli.options import JsonObject, LoadOptions, MaxNewTokensOption
from paliglass.cli.pictures import picture_names
from paliglass.errors import PaliglassError, printable
from paliglass.tasks.prompts import (
    READ,
    answer_prompt,
    caption_prompt,
    detect_prompt,
    segment_prompt,
    split_labels,
)

if TYPE_CHECKING:
    from paliglass.evaluation.servers import Agreement, Asked, Compared, Server

__all__ = ["compare_server"]

SHOWN = 5  # differences that are shown whole


@command
def compare_server(
    url: Annotated[
        str, typer.Argument(help="The server's address, like http://127.0.0.1:8000/v1.")
    ],
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="[SOURCE]",
            show_default=False,
            help="A folder of pictures, or data with prompts as `paliglass eval` takes it; "
            "without it, drawings that are made on the spot.",
        ),
    ] = None,
    *,
    name: Annotated[
        str | None, typer.Option(help="The model's name there; by default the first it lists.")
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="A file with the key to send."),
    ] = None,
    question: Annotated[
        str, typer.Option(help="What is asked about each picture of a folder.")
    ] = "what is in the picture?",
    detect: Annotated[
        list[str] | None,
        typer.Option(help="What to find in a folder's pictures, and to segment of it the first."),
    ] = None,
    max_new_tokens: MaxNewTokensOption = 64,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that an answer may take.")] = 120,
    json: JsonObject = False,
    run: LoadOptions,
) -> None:
    """Compare an OpenAI-compatible server with this package: the same prompts, the same pictures.

    Each task's greedy answers beside those of --model, which should be the checkpoint that is
    served there: how many are the same, where they first differ, how far boxes overlap, and, where
    the server tells them, how far log-probabilities are apart.
    """
    from paliglass.evaluation.servers import Server, compare, drawings

    key = None
    if api_key_file is not None:
        key = next(iter(api_key_file.read_text("utf-8").split()), None)
        if key is None:
            raise PaliglassError(f"{api_key_file}: holds no key")
    server = Server(url, name, key, timeout)
    prompts = drawings() if source is None else list(_prompts(source, question, detect or []))
    if not prompts:
        raise PaliglassError(f"{source}: holds no prompt about a single picture")
    with waiting(f"loading {run.model}"):
        model = run.load()
    cases: list[Compared] = []
    try:
        for case in compare(model, server, prompts, max_new_tokens):
            cases.append(case)
            _tell(len(cases), len(prompts))
    finally:  # a server that ends early leaves what was compared before
        if not all(case.refused for case in cases):
            _report(cases, server, run.model, json)
    if all(case.refused for case in cases):
        raise PaliglassError(str(cases[0].refused))


def _report(cases: list[Compared], server: Server, model: str, json: bool) -> None:
    if not json:
        return _print(cases, server.url, model)
    found = {
        "server": server.url,
        "name": server.name,
        "model": model,
        "fields": server.fields[0],
        "tasks": {task: dataclasses.asdict(some) for task, some in _by_task(cases).items()},
        "cases": [case.to_dict() for case in cases],
    }
    print(json_text.dumps(found, ensure_ascii=False))


def _prompts(source: Path, question: str, labels: list[str]) -> Iterator[Asked]:
    """A folder's pictures with a prompt of each task, or a file's own prompts."""
    from paliglass.evaluation.servers import Asked

    if not source.is_dir():
        if not source.exists():
            raise PaliglassError(f"{source}: no such file or folder")
        from paliglass.data.reading import open_examples

        for example in open_examples(source, split="held out"):
            if len(example.images) == 1:
                yield Asked(example.images[0].name, example.images[0], example.prefix)
        return
    prompts = [caption_prompt(), answer_prompt(question), READ]
    if labels:
        prompts += [detect_prompt(labels), segment_prompt(split_labels(labels)[0])]
    names, complaints = picture_names([str(source)])
    if not names:
        raise PaliglassError(complaints[0])
    for file in names:
        yield from (Asked(Path(file).name, file, prompt) for prompt in prompts)


def _by_task(cases: list[Compared]) -> dict[str, Agreement]:
    from paliglass.evaluation.servers import agreement

    tasks = dict.fromkeys(case.asked.task for case in cases)
    return {task: agreement([c for c in cases if c.asked.task == task]) for task in tasks}


def _tell(done: int, count: int) -> None:
    if sys.stderr.isatty() and level() != "quiet":
        end = "\n" if done == count else ""
        print(f"\r{done} of {count} prompts compared", end=end, file=sys.stderr, flush=True)


def _print(cases: list[Compared], url: str, model: str) -> None:
    """A table of at most 80 columns, and the first answers that differ."""
    print(f"{'task':10}{'prompts':>8}{'refused':>9}{'same':>7}", end="")
    print(f"{'differs at token':>18}{'box IoU':>9}{'log-prob gap':>14}")
    for task, found in _by_task(cases).items():
        token = "-" if found.token is None else str(found.token + 1)
        iou = "-" if found.iou is None else f"{found.iou:.3f}"
        gap = "-" if found.log_prob_gap is None else f"{found.log_prob_gap:.2g}"
        print(
            f"{printable(task)[:10]:10}{found.prompts:8}{found.refused:9}{found.same:7.0%}", end=""
        )
        print(f"{token:>18}{iou:>9}{gap:>14}")
    same = sum(case.is_same for case in cases)
    print(f"{same} of {len(cases)} answers of {printable(url)} are those of {printable(model)}.")
    # At a terminal a line stays one; a program gets all of it.
    width = min(shutil.get_terminal_size().columns, 80) if sys.stdout.isatty() else sys.maxsize
    others = [case for case in cases if not case.is_same]
    for case in others[:SHOWN]:
        where = case.refused or f"differs at character {(case.character or 0) + 1}"
        for line in (
            f"{case.asked.name}, {case.asked.prompt!r}: {where}",
            *(() if case.refused else (f"  here   {case.here!r}", f"  there  {case.there!r}")),
        ):
            text = printable(line)
            print(text if len(text) <= width else f"{text[: width - 1]}…")
    if len(others) > SHOWN:
        print(f"and {len(others) - SHOWN} more; --json has all")
