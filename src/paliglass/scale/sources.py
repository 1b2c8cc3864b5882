"""What a user names → a manifest: every picture with an id, and where its bytes lie.

    a folder, a pattern     the pictures there, and the tars and Parquet files
    .tar                    WebDataset: each picture in it, read where it lies
    .parquet                a column of bytes, of {"bytes", "path"} as Hugging Face has it, or of
                            paths
    .txt                    a path or an address a line
    .json .jsonl .yaml      the pictures of a data set that `paliglass data check` knows

All but data sets may lie behind s3:// or gs://, which `pyarrow.fs` opens.
"""

from __future__ import annotations

import glob
import io
import os
import re
import tarfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq
from PIL import Image

from paliglass.errors import PaliglassError, PictureError
from paliglass.files import reason
from paliglass.pictures import SUFFIXES, UNREAD_SUFFIXES, load_picture

__all__ = [
    "CHECKPOINT",
    "JOB",
    "MANIFEST",
    "MANIFEST_FILE",
    "PARTS",
    "Entry",
    "entries",
    "is_remote",
    "open_entry",
    "open_place",
]

COLUMNS = ("image", "picture", "bytes", "jpg", "png", "path", "file", "file_name", "url")
"""Of a Parquet file, where a picture is looked for."""
LISTS = (".txt", ".json", ".jsonl", ".yaml", ".yml")  # read where they are named, not in folders
JOB, MANIFEST_FILE, PARTS, CHECKPOINT = "job.json", "manifest.parquet", "parts", "checkpoint"
"""What a run writes (`output`), and no source."""
_TAR_THREADS = 8
_TAR_BUFFER = 1 << 23  # bytes; of tars that lie elsewhere, for each read is a request


class Entry(NamedTuple):
    """A picture of the manifest.

    number: its place. picture: its name for people, in the results. address: the file that it is
    or is in. start, size: of its bytes in a tar. row_group, row, column: of its cell in a Parquet
    file.
    """

    number: int
    id: str
    picture: str
    address: str
    start: int | None = None
    size: int | None = None
    row_group: int | None = None
    row: int | None = None
    column: str | None = None


MANIFEST = pa.schema(
    [
        ("number", pa.int64()),
        ("id", pa.string()),
        ("picture", pa.string()),
        ("address", pa.string()),
        ("start", pa.int64()),
        ("size", pa.int64()),
        ("row_group", pa.int32()),
        ("row", pa.int32()),
        ("column", pa.string()),
    ]
)

Found = tuple[str, str, dict[str, Any]]  # (name, address, more of an entry)


def is_remote(address: str) -> bool:
    """Whether it is an address, as s3://bucket/folder, and no path of this machine."""
    return "://" in address


def open_place(address: str) -> tuple[pa_fs.FileSystem, str]:
    """The file system of a path or an address, and the path there. Raises PaliglassError."""
    if not address:
        raise PaliglassError("the name of a source or of --out is empty")
    if not is_remote(address):
        return pa_fs.LocalFileSystem(), os.path.abspath(address)
    bucket, key, query = _split(address)
    system, root = _system(f"{bucket}/{query}")
    return system, f"{root.rstrip('/')}/{key.strip('/')}".rstrip("/")


def _split(address: str) -> tuple[str, str, str]:
    """`s3://bucket`, the key as it is, and `?region=…` for pyarrow, if that is there.

    By hand: a key may hold what an address of the web must not, as `#`, `%20` and `?`.
    """
    found = re.fullmatch(r"(.*?://[^/?]*)/?(.*?)(\?\w+=.*)?", address, re.DOTALL)
    assert found is not None
    return found[1], found[2], found[3] or ""


@lru_cache
def _system(root: str) -> tuple[pa_fs.FileSystem, str]:
    """One for each bucket: to open one asks the bucket where it lies."""
    try:
        found: tuple[pa_fs.FileSystem, str] = pa_fs.FileSystem.from_uri(root)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise PaliglassError(f"{root}: cannot be opened ({reason(error)})") from None
    return found


