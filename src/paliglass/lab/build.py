"""The lab as one HTML file, or as a page and pieces for a server: modules joined, weights gzipped.

A page opened from a file may load no module beside it, so the modules of the page and of its worker
are each joined into one script. That needs no JavaScript parser because they keep to a few forms:

    import { a, b as c } from "./x.js";      import * as x from "./x.js";
    export function …   export class …   export const …   export async function …
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from markdown_it import MarkdownIt
from markdown_it.token import Token

from paliglass.checkpoints.folder import quantization
from paliglass.errors import CheckpointError, PaliglassError
from paliglass.inspect.lessons import Lesson, lessons

HERE = Path(__file__).parent
ENGINE, PAGE = HERE / "engine", HERE / "page"
LARGEST = 64 << 20  # bytes of weights that a page can still hold
# What a page can begin without, in the order in which it is wanted: on a server, other files.
APART = ("stickers", "weights", "codec", "dual-tokenizer", "dual-weights", "lessons")
# The tower looks at the picture while the decoder's weights are still on their way.
FIRST = ("vision_tower.", "multi_modal_projector.")

_IMPORT = re.compile(
    r'^import\s+(?:\{(?P<names>[^}]*)\}|\*\s+as\s+(?P<all>\w+))\s+from\s+"(?P<path>[^"]+)";\n',
    re.MULTILINE,
)
_EXPORT = re.compile(r"^export\s+(?=(?:async\s+)?(?:function|class|const)\b)", re.MULTILINE)
_EXPORTED = re.compile(
    r"^export\s+(?:async\s+)?(?:function\*?|class|const)\s+(?P<name>\w+)", re.MULTILINE
)
# In a lesson: comments, what folds answers, figures; links to lessons, papers, anything else.
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_FOLD = re.compile(r"&lt;(/?(?:details|summary))&gt;")
_FIGURE = re.compile(r'<img src="(figures/[^"]+\.svg)"')
_LESSON = re.compile(r'<a href="\d\d_(\w+)\.md(?:#[^"]*)?">')
_KEPT = " /:=,;()'"  # what a quoted address may hold as it is: it packs better
_PAPER = re.compile(r'<a href="(?=https://)')
_ELSEWHERE = re.compile(r'<a href="(?!#lesson=|https://)[^"]*">(.*?)</a>', re.DOTALL)


def join_modules(entry: Path) -> str:
    """A module and all it imports, as one script; each stands in a function of its own.

    Raises ValueError for modules that import each other in a circle.
    """
    parts: list[str] = []
    names: dict[Path, str] = {}

    def add(path: Path, above: tuple[Path, ...]) -> str:
        if path in above:
            raise ValueError(f"{path} imports itself by way of {above[-1]}")
        if path in names:
            return names[path]
        text = path.read_text(encoding="utf-8")

        def imported(match: re.Match[str]) -> str:
            other = add((path.parent / match["path"]).resolve(), (*above, path))
            if match["all"]:
                return f"const {match['all']} = {other};\n"
            bindings = re.sub(r"(\w+)\s+as\s+(\w+)", r"\1: \2", match["names"])
            return f"const {{{bindings}}} = {other};\n"

        body = _IMPORT.sub(imported, text)
        exported = ", ".join(_EXPORTED.findall(text))
        name = names[path] = f"module{len(names)}"
        body = _EXPORT.sub("", body)
        parts.append(
            f"// {path.name}\nconst {name} = (() => {{\n{body}\nreturn {{ {exported} }};\n}})();\n"
        )
        return name

    add(entry.resolve(), ())
    return '"use strict";\n' + "\n".join(parts)


@dataclass(frozen=True)
class Part:
    """Something that the page unpacks, in gzip (see unpack.js)."""

    name: str
    packed: bytes
    sizes: tuple[int, ...]  # bytes, unpacked, of the sections that it is put to use by
    planes: int = 1  # that the numbers of each section lie in

    @property
    def letters(self) -> str:
        """Base85 (RFC 1924) makes five letters of four bytes, base64 four of three: a megabyte of
        the page. Its only letter that HTML could stumble over, <, is written as a comma.
        """
        return base64.b85encode(self.packed).decode("ascii").replace("<", ",")

    @property
    def file(self) -> str:
        return f"{self.name}.bin"

    def source(self, folder: str = "") -> str:
        """Its address; an old copy of a file that has changed would not fit the page."""
        return f"{folder}{self.file}?{zlib.crc32(self.packed):08x}"

    def element(self, folder: str | None = None) -> str:
        """The part in the page, or where it is to be had: beside it, in `folder` (a URL)."""
        sizes = " ".join(map(str, self.sizes))
        start = f'<script type="application/gzip" id="{self.name}" data-planes="{self.planes}"'
        if folder is None:
            return f'{start} data-sizes="{sizes}">{self.letters}</script>'
        return f'{start} data-sizes="{sizes}" data-source="{self.source(folder)}"></script>'


def pack(name: str, path: Path, first: tuple[str, ...] = ()) -> Part:
    """A file as a part of the page.

    first: what the names of those tensors begin with that are put to use before the others are
    there; they are a section of their own.
    """
    data = path.read_bytes()
    if path.suffix != ".safetensors":
        return Part(name, _gzip(data), (len(data),))
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    planes = 2 if {entry["dtype"] for entry in header.values()} <= {"BF16", "F16"} else 1
    sections = [data]
    if first:
        ahead = [one for one in header if one.startswith(first)]
        behind = [one for one in header if not one.startswith(first)]
        sections = [_subset(data, header, names) for names in (ahead, behind) if names]
    if planes == 2:
        sections = [_planes(section) for section in sections]
    # Weights hardly repeat themselves: looking for repeats only makes their codes longer.
    strategy = zlib.Z_HUFFMAN_ONLY if planes == 2 else zlib.Z_DEFAULT_STRATEGY
    sizes = tuple(len(section) for section in sections)
    return Part(name, _gzip(b"".join(sections), strategy), sizes, planes)


def _subset(data: bytes, header: dict[str, Any], names: list[str]) -> bytes:
    """Some tensors of a safetensors file as a file of their own."""
    start = 8 + int.from_bytes(data[:8], "little")
    own: dict[str, Any] = {}
    numbers: list[bytes] = []
    end = 0
    for name in names:
        begin, stop = header[name]["data_offsets"]
        numbers.append(data[start + begin : start + stop])
        own[name] = header[name] | {"data_offsets": [end, end + stop - begin]}
        end += stop - begin
    text = json.dumps(own).encode()
    return b"".join([len(text).to_bytes(8, "little"), text, *numbers])


def _planes(data: bytes) -> bytes:
    """Numbers of two bytes, their sign moved to the end, as all first bytes, then all second.

    Of a bfloat16 the second byte is then its exponent, 2.7 bits of information in 8, and the first
    noise: 9.52 MB become 6.34, where their entropy is 6.31.
    """
    start = 8 + int.from_bytes(data[:8], "little")
    numbers = np.frombuffer(data, "<u2", offset=start)
    turned = (numbers << 1 | numbers >> 15).astype("<u2").tobytes()
    return data[:start] + turned[::2] + turned[1::2]


def _gzip(data: bytes, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> bytes:
    gzip = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS, 9, strategy)
    return gzip.compress(data) + gzip.flush()


def fits_in_a_page(model: Path) -> bool:
    """Whether a model's weights are one file, small enough for a browser to compute with."""
    weights = model / "model.safetensors"
    return weights.is_file() and weights.stat().st_size <= LARGEST


