"""The compiled functions, as machine code that is made once for a processor and then kept.

numba takes six to ten seconds for them, so what LLVM has made of them is kept as an object file,
and the next process neither compiles nor imports numba: 0.1 s. numba's own cache would do the same
with a pickle, which runs what is in it when it is opened for a look. An object file runs too once
it is loaded, of course, so it is read from a folder that this user alone may write to, or not at
all; its name tells the source, the libraries and the processor, and its first bytes the hash of the
rest. PALIGLASS_CACHE names another folder.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import stat
import sys
import threading
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from paliglass.errors import PaliglassError
from paliglass.fast.threads import Entry
from paliglass.files import replacing

SOURCES = ("processor", "layout", "instructions", "threads", "kernels", "step")
HASH = 32  # bytes
_MAKING = threading.Lock()


class Library:
    """Functions of an object file, by name; each takes four int64 and runs without the GIL.

    They are valid as long as it lives.
    """

    def __init__(self, code: bytes) -> None:
        from llvmlite import binding

        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        if sys.platform == "win32":
            kernel = ctypes.windll.kernel32.SwitchToThread
            binding.add_symbol("sched_yield", ctypes.cast(kernel, ctypes.c_void_p).value)
        target = binding.Target.from_default_triple().create_target_machine(jit=True)
        self._engine: Any = binding.create_mcjit_compiler(binding.parse_assembly(""), target)
        self._engine.add_object_file(binding.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        self._entries: dict[str, Entry] = {}

    def __getitem__(self, name: str) -> Entry:
        if name not in self._entries:
            kind = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)
            self._entries[name] = kind(self._engine.get_function_address(f"paliglass_{name}"))
        return self._entries[name]


def library() -> Library:
    """All functions of `kernels` and `step`: read, or compiled and kept for the next time."""
    with _MAKING:  # two threads would each make one, and one of them would be freed while it runs
        return _library()


@lru_cache
def _library() -> Library:
    path = _place()
    code = None if path is None else _read(path)
    if code is None:
        from paliglass.fast import kernels, step  # noqa: F401  # which tells kernels of its own

        code = kernels.emit_object()
        if path is not None:
            # A full disk, or a folder in the file's place.
            with suppress(OSError, PaliglassError), replacing(path) as unfinished:
                unfinished.write_bytes(hashlib.sha256(code).digest() + code)
                unfinished.chmod(0o600)
    return Library(code)


def is_kept() -> bool:
    """Whether they need not be compiled."""
    path = _place()
    return path is not None and path.is_file()


def _place() -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / f"kernels-{source_key()}.o"


def cache_folder() -> Path | None:
    """Where machine code is kept; None where others could write to it, or nobody can."""
    own = os.environ.get("PALIGLASS_CACHE")
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = Path(own) if own else base / "paliglass" / "compiled"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.stat()
    except (OSError, RuntimeError):  # Path.home without a home
        return None
    return folder if _is_ours_alone(about) else None


def _is_ours_alone(about: os.stat_result) -> bool:
    """Whether nobody else may write there. Windows has no such bits: a home is one's own there."""
    if sys.platform == "win32":
        return "PALIGLASS_CACHE" not in os.environ
    return about.st_uid == os.getuid() and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def source_key() -> str:
    """A hash of all that the machine code depends on."""
    from paliglass.fast.processor import cpu_name, features

    found = hashlib.sha256()
    about = [sys.version, version("numba"), version("llvmlite"), cpu_name(), features()]
    for part in about:
        found.update(part.encode() + b"\0")
    for name in SOURCES:
        found.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return found.hexdigest()[:HASH]


def _read(path: Path) -> bytes | None:
    """The code in a file that is whole and this user's."""
    try:
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            data = file.read()
    except OSError:
        return None
    if not _is_ours_alone(about):
        return None
    code = data[HASH:]
    return code if hashlib.sha256(code).digest() == data[:HASH] else None
