"""Text, JSON and JSON lines → typed records. Whatever a file holds, a complaint names the place.

    read_json(path)                  a document
    read_lines(path)                 (place, object) of JSON lines
    decode(value, Category, place)   a value as a `msgspec.Struct`: types are checked, other keys
                                     are passed over

Files may begin with a byte order mark, in UTF-8 or UTF-16, as Windows' programs write them.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from paliglass.errors import PaliglassError

__all__ = [
    "Id",
    "decode",
    "explain_validation",
    "key_of",
    "parse_json",
    "read_json",
    "read_lines",
    "read_text",
]

Id = int | float | str
"""What files number their entries with: 7, "7" and 7.0 mean the same; see `key_of`."""

Record = TypeVar("Record")

_ERROR = re.compile(r"Expected (?P<expected>.+?), got (?P<found>.+?)(?: - at `\$(?P<at>.*)`)?$")
_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")
_TYPES = {
    "`float`": "a number",
    "`int`": "a whole number",
    "`str`": "text",
    "`bool`": "true or false",
    "`array`": "a list",
    "`object`": "an object",
}
# pydantic's kinds of errors, and what it says in their place.
_MUST = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "an object",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "above {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller number",
    "int_type": "a whole number",
    "less_than": "below {lt:g}",
    "less_than_equal": "{le:g} or less",
    "list_type": "a list",
    "literal_error": "{expected}",
    "model_attributes_type": "an object",
    "model_type": "an object",
    "string_too_long": "a text of {max_length} characters or fewer",
    "string_too_short": "a text of {min_length} or more characters",
    "string_type": "text",
    "too_long": "a list of {max_length} or fewer",
    "too_short": "a list of {min_length} or more",
}
_SHOWN = 60  # characters of a wrong value in a message


def read_text(path: Path) -> str:
    """A text file in UTF-8, or in UTF-16 with its mark. Raises PaliglassError naming the file."""
    if not path.is_file():  # a pipe would be waited for without end
        raise PaliglassError(f"{path}: {'is no file' if path.exists() else 'no such file'}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PaliglassError(f"{path}: cannot be read ({error.strerror})") from None
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError:
        raise PaliglassError(f"{path}: is no text in UTF-8; save it as UTF-8") from None


def parse_json(text: str, where: str, example: str = "") -> Any:
    """JSON → plain values. Raises PaliglassError naming where, and an example of what is right."""
    mend = f"; write {example}" if example else ""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f" at line {error.lineno}, column {error.colno}" if "\n" in text.strip() else ""
        raise PaliglassError(f"{where}: is not JSON ({error.msg}{place}){mend}") from None
    except RecursionError:
        raise PaliglassError(f"{where}: is nested too deeply{mend}") from None
    except ValueError:  # Python reads no number of more than 4300 digits
        raise PaliglassError(f"{where}: holds a number of thousands of digits{mend}") from None


def read_json(path: Path) -> Any:
    """A JSON document; raises as `read_text` and `parse_json`."""
    return parse_json(read_text(path), str(path))


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """(file and line, text) of a file's lines; empty lines are passed over.

    A line ends with a line feed alone: other separators of Unicode may stand in a JSON string.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            yield f"{path}, line {number}", line


def decode(value: Any, kind: type[Record], where: str, example: str = "") -> Record:
    """A plain value as a typed record.

    Raises PaliglassError naming where, the field, its value and what it must be.
    """
    mend = f"; write {example}" if example else ""
    if not isinstance(value, dict):
        raise PaliglassError(f"{where}: is no JSON object but {_show(value)}{mend}")
    required, names = _fields(kind)  # type: ignore[arg-type]
    lacking = [f'"{name}"' for name in required if name not in value]
    if lacking:
        raise PaliglassError(f"{where}: lacks {', '.join(lacking)}{mend}")
    known = {name: value[name] for name in names if name in value}
    try:
        return msgspec.convert(known, kind)
    except msgspec.ValidationError as error:
        raise PaliglassError(f"{where}: {_explain(str(error), known)}{mend}") from None
    except UnicodeEncodeError:
        raise PaliglassError(f"{where}: holds half a character (a lone surrogate){mend}") from None


@lru_cache
def _fields(kind: type[Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of a record's fields: those that must be there, and all."""
    fields = msgspec.structs.fields(kind)
    return tuple(f.encode_name for f in fields if f.required), tuple(f.encode_name for f in fields)


def key_of(number: Id) -> str:
    """An id as text, the same for 7, 7.0, "7" and "7.0"; other texts, as "v1.0", are themselves."""
    if isinstance(number, str):
        match = re.fullmatch(r"(-?)0*(\d+)(?:\.0+)?", number.strip())
        return match[1] + match[2] if match else number.strip()
    return str(int(number)) if isinstance(number, float) and number.is_integer() else str(number)


def _explain(message: str, value: Any) -> str:
    """msgspec's complaint with the value that is wrong."""
    match = _ERROR.match(message)
    if match is None:
        return message.replace("`", "").replace(" - at $.", ": ")
    path = (match["at"] or "").removeprefix(".")
    for name, index in _STEP.findall(path):
        value = value[int(index)] if index else value[name]
    expected = match["expected"]
    if "of length" in expected:
        must = f"a list of {expected.rpartition(' ')[2]}"
    else:
        names = [_TYPES.get(f"`{n}`", n) for n in expected.strip("`").split(" | ") if n != "null"]
        names = [name for name in names if not (name == "a whole number" and "a number" in names)]
        must = " or ".join(dict.fromkeys(names))
    return f"{path} is {_show(value)}; it must be {must}"


def explain_validation(
    error: Mapping[str, Any],
    what: str,
    show: Callable[[Any], str] | None = None,
    others: Sequence[Mapping[str, Any]] = (),
) -> str | None:
    """One of pydantic's errors (typer and FastAPI check with it) in the words of `decode`.

    what: the option or field. show: how a value is written, by default as JSON. others: errors of
    what else the value may be. None where there are no words for its kind.
    """
    show = show or _show
    if error["type"] == "value_error":
        return f"{what}: {error['msg'].removeprefix('Value error, ').rstrip('.')}"
    if error["type"] not in _MUST:
        return None
    must = [
        _MUST[some["type"]].format(**some.get("ctx") or {})
        for some in (error, *others)
        if some["type"] in _MUST
    ]
    return f"{what} is {show(error['input'])}; it must be {' or '.join(must)}"


def _show(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (ValueError, TypeError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
