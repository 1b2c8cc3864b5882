"""The folder of a run, here or behind s3:// and gs://.

    job.json             what was asked; a resumed run must agree
    manifest.parquet     the pictures, as they were when the run began
    parts/*.parquet      the rows
    checkpoint/          Ray Data's: the ids of the parts that are whole
    results.jsonl, coco.json    made of the parts

- each part is put in place whole, so that a killed run leaves whole parts
- at the end every id of the manifest has its row, and has it once
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Self, TypeVar

import pyarrow as pa
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq

from paliglass.errors import PaliglassError
from paliglass.files import lock_folder, reason, replacing
from paliglass.formats.export import class_names
from paliglass.formats.jsonl import to_line
from paliglass.scale.rows import Row, to_record, to_table
from paliglass.scale.sources import (
    CHECKPOINT,
    JOB,
    MANIFEST,
    MANIFEST_FILE,
    PARTS,
    Entry,
    is_remote,
    open_place,
)

if TYPE_CHECKING:
    from filelock import BaseFileLock

__all__ = ["CHECKPOINT", "MANIFEST_FILE", "PARTS", "Output", "Summary"]

LOCK = ".annotate.lock"
T = TypeVar("T")
_BATCH = 10_000  # rows that are read or written together


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        yield file


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    waiting = iter(items)
    while some := list(islice(waiting, size)):
        yield some


class Summary(NamedTuple):
    """A finished run: its rows, how many of them have an error, and the first of these."""

    rows: int
    failed: int
    first_error: str | None


class Output:
    """A run's folder, locked where it lies on this machine.

    settings: what a resumed run must agree in. Raises PaliglassError where a run is there and
    `resume` is not asked for, where it was another's, or where another process is writing.
    """

    def __init__(self, address: str, settings: dict[str, Any], resume: bool) -> None:
        self.address = address if is_remote(address) else os.path.abspath(address)
        self.system, self.path = open_place(self.address)
        self._lock: BaseFileLock | None = None
        if not is_remote(address):
            self._lock = lock_folder(Path(self.path), LOCK)
        try:
            self._open(settings, resume)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def place(self, *names: str) -> str:
        """A path of the file system `system`."""
        return "/".join([self.path.rstrip("/"), *names])

    def _open(self, settings: dict[str, Any], resume: bool) -> None:
        if self._has(MANIFEST_FILE):  # else its pictures could not even be listed
            if not resume:
                raise PaliglassError(
                    f"{self.address}: has a run already; --resume goes on with it, or choose "
                    "another folder for --out"
                )
            before = self._read_job()
            for key in settings.keys() | before.keys():
                if settings.get(key) != before.get(key):
                    raise PaliglassError(
                        f"{self.address}: that run had {key} {before.get(key)!r}, this one "
                        f"{settings.get(key)!r}; choose another folder for --out"
                    )
            return
        text = json.dumps(settings, ensure_ascii=False, indent=1) + "\n"
        self._write(JOB, text.encode("utf-8", errors="backslashreplace"))

    def _read_job(self) -> dict[str, Any]:
        try:
            with self.system.open_input_stream(self.place(JOB)) as file:
                return dict(json.loads(file.read()))
        except (OSError, ValueError, TypeError) as error:
            raise PaliglassError(
                f"{self.place(JOB)}: cannot be read ({reason(error)}), so nobody knows what that "
                "run was; choose another folder for --out"
            ) from None

    def _has(self, *names: str) -> bool:
        found = self.system.get_file_info(self.place(*names)).type
        return bool(found != pa_fs.FileType.NotFound)

    def _write(self, name: str, data: bytes) -> None:
        with self._new(name) as file:
            file.write(data)

    def _new(self, *names: str) -> Any:
        """A file to be written, which is there once it is whole."""
        path = self.place(*names)
        return self._new_remote(path) if is_remote(self.address) else _new_file(Path(path))

    @contextmanager
    def _new_remote(self, path: str) -> Iterator[BinaryIO]:
        """As `replacing`: a stream that is closed by an error is whole to the file system."""
        folder, name = path.rsplit("/", 1)
        unfinished = f"{folder}/.{name}.{secrets.token_hex(8)}.tmp"
        try:
            with self.system.open_output_stream(unfinished) as file:
                yield file
            self.system.move(unfinished, path)
        except BaseException:
            with suppress(OSError):
                self.system.delete_file(unfinished)
            raise

    @contextmanager
    def _reading(self, path: str) -> Iterator[pa.NativeFile]:
        """A file of Parquet. Raises PaliglassError, with what to do, where it cannot be read."""
        try:
            with self.system.open_input_file(path) as file:
                yield file
        except (pa.ArrowException, OSError, KeyError) as error:
            mend = (
                "choose another folder for --out"
                if path == self.place(MANIFEST_FILE)
                else f"delete it, and {CHECKPOINT} beside {PARTS} if that is there: --resume makes "
                "its rows again"
            )
            raise PaliglassError(f"{path}: cannot be read ({reason(error)}); {mend}") from None

    # ---------------------------------------------------------------- the manifest

    def manifest(self, found: Iterable[Entry]) -> int:
        """Writes the manifest, unless it is there; the number of its pictures."""
        if not self._has(MANIFEST_FILE):
            with self._new(MANIFEST_FILE) as file, pq.ParquetWriter(file, MANIFEST) as writer:
                for some in _batched(found, _BATCH):
                    rows = [entry._asdict() for entry in some]
                    writer.write_table(pa.Table.from_pylist(rows, MANIFEST))
        with self._reading(self.place(MANIFEST_FILE)) as file:
            return int(pq.ParquetFile(file).metadata.num_rows)

    def entries(self, done: set[str]) -> Iterator[Entry]:
        """The pictures of the manifest that are not done."""
        with self._reading(self.place(MANIFEST_FILE)) as file:
            for batch in pq.ParquetFile(file).iter_batches(_BATCH):
                for row in batch.to_pylist():
                    if row["id"] not in done:
                        yield Entry(**row)

    # ------------------------------------------------------------------- the parts

    def part_files(self) -> list[str]:
        """Paths of `system`, sorted."""
        return self._parquet_files(PARTS)

    def _parquet_files(self, folder: str) -> list[str]:
        selector = pa_fs.FileSelector(self.place(folder), allow_not_found=True)
        names = (info.path for info in self.system.get_file_info(selector))
        return sorted(name for name in names if name.endswith(".parquet"))

    def next_number(self) -> int:
        """Of a part that is to be written: above all that are there, gaps or not."""
        names = map(os.path.basename, self.part_files())
        numbers = (re.fullmatch(r"part-(\d+)\.parquet", name) for name in names)
        return max((int(found[1]) for found in numbers if found), default=-1) + 1

    def write_part(self, number: int, rows: Sequence[Row]) -> None:
        self.system.create_dir(self.place(PARTS))
        with self._new(PARTS, f"part-{number:06}.parquet") as file:
            pq.write_table(to_table(rows), file)

    def done(self) -> set[str]:
        """The ids of all rows that are there."""
        return {id for path in self.part_files() for id in self._ids(path)}

    def committed(self) -> set[str]:
        """The ids of Ray's checkpoint: of parts that are whole, as others may not yet be."""
        files = self._parquet_files(CHECKPOINT)
        whole = (path for path in files if not path.endswith(".pending.parquet"))
        return {id for path in whole for id in self._ids(path)}

    def _ids(self, path: str) -> list[str]:
        with self._reading(path) as file:
            found: list[str] = pq.read_table(file, columns=["id"])["id"].to_pylist()
        return found

    def _outcomes(self, path: str) -> list[tuple[str, bool]]:
        """(id, whether it is an error) of a part's rows."""
        with self._reading(path) as file:
            table = pq.read_table(file, columns=["id", "error"])
        is_error = table["error"].is_valid().to_pylist()
        return list(zip(table["id"].to_pylist(), is_error, strict=True))

    def rows(self) -> Iterator[Row]:
        """All rows, part by part."""
        for path in self.part_files():
            with self._reading(path) as file:
                for batch in pq.ParquetFile(file).iter_batches(_BATCH):
                    yield from batch.to_pylist()

    def drop_repeated_rows(self) -> int:
        """Leaves each id one row, the first without an error if there is one; how many went.

        A worker of a driver that was killed may put a part in place after the next driver has
        looked for what is done; and a `forget_errors` that was killed leaves errors beside what is
        made in their place.
        """
        parts = self.part_files()
        good = {id for path in parts for id, is_error in self._outcomes(path) if not is_error}
        known: set[str] = set()
        dropped = 0
        for path in parts:
            is_kept = []
            for id, is_error in self._outcomes(path):
                is_kept.append(id not in known and not (is_error and id in good))
                if is_kept[-1]:
                    known.add(id)
            dropped += is_kept.count(False)
            self._keep(path, PARTS, is_kept)
        return dropped

    def forget_errors(self) -> int:
        """Takes out the rows that are errors, so that a run makes them again; how many went."""
        parts = self.part_files()
        errors = {id for path in parts for id, is_error in self._outcomes(path) if is_error}
        # The checkpoint first: killed in between, a row is made for nothing, and none is lost.
        for folder in (CHECKPOINT, PARTS) if errors else ():
            for path in self._parquet_files(folder):
                self._keep(path, folder, [id not in errors for id in self._ids(path)])
        return len(errors)

    def _keep(self, path: str, folder: str, is_kept: Sequence[bool]) -> None:
        """Leaves a file some of its rows; without any it goes."""
        if not any(is_kept):
            self.system.delete_file(path)
        elif not all(is_kept):
            with self._reading(path) as file:
                table = pq.read_table(file)
            with self._new(folder, os.path.basename(path)) as file:
                pq.write_table(table.filter(pa.array(is_kept)), file)

    def check(self) -> Summary:
        """Compares parts and manifest. Raises PaliglassError for a row that lacks or is twice."""
        ids: set[str] = set()
        failed, first_error, count = 0, None, 0
        for path in self.part_files():
            with self._reading(path) as file:
                table = pq.read_table(file, columns=["id", "error"])
            count += table.num_rows
            ids.update(table["id"].to_pylist())
            errors = [error for error in table["error"].to_pylist() if error is not None]
            failed += len(errors)
            first_error = first_error or next(iter(errors), None)
        if lost := len(self.committed() - ids):
            raise PaliglassError(
                f"{self.address}: {lost} pictures are done by {CHECKPOINT}, yet have no row: parts "
                f"are missing; put them back, or delete {self.place(CHECKPOINT)}, and --resume "
                "asks about all pictures again"
            )
        missing = sum(1 for _ in self.entries(ids))
        if missing or count != len(ids):
            raise PaliglassError(
                f"{self.address}: {missing} pictures have no row and {count - len(ids)} rows are "
                "there twice; --resume goes on"
            )
        return Summary(count, failed, first_error)

    # --------------------------------------------------------------- other formats

    def export(self, format: str, labels: Sequence[str]) -> str:
        """Writes all rows in another format; the file's name.

        COCO's is one document, which is made in memory; pictures with an error have no place in it.
        """
        if format == "jsonl":
            with self._new("results.jsonl") as file:
                for row in self.rows():
                    line = to_line(to_record(row)) + "\n"
                    file.write(line.encode("utf-8", errors="backslashreplace"))
            return "results.jsonl"
        from paliglass.formats.coco import to_coco

        records = [to_record(row) for row in self.rows() if row["error"] is None]
        document = to_coco(records, class_names(records, labels))
        self._write("coco.json", (json.dumps(document, ensure_ascii=False) + "\n").encode())
        return "coco.json"
