"""The lessons: Markdown pages whose code runs.

In a page, a ```python block is run, one after the other in one namespace; a ```text block right
after it is what it printed; a ```py block is source shown from the package, and is not run.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from paliglass.errors import PaliglassError

__all__ = ["Lesson", "LessonPart", "find", "lessons"]

_HERE = Path(__file__).parent
# In a wheel they lie beside this file; in the repository, with the documentation.
FOLDERS = (_HERE.parent / "lessons", _HERE.parents[2] / "docs" / "lessons")
_BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class LessonPart(NamedTuple):
    """A piece of a page: Markdown, code to run, or what the code before it prints."""

    kind: Literal["markdown", "python", "text"]
    text: str


@dataclass(frozen=True)
class Lesson:
    """A page. topic: what one calls it, "rope"; title: its heading, without the number."""

    path: Path
    number: int
    topic: str

    @cached_property
    def text(self) -> str:
        return self.path.read_text("utf-8")

    @property
    def title(self) -> str:
        return self.text.partition("\n")[0].partition("·")[2].strip()

    @property
    def question(self) -> str:
        """The quotation under the title: what the lesson answers."""
        found = re.search(r"^> (.*(?:\n> .*)*)", self.text, re.MULTILINE)
        return found[1].replace("\n> ", " ") if found else ""

    @property
    def parts(self) -> list[LessonPart]:
        """The page, cut at its blocks of code and output."""
        parts, end = [], 0
        for match in _BLOCK.finditer(self.text):
            parts.append(LessonPart("markdown", self.text[end : match.start()]))
            parts.append(LessonPart("python" if match[1] == "python" else "text", match[2]))
            end = match.end()
        return [*parts, LessonPart("markdown", self.text[end:])]

    @property
    def num_asserts(self) -> int:
        return sum(
            isinstance(node, ast.Assert)
            for part in self.parts
            if part.kind == "python"
            for node in ast.walk(ast.parse(part.text))
        )

    def run(self) -> Iterator[tuple[LessonPart, str]]:
        """Runs the code as the iterator is read: each part, and what it printed.

        The random numbers are the same every time, and the caller's are left alone. An exception
        of the code (AssertionError where something does not hold) passes through.
        """
        import torch

        names: dict[str, Any] = {"__name__": f"lesson_{self.topic}"}
        state = torch.Generator().manual_seed(0).get_state()
        for part in self.parts:
            printed = io.StringIO()
            if part.kind == "python":
                with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(printed):
                    torch.set_rng_state(state)
                    exec(compile(part.text, self.path.name, "exec"), names)
                    state = torch.get_rng_state()
            yield part, printed.getvalue()


def lessons() -> list[Lesson]:
    """All of them, in order. Raises PaliglassError where they were not installed."""
    folder = next((folder for folder in FOLDERS if (folder / "README.md").is_file()), None)
    if folder is None:
        raise PaliglassError("the lessons are not part of this installation; install the wheel")
    return [
        Lesson(path, int(path.name[:2]), path.stem[3:])
        for path in sorted(folder.glob("[0-9][0-9]_*.md"))
    ]


def find(topic: str) -> Lesson:
    """The lesson of a number ("13"), a topic ("rope"), or with a word in its topic or title.

    Raises PaliglassError that lists what there is.
    """
    every = lessons()
    word = topic.lower().replace("-", "_").replace(" ", "_")
    ranked = [
        *(one for one in every if word in (one.topic, str(one.number), f"{one.number:02}")),
        *(one for one in every if word in one.topic),
        *(one for one in every if topic.lower() in one.title.lower()),
    ]
    if ranked:
        return ranked[0]
    raise PaliglassError(
        f"there is no lesson on {topic!r}; choose {', '.join(one.topic for one in every)}"
    )