def build(
    model: Path | None, dual: Path | None, name: str = "mini", served: str | None = None
) -> str:
    """The page with a model, and a dual encoder for the view that needs one, in one file.

    model, dual: folders in transformers' layout, their weights in one model.safetensors. Without a
    model the page asks the server that it came from. name: what the page calls the model.
    served: what the server answers with that the page is on, where that is another model.

    Raises CheckpointError for weights that are missing, or too large for a page.
    """
    parts = _parts(model, dual)
    return _page({part.name: part.element() for part in parts}, model is None, name, served)


def build_pieces(
    model: Path | None,
    dual: Path | None,
    name: str = "mini",
    served: str | None = None,
    folder: str = "",
) -> tuple[str, list[Part]]:
    """The page for a web server, and the parts that it fetches when it needs them, each a file.

    A reader waits for the page and the model's weights alone, and those come as they are, without
    base85. folder: where the files lie, seen from the page: "" or "lab/".

    Raises CheckpointError as `build` does.
    """
    parts = _parts(model, dual)
    apart = [part for part in parts if part.name in APART]
    elements = {part.name: part.element(folder if part in apart else None) for part in parts}
    page = _page(elements, model is None, name, served)
    # Asked for before the page's script is there: what is on the picture, and the model.
    sources = {part.name: part.source(folder) for part in apart}
    preload = f'<link rel="preload" href="{sources["stickers"]}" as="fetch" crossorigin>\n<style>'
    page = page.replace("<style>", preload, 1)
    if "weights" in sources:
        page = page.replace("/* ahead */", json.dumps(sources["weights"]), 1)
    return page, apart


