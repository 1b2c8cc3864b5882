"""The output folder: results.jsonl, a line for each picture done, drawings, masks and exports."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paliglass.errors import PaliglassError
from paliglass.files import lock_folder, replacing
from paliglass.formats.export import EXPORTS, export, write_files
from paliglass.formats.jsonl import to_line

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["FILE", "STDIN", "Results", "identity", "is_drawing"]

STDIN = "-"
FILE = "results.jsonl"
JOB = "results.job.json"
LOCK = ".results.lock"
DRAWINGS = "drawings"
MASKS = "masks"


def identity(*names: str) -> str:
    """Equal for two names of one picture, or of the same pictures in the same order."""
    return "\n".join(name if name == STDIN else os.path.abspath(name) for name in names)


def is_drawing(path: Path) -> bool:
    """Whether a picture lies where a run puts its drawings and masks."""
    return path.parent.name in (DRAWINGS, MASKS) and (path.parent.parent / FILE).exists()


class Results:
    """An output folder that a killed run leaves whole.

    A picture's line is appended in one piece, after its drawing has been put in place; so what is
    listed is complete, and what is not listed is to be done. A last line without its line break is
    what a killed run left of it, and is removed.

    Args:
        folder: made where it is missing.
        job: all that tells this run's results from another's, for a resumed run to agree with;
            task, prompt and model stand in each record too.
        resume: go on in a folder that has results; `done` then tells which pictures it has.

    Raises PaliglassError: results are there and `resume` is not asked for, they are of another
    job, or another process is writing there.
    """

    def __init__(self, folder: Path, job: dict[str, Any], resume: bool) -> None:
        self.folder = folder
        self.path = folder / FILE
        self.done: set[str] = set()
        self._saved: set[str] = set()
        self._lock = lock_folder(folder, LOCK)
        try:
            self._open(job, resume)
        except BaseException:
            self._lock.release()
            raise

    def _open(self, job: dict[str, Any], resume: bool) -> None:
        if self.path.exists() and self.path.stat().st_size:
            if not resume:
                raise PaliglassError(
                    f"{self.path}: exists already; --resume goes on with it, or choose another "
                    "folder for --out"
                )
            self._compare(job)
            self._read(job)
        elif not self.path.exists():  # an empty one is a run's that was killed at once
            for name in EXPORTS.get(job.get("format", ""), ()):
                if (self.folder / name).exists():
                    raise PaliglassError(
                        f"{self.folder / name}: exists already and is not this run's; choose "
                        "another folder for --out"
                    )
        write_files(self.folder, {JOB: json.dumps(job, ensure_ascii=False, indent=1) + "\n"})
        self._file = self.path.open("ab")

    def _compare(self, job: dict[str, Any]) -> None:
        path = self.folder / JOB
        if not path.exists():
            return
        try:
            before = dict(json.loads(path.read_bytes()))
        except (ValueError, TypeError):
            raise PaliglassError(f"{path}: is not JSON; mend or remove the file") from None
        for key in job.keys() | before.keys():
            if job.get(key) != before.get(key):
                raise PaliglassError(
                    f"{path}: that run had {key} {before.get(key)!r}, this one {job.get(key)!r}; "
                    "choose another folder for --out"
                )

    def _read(self, job: dict[str, Any]) -> None:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                record = json.loads(line)
                first = record["file"]
                self.done.add(identity(*record.get("files", [first])))
            except (ValueError, KeyError, TypeError):
                raise PaliglassError(
                    f"{self.path}: line {number} is not a result; mend or remove the line"
                ) from None
            for key in ("task", "prompt", "model"):
                if record.get(key) != job[key]:
                    raise PaliglassError(
                        f"{self.path}: line {number} has {key} {record.get(key)!r}, this run "
                        f"{job[key]!r}; choose another folder for --out"
                    )
            self._saved.add(Path(record.get("drawing", "")).name.lower())
        os.truncate(self.path, whole)

    def append(
        self,
        record: dict[str, Any],
        drawing: Image.Image | None = None,
        masks: list[Image.Image] | None = None,
    ) -> None:
        """Adds a picture's result, its drawing as drawings/NAME.TASK.png, its masks as
        masks/NAME.TASK.1.png and so on.

        Folders of their own: among a user's pictures, one might replace one of those, or be taken
        for one by the next run.
        """
        if drawing is not None:
            name = self._free_name(record["file"], record["task"])
            record = {**record, "drawing": self._save(drawing, DRAWINGS, f"{name}.png")}
            if masks is not None:
                names = [f"{name}.{number}.png" for number in range(1, len(masks) + 1)]
                files = [self._save(m, MASKS, n) for m, n in zip(masks, names, strict=True)]
                record["masks"] = files
        # Bytes of a file name that are no text become JSON escapes.
        self._file.write((to_line(record) + "\n").encode("utf-8", errors="backslashreplace"))
        self._file.flush()

    def _free_name(self, file: str, task: str) -> str:
        stem = "stdin" if file == STDIN else Path(file).stem[:100]  # with room for a longest name
        name, number = f"{stem}.{task}", 1
        while f"{name}.png".lower() in self._saved:  # a picture of the same name elsewhere
            number += 1
            name = f"{stem}-{number}.{task}"
        self._saved.add(f"{name}.png".lower())
        return name

    def _save(self, image: Image.Image, folder: str, name: str) -> str:
        path = self.folder / folder / name
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as unfinished:
            image.save(unfinished, format="PNG")
        return f"{folder}/{name}"

    def export(self, format: str, labels: list[str]) -> None:
        """Writes all results of the folder, of earlier runs too, in another format beside them."""
        with self.path.open("rb") as lines:
            records = [json.loads(line) for line in lines]
        write_files(self.folder, export(records, format, labels))

    def contents(self) -> str:
        """What lies in the folder for a user to look at: "results.jsonl, drawings/, masks/"."""
        known = [FILE, f"{DRAWINGS}/", f"{MASKS}/"]
        known += [name for names in EXPORTS.values() for name in names]
        there = (name for name in dict.fromkeys(known) if (self.folder / name).exists())
        # A folder with a slash, whoever names it.
        return ", ".join(name.rstrip("/") + "/" * (self.folder / name).is_dir() for name in there)

    def close(self) -> None:
        self._file.close()
        self._lock.release()
