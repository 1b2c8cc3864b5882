"""learn: the lessons in the terminal, their code run on the spot; exercises tried."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paliglass.cli.app import command, fail
from paliglass.cli.options import usage
from paliglass.cli.tables import print_table

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from paliglass.inspect.exercises import Exercise
    from paliglass.inspect.lessons import Lesson

__all__ = ["learn"]


@command
def learn(
    topic: Annotated[
        str | None, typer.Argument(help="A lesson: its number or a word, as rope.")
    ] = None,
    run: Annotated[
        bool, typer.Option("--run/--no-run", help="Run the lesson's code, or only show it.")
    ] = True,
    answers: Annotated[
        bool, typer.Option("--answers", help="Show the answers to the exercises, too.")
    ] = False,
    exercise: Annotated[
        bool,
        typer.Option(
            "--exercise",
            help="Write exercise_TOPIC.py here, functions for you to write; with --answers, print "
            "them.",
        ),
    ] = False,
    check: Annotated[
        Path | None,
        typer.Option(
            "--check",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Run FILE and try its functions, against the real code where there is some and "
            "else against our answers.",
        ),
    ] = None,
) -> None:
    """List the lessons, or read one with its code running: paliglass learn rope.

    With --exercise a lesson's exercises that are code are written into a file; --check tries what
    you made of them, and says what is wrong.
    """
    from rich.console import Console

    from paliglass.inspect.lessons import find, lessons

    console = Console(width=None if sys.stdout.isatty() else 100)
    with usage():
        lesson = None if topic is None else find(topic)
    if check is not None:
        _check(console, check, None if lesson is None else lesson.topic)
    elif exercise:
        if lesson is None:
            raise typer.BadParameter("--exercise is of a lesson: paliglass learn rope --exercise")
        _exercise(console, lesson, answers)
    elif lesson is None:
        _list(console, lessons())
    else:
        _show(console, lesson, run, answers)


def _list(console: Console, lessons: list[Lesson]) -> None:
    rows = [(f"{one.number:02}", one.topic, one.title) for one in lessons]
    print_table([], rows, figures=False, framed=False)
    console.print("\npaliglass learn TOPIC shows one and runs its code.", highlight=False)


def _exercises(topic: str | None) -> list[Exercise]:
    """Those of a lesson, or all. Exits where it has none."""
    from paliglass.inspect.exercises import EXERCISES

    found = [one for one in EXERCISES if topic in (None, one.topic)]
    return found or fail(f"lesson {topic} has no exercise that is code")


def _exercise(console: Console, lesson: Lesson, answers: bool) -> None:
    from paliglass.files import write_whole
    from paliglass.inspect.exercises import HEADER

    own = _exercises(lesson.topic)
    if answers:
        text = "\n\n".join(one.solution for one in own)
        if sys.stdout.isatty():
            console.print(_code(text))
        else:
            print(text, end="")
        return
    path = Path(f"exercise_{lesson.topic}.py")  # inference.py is a script of the repository
    if path.exists():
        fail(f"{path} is there already, and stays as it is; try it: paliglass learn --check {path}")
    header = HEADER.format(title=f"Lesson {lesson.number:02}, {lesson.title}", file=path)
    write_whole(path, "\n\n".join([header, *(one.stub for one in own)]))
    names = " and ".join(one.name for one in own)
    console.print(
        f"{path}: write {names}; then paliglass learn --check {path}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _check(console: Console, path: Path, topic: str | None) -> None:
    """A line for each function; exits with 1 unless all are right."""
    from paliglass.inspect.exercises import functions_of

    written = functions_of(path)
    tried = [one for one in _exercises(topic) if one.name in written]
    if not tried:
        names = ", ".join(one.name for one in _exercises(topic))
        fail(f"{path}: has none of the exercises' functions: {names}")
    hints = [one.check(written[one.name]) for one in tried]
    for one, hint in zip(tried, hints, strict=True):
        told = f"{one.name}: {hint or 'right'}"
        console.print(told, highlight=False, markup=False, soft_wrap=True)
    if any(hints):
        raise typer.Exit(1)


def _show(console: Console, lesson: Lesson, run: bool, answers: bool) -> None:
    from rich.markdown import Markdown

    def say(text: str, shown: RenderableType) -> None:
        """A part: laid out at a terminal; in a pipe or a file as it is written."""
        if sys.stdout.isatty():
            console.print(shown)
        else:
            print(f"{text.strip()}\n", flush=True)

    start = time.perf_counter()
    blocks = 0
    steps = lesson.run() if run else ((part, "") for part in lesson.parts)
    try:
        for part, printed in steps:
            if part.kind == "markdown":
                text = _for_terminal(part.text, answers)
                say(text, Markdown(text))
            elif part.kind == "python":
                code = part.text.rstrip()
                say(f"```python\n{code}\n```", _code(code))
                blocks += 1
                if printed:
                    say(*_printed(printed))
            elif not run:  # what it would have printed
                say(*_printed(part.text))
    except AssertionError as error:
        fail(f"lesson {lesson.topic}: an assertion does not hold on this machine: {error}")
    if run:
        seconds = time.perf_counter() - start
        console.print(
            f"\n{blocks} blocks of code ran in {seconds:.1f} s, and all {lesson.num_asserts} "
            "assertions held.",
            style="bold",
            highlight=False,
        )


def _code(code: str) -> RenderableType:
    """Python for a terminal; lines that are too long go on below, and are not cut."""
    from rich.padding import Padding
    from rich.syntax import Syntax

    return Padding(Syntax(code, "python", word_wrap=True), (1, 0))


def _printed(text: str) -> tuple[str, RenderableType]:
    """What a block of code printed: as it is written, and laid out."""
    from rich.padding import Padding
    from rich.text import Text

    text = text.rstrip()
    return f"```text\n{text}\n```", Padding(Text(text, "green"), (0, 0, 1, 0))


def _for_terminal(text: str, answers: bool) -> str:
    """Markdown without what a terminal cannot show: comments, folding, pictures."""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    if not answers:
        hint = "*`--answers` shows the answers.*"
        folded = r"<details><summary>Answers</summary>.*?</details>"
        text = re.sub(folded, hint, text, flags=re.DOTALL)
    text = re.sub(r"</?(details|summary)>", "", text)
    return re.sub(r"!\[(.*?)\]\((.*?)\)", r"*Figure: \1 (\2)*", text, flags=re.DOTALL)