def _parts(model: Path | None, dual: Path | None) -> list[Part]:
    files = {"kernel": ENGINE / "kernel.wasm", "stickers": PAGE / "stickers.json"}
    weights = []
    if model is not None:
        files |= {
            "config": model / "config.json",
            "tokenizer": model / "tokenizer.json",
            "preprocessor": model / "preprocessor_config.json",
            "weights": model / "model.safetensors",
            "codec": model / "mask_codec.safetensors",
        }
        weights.append(files["weights"])
        for path in (files["config"], files["tokenizer"]):
            if not path.is_file():
                raise CheckpointError(f"{path}: no such file")
        if (method := quantization(model)) is not None:
            raise CheckpointError(
                f"{model}: is in {method}, which a page does not read; open the checkpoint that it "
                "was made from"
            )
    if dual is not None:
        duals = {
            "dual-config": dual / "config.json",
            "dual-tokenizer": dual / "tokenizer.json",
            "dual-weights": dual / "model.safetensors",
        }
        files |= duals
        weights.extend(duals.values())
    for path in weights:
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; the lab wants weights in one file")
        if path.stat().st_size > LARGEST:
            raise CheckpointError(
                f"{path}: {path.stat().st_size >> 20} MB are more than a page can hold "
                f"({LARGEST >> 20} MB); leave out --out to have it computed by torch"
            )
    found = [
        pack(name, path, FIRST if name == "weights" else ())
        for name, path in files.items()
        if path.is_file()
    ]
    texts = json.dumps({one.topic: _html(one) for one in _lessons()}).encode()
    return [*found, Part("lessons", _gzip(texts), (len(texts),))]


def _page(elements: dict[str, str], remote: bool, name: str, served: str | None) -> str:
    """The page, whose script stands before what is large: it shows itself while that arrives."""
    titles = {one.topic: {"number": one.number, "title": one.title} for one in _lessons()}
    small = [element for part, element in elements.items() if part not in APART]
    large = [elements[part] for part in APART if part in elements]
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    for place, text in {
        "/* style */": (PAGE / "style.css").read_text(encoding="utf-8"),
        "/* worker */": _harmless(join_modules(ENGINE / "worker.js")),
        "<!-- small -->": "\n".join([*small, '<meta id="remote">'] if remote else small),
        "/* lesson titles */": _harmless(json.dumps(titles)),
        "/* page */": _harmless(join_modules(PAGE / "app.js")),
        "<body>": f'<body data-model="{escape(name)}" data-served="{escape(served or name)}">',
        "<!-- large -->": "\n".join(large),
    }.items():
        assert place in page, place
        page = page.replace(place, text, 1)
    return page


def _lessons() -> Sequence[Lesson]:
    """Every lesson; none in a bare checkout."""
    try:
        return lessons()
    except PaliglassError:
        return ()


def _tags(
    _renderer: object, tokens: Sequence[Token], index: int, _options: object, _env: object
) -> str:
    """Of a text's own HTML, what folds answers; comments go, the rest is shown as it is written."""
    return _FOLD.sub(r"<\1>", escape(_COMMENT.sub("", tokens[index].content)))


_MARKDOWN = MarkdownIt("commonmark").enable("table")
for _rule in ("html_block", "html_inline"):  # code is neither, and stays as it is
    _MARKDOWN.add_render_rule(_rule, _tags)


def _html(lesson: Lesson) -> str:
    """Links lead to other lessons, figures are in the text: it needs no other file."""

    def figure(match: re.Match[str]) -> str:
        svg = (lesson.path.parent / unescape(match[1])).read_text("utf-8")
        return f'<img loading="lazy" src="data:image/svg+xml,{quote(svg, safe=_KEPT)}"'

    html: str = _MARKDOWN.render(lesson.text)
    html = _FIGURE.sub(figure, html)
    html = _LESSON.sub(r'<a href="#lesson=\1">', html)
    html = _PAPER.sub('<a target="_blank" rel="noopener" href="', html)
    return _ELSEWHERE.sub(r"\1", html)


def _harmless(text: str) -> str:
    """A script's text that cannot end the element which it stands in."""
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")
