"""The output folder: results.jsonl, a line for each picture done, and the drawn pictures."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paliglass.cli.pictures import STDIN, identity
from paliglass.errors import PaliglassError

if TYPE_CHECKING:
    from PIL import Image

FILE = "results.jsonl"
DRAWINGS = "drawings"


def to_line(record: dict[str, Any]) -> str:
    """A record as JSON, without a line break."""
    return json.dumps(record, ensure_ascii=False)


class Results:
    """An output folder that a killed run leaves whole.

    A picture's line is appended in one piece, after its drawing has been put in place; so what is
    listed is complete, and what is not listed is to be done. A last line without its line break is
    what a killed run left of it, and is removed.

    Args:
        folder: made where it is missing.
        job: task, prompt and model, which all lines of a folder must share.
        resume: go on in a folder that has results; `done` then tells which pictures it has.

    Raises PaliglassError: results are there and `resume` is not asked for, or they are of
    another job.
    """

    def __init__(self, folder: Path, job: dict[str, Any], resume: bool) -> None:
        self.folder = folder
        self.path = folder / FILE
        self.done: set[str] = set()
        self._drawings: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and self.path.stat().st_size:
            if not resume:
                raise PaliglassError(
                    f"{self.path}: exists already; --resume goes on with it, or choose another "
                    "folder for --out"
                )
            self._read(job)
        self._file = self.path.open("ab")

    def _read(self, job: dict[str, Any]) -> None:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                record = json.loads(line)
                self.done.add(identity(record["file"]))
            except (ValueError, KeyError, TypeError):
                raise PaliglassError(
                    f"{self.path}: line {number} is not a result; mend or remove the line"
                ) from None
            for key, value in job.items():
                if record.get(key) != value:
                    raise PaliglassError(
                        f"{self.path}: line {number} has {key} {record.get(key)!r}, this run "
                        f"{value!r}; choose another folder for --out"
                    )
            self._drawings.add(Path(record.get("drawing", "")).name.lower())
        os.truncate(self.path, whole)

    def append(self, record: dict[str, Any], drawing: Image.Image | None = None) -> None:
        """Adds a picture's result, and saves its drawing as drawings/NAME.TASK.png.

        A folder of their own: among a user's pictures, one might replace one of those, or be taken
        for one by the next run.
        """
        if drawing is not None:
            record = {**record, "drawing": self._save(drawing, record["file"], record["task"])}
        line = to_line(record) + "\n"
        # Bytes of a file name that are no text become JSON escapes.
        self._file.write(line.encode("utf-8", errors="backslashreplace"))
        self._file.flush()

    def _save(self, drawing: Image.Image, file: str, task: str) -> str:
        stem = "stdin" if file == STDIN else Path(file).stem[:100]  # with room for a longest name
        name, number = f"{stem}.{task}.png", 1
        while name.lower() in self._drawings:  # a picture of the same name from another folder
            number += 1
            name = f"{stem}-{number}.{task}.png"
        self._drawings.add(name.lower())
        folder = self.folder / DRAWINGS
        folder.mkdir(exist_ok=True)
        unfinished = folder / f".{name}.tmp"
        drawing.save(unfinished, format="PNG")
        os.replace(unfinished, folder / name)
        return f"{DRAWINGS}/{name}"

    def close(self) -> None:
        self._file.close()