def entries(
    sources: Sequence[str],
    recursive: bool = False,
    column: str | None = None,
    id_column: str | None = None,
) -> Iterator[Entry]:
    """The pictures of files, folders and patterns, in order, each once.

    recursive: also those in folders of folders. column, id_column: of Parquet files.

    Raises PaliglassError where a source is missing, holds no picture, or is not what its name says,
    and where two pictures have one id.
    """
    known: dict[str, str] = {}
    for source in sources:
        is_empty = True
        for name, address, more in _of_source(source, recursive, column, id_column):
            is_empty = False
            own = {"id": name, "picture": name, "address": address, **more}
            own = {key: _encodable(value) for key, value in own.items()}
            entry = Entry(number=len(known), **own)
            place = f"{address} {entry.start} {entry.row_group} {entry.row}"
            other = known.setdefault(entry.id, place)
            if other is place:
                yield entry
            elif other != place:
                raise PaliglassError(
                    f"{name}: its id {entry.id!r} is another picture's too; ids must be unique"
                )
        if is_empty:
            hint = "" if recursive else "; --recursive looks into folders of folders"
            raise PaliglassError(f"{source}: holds no pictures{hint}")


def _encodable(value: Any) -> Any:
    """Text that Parquet can hold: a name that is no UTF-8 becomes one that there is no file of."""
    if not isinstance(value, str):
        return value
    return value.encode("utf-8", errors="backslashreplace").decode()


def _of_source(
    source: str, recursive: bool, column: str | None, id_column: str | None
) -> Iterator[Found]:
    system, path = open_place(source)
    files = _files(source, system, path, recursive)
    tars = [file for file in files if file.lower().endswith(".tar")]
    with ThreadPoolExecutor(_TAR_THREADS) as pool:
        indexed = dict(zip(tars, pool.map(lambda file: _tar(source, file), tars), strict=True))
    for file in files:
        address = _beside(source, file)
        suffix = PurePosixPath(file).suffix.lower()
        if suffix == ".tar":
            yield from indexed[file]
        elif suffix == ".parquet":
            yield from _parquet(source, file, column, id_column)
        elif suffix in LISTS:
            yield from _list(source, file)
        else:
            yield _name(address), address, {}


def _files(source: str, system: pa_fs.FileSystem, path: str, recursive: bool) -> list[str]:
    """The paths of what a source names; of folders what is to be read in them."""
    try:
        if not is_remote(source):
            return _local_files(source, path, recursive)
        info = system.get_file_info(path)
        if info.type == pa_fs.FileType.NotFound and any(mark in path for mark in "*?["):
            from fsspec.implementations.arrow import ArrowFSWrapper

            matches = sorted(map(str, ArrowFSWrapper(system).glob(path)))
            if "/." not in path:  # as a shell does
                matches = [match for match in matches if "/." not in match]
            return [file for match in matches for file in _files(source, system, match, recursive)]
        if info.type == pa_fs.FileType.NotFound:
            raise PaliglassError(f"{source}: no such file or folder")
        if info.type != pa_fs.FileType.Directory:
            return [path]
        inside = system.get_file_info(pa_fs.FileSelector(path, recursive=recursive))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise PaliglassError(f"{source}: cannot be listed ({reason(error)})") from None
    return _to_read(path, [item.path for item in inside if item.type == pa_fs.FileType.File])


def _local_files(source: str, path: str, recursive: bool) -> list[str]:
    """`_files` of this machine: names need not be UTF-8, and links to folders may go round."""
    if not os.path.lexists(path) and any(mark in path for mark in "*?["):
        matches = sorted(glob.glob(path, recursive=True))
        return [file for match in matches for file in _local_files(source, match, recursive)]
    if not os.path.exists(path):
        raise PaliglassError(f"{source}: no such file or folder")
    if not os.path.isdir(path):
        return [path]

    def stop(error: OSError) -> None:
        raise error

    files: list[str] = []
    for folder, folders, names in os.walk(path, onerror=stop, followlinks=False):
        files += filter(os.path.isfile, (os.path.join(folder, name) for name in names))
        if not recursive:
            folders.clear()
    return _to_read(path, files)


