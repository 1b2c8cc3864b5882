"""For cog: the package's own source in a lesson, so that no lesson shows code that does not run."""

from __future__ import annotations

import importlib
import inspect
import sys
import textwrap
from pathlib import Path

import cog

import paliglass

ROOT = Path(paliglass.__file__).parents[2]
sys.path.insert(0, str(ROOT))


def show(name: str, first: str = "", last: str = "") -> None:
    """Prints the source of `module:name`, or of a shell script, under a link to its file.

    first, last: lines that begin with these (blanks apart) bound what is shown; by default all of
    it, without the docstring.
    """
    if name.endswith(".sh"):
        return _show_script(name, first)
    module_name, _, path = name.partition(":")
    inside = module_name != "inference"  # the script beside the package
    module = importlib.import_module(f"paliglass.{module_name}" if inside else module_name)
    found = module
    for part in path.split("."):
        found = getattr(found, part)
    found = inspect.unwrap(found.fget if isinstance(found, property) else found)
    lines, _ = inspect.getsourcelines(found)
    code = textwrap.dedent("".join(lines)).splitlines()
    kept = _without_docstring(code, bool(found.__doc__))
    if first:
        kept = kept[_index(kept, first) :]
    if last:
        kept = kept[: _index(kept, last) + 1]
    body = textwrap.dedent("\n".join(kept)).strip("\n")
    file = Path(inspect.getsourcefile(found) or "").relative_to(ROOT).as_posix()
    cog.outl(f"[`{path}`](../../{file}) in `{file}`:\n")
    cog.outl(f"```py\n{body}\n```")


def _show_script(name: str, first: str) -> None:
    lines = (ROOT / name).read_text("utf-8").splitlines()
    body = "\n".join(lines[_index(lines, first) :])
    cog.outl(f"[`{name}`](../../{name}):\n")
    cog.outl(f"```sh\n{body}\n```")


def _index(lines: list[str], begin: str) -> int:
    return next(i for i, line in enumerate(lines) if line.strip().startswith(begin))


def _without_docstring(lines: list[str], has_one: bool) -> list[str]:
    if not has_one:
        return lines
    start = next(i for i, line in enumerate(lines) if line.strip().startswith('"""'))
    same = lines[start].strip().count('"""') == 2
    end = (
        start
        if same
        else next(i for i in range(start + 1, len(lines)) if lines[i].rstrip().endswith('"""'))
    )
    return lines[:start] + lines[end + 1 :]
