"""Runs the lessons and writes beneath their code what it prints: `make docs`; with numbers, some.

A page whose assertions do not all hold is an error, and stays as it is.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from paliglass.files import write_whole
from paliglass.inspect.lessons import Lesson, lessons

CODE = re.compile(r"^```python\n(.*?)^```$(?:\n+```text\n.*?^```$)?", re.MULTILINE | re.DOTALL)


def with_outputs(lesson: Lesson) -> str:
    """The page, under each block of code what that prints now."""
    outputs = iter([printed for part, printed in lesson.run() if part.kind == "python"])

    def block(match: re.Match[str]) -> str:
        printed = next(outputs)
        return f"```python\n{match[1]}```" + (f"\n\n```text\n{printed}```" if printed else "")

    return CODE.sub(block, lesson.text)


def main(chosen: Sequence[str]) -> None:
    for lesson in lessons():
        if not chosen or f"{lesson.number:02}" in chosen:
            page = with_outputs(lesson)
            changed = page != lesson.path.read_text("utf-8")
            write_whole(lesson.path, page)
            print(f"{lesson.path.name}{': outputs changed' if changed else ''}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