def _to_read(path: str, files: Sequence[str]) -> list[str]:
    """Of the files in a folder those that hold pictures, sorted; not what a run has put there."""
    # Pictures of formats that are not read too: they get a row that says so.
    known = SUFFIXES | UNREAD_SUFFIXES | {".tar", ".parquet"}
    there = set(files)
    runs = {
        folder
        for folder, _, name in (file.rpartition("/") for file in files)
        if name == JOB and f"{folder}/{MANIFEST_FILE}" in there
    }

    def is_of_a_run(file: str) -> bool:
        folder, _, name = file.rpartition("/")
        parent, _, last = folder.rpartition("/")
        return (name == MANIFEST_FILE and folder in runs) or (
            last in (PARTS, CHECKPOINT) and parent in runs
        )

    return sorted(
        file
        for file in files
        if PurePosixPath(file).suffix.lower() in known
        and not any(part.startswith(".") for part in file[len(path) :].split("/"))
        and not is_of_a_run(file)
    )


def _beside(source: str, path: str) -> str:
    """The address of a path in a source's file system."""
    if not is_remote(source):
        return path
    bucket, _, query = _split(source)
    _, root = _system(f"{bucket}/{query}")
    return f"{bucket}/{path.removeprefix(root).strip('/')}{query}"


def _name(address: str) -> str:
    """An address for people: without what tells how it is reached."""
    if not is_remote(address):
        return address
    bucket, key, _ = _split(address)
    return f"{bucket}/{key}"


def _tar(source: str, path: str) -> list[Found]:
    """The pictures in a tar, by the places of their bytes."""
    system, _ = open_place(source)
    address = _beside(source, path)
    is_stream = is_remote(source)  # a hop from header to header would be a request each
    try:
        with (
            system.open_input_stream(path, buffer_size=_TAR_BUFFER)
            if is_stream
            else system.open_input_file(path) as file,
            tarfile.open(fileobj=file, mode="r|" if is_stream else "r:") as archive,
        ):
            return [
                (
                    f"{_name(address)}#{member.name}",
                    address,
                    {"start": member.offset_data, "size": member.size},
                )
                for member in archive
                if member.isreg()
                and not member.issparse()
                and PurePosixPath(member.name).suffix.lower() in SUFFIXES | UNREAD_SUFFIXES
            ]
    except (tarfile.TarError, pa.ArrowException, OSError, ValueError) as error:
        raise PaliglassError(f"{_name(address)}: is no whole tar ({reason(error)})") from None


def _parquet(source: str, path: str, column: str | None, id_column: str | None) -> Iterator[Found]:
    """The rows of a Parquet file: its pictures by their cells, or by the paths in them."""
    system, _ = open_place(source)
    address = _beside(source, path)
    name = _name(address)
    try:
        with pq.ParquetFile(system.open_input_file(path)) as file:
            schema = file.schema_arrow
            chosen, is_path = _picture_column(name, schema, column)
            if id_column is not None and id_column not in schema.names:
                raise PaliglassError(f"{name}: has no column {id_column!r}: {_listed(schema)}")
            columns = [] if id_column is None else [id_column]
            columns += [chosen] if is_path else []
            first = 0
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                values = file.read_row_group(group, columns=columns)
                for row in range(size):
                    more: dict[str, Any] = {"id": f"{name}#{first + row}"}
                    if id_column is not None:
                        more["id"] = str(values[id_column][row].as_py())
                    if is_path:
                        value = values[chosen][row].as_py() or ""
                        target = _relative(address, value)
                        yield _name(target), target, more
                    else:
                        cell = {"row_group": group, "row": row, "column": chosen}
                        yield f"{name}#{first + row}", address, more | cell
                first += size
    except (pa.ArrowException, OSError, ValueError) as error:
        raise PaliglassError(f"{name}: is no whole Parquet file ({reason(error)})") from None


def _picture_column(name: str, schema: pa.Schema, column: str | None) -> tuple[str, bool]:
    """The column that pictures are in, and whether these are paths."""
    candidates = [column] if column is not None else [c for c in COLUMNS if c in schema.names]
    for candidate in candidates:
        if candidate not in schema.names:
            raise PaliglassError(f"{name}: has no column {candidate!r}: {_listed(schema)}")
        kind = schema.field(candidate).type
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if is_text or _is_binary(kind) or _is_struct_of_bytes(kind):
            return candidate, is_text
    what = f"column {column!r} holds" if column else "no column holds"
    raise PaliglassError(
        f"{name}: {what} pictures' bytes or paths{' not' if column else ''}: {_listed(schema)}; "
        "--column names one"
    )


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_struct_of_bytes(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return False
    return _is_binary(kind.field("bytes").type)


def _listed(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)


def _list(source: str, path: str) -> Iterator[Found]:
    """The pictures that a list, or a data set, names."""
    address = _beside(source, path)
    if PurePosixPath(path).suffix.lower() != ".txt":
        if is_remote(address):
            raise PaliglassError(
                f"{_name(address)}: data sets are read from this machine; copy it, or name its "
                "folder of pictures"
            )
        from paliglass.data.reading import open_examples  # which brings torch

        examples = open_examples(Path(path), split="all")
        names = dict.fromkeys(str(image) for example in examples for image in example.images)
        lines = list(names)
    else:
        system, _ = open_place(source)
        try:
            with system.open_input_file(path) as file:
                text = file.read().decode("utf-8-sig")
        except (OSError, ValueError) as error:
            raise PaliglassError(f"{_name(address)}: cannot be read ({reason(error)})") from None
        lines = [line for line in (line.strip() for line in text.splitlines()) if line]
    for line in lines:
        target = _relative(address, line)
        yield _name(target), target, {}


def _relative(address: str, name: str) -> str:
    """What a name in a file means: an address, a path, or a path from the file's folder."""
    if is_remote(name) or os.path.isabs(name):
        return name
    if is_remote(address):
        bucket, key, query = _split(address)
        return f"{bucket}/{PurePosixPath(key).parent / name}{query}"
    return os.path.abspath(os.path.join(os.path.dirname(address), name))


# -------------------------------------------------------------------------- reading


def open_entry(entry: Entry) -> Image.Image:
    """The upright picture, RGB. Raises PictureError, naming it, for all that can be wrong."""
    try:
        if not is_remote(entry.address) and entry.start is None and entry.column is None:
            return load_picture(entry.address)
        data = _bytes(entry)
    except PictureError:
        raise
    except PaliglassError as error:
        raise PictureError(str(error)) from None
    except Exception as error:  # of all kinds: a file that is another one than was listed
        raise PictureError(f"{entry.picture}: cannot be read ({reason(error)})") from None
    if data is None:
        raise PictureError(f"{entry.picture}: holds no bytes")
    file = io.BytesIO(data)
    file.name = entry.picture  # what an error calls it, and whose suffix tells a format
    return load_picture(file)


def _bytes(entry: Entry) -> bytes | None:
    system, path = open_place(entry.address)
    if entry.column is not None:
        assert entry.row_group is not None
        value = _row_group(entry.address, entry.row_group, entry.column)[entry.row].as_py()
        found: bytes | None = value["bytes"] if isinstance(value, dict) else value
        return found
    with system.open_input_file(path) as file:
        if entry.start is None:
            data: bytes = file.read()
        else:
            data = file.read_at(entry.size, entry.start)
    return data


_ROW_GROUP_LOCK = threading.Lock()  # neighbours want the same one, and it is read once


def _row_group(address: str, number: int, column: str) -> pa.ChunkedArray:
    with _ROW_GROUP_LOCK:
        return _read_row_group(address, number, column)


@lru_cache(maxsize=1)
def _read_row_group(address: str, number: int, column: str) -> pa.ChunkedArray:
    system, path = open_place(address)
    with pq.ParquetFile(system.open_input_file(path)) as file:
        return file.read_row_group(number, columns=[column])[column]
