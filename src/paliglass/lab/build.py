"""The lab as one HTML file: modules joined, weights gzipped, nothing fetched.

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
from html import escape, unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markdown_it import MarkdownIt
from markdown_it.token import Token

from paliglass.checkpoints.folder import quantization
from paliglass.errors import CheckpointError, PaliglassError
from paliglass.inspect.lessons import Lesson, lessons

HERE = Path(__file__).parent
ENGINE, PAGE = HERE / "engine", HERE / "page"
LARGEST = 64 << 20  # bytes of weights that a page can still hold

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


def pack(path: Path) -> tuple[str, int]:
    """A file → gzip in base85, and the planes that its numbers lie in (see unpack.js).

    Base85 (RFC 1924) makes five letters of four bytes, base64 four of three: a megabyte of the
    page. Its only letter that HTML could stumble over, <, is written as a comma.
    """
    data = path.read_bytes()
    planes = 1
    if path.suffix == ".safetensors":
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        kinds = {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
        if kinds <= {"BF16", "F16"}:
            planes = 2
            data = data[:start] + data[start::2] + data[start + 1 :: 2]
    # Weights hardly repeat themselves: looking for repeats only makes their codes longer.
    strategy = zlib.Z_HUFFMAN_ONLY if planes == 2 else zlib.Z_DEFAULT_STRATEGY
    return _letters(data, strategy), planes


def _letters(data: bytes, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> str:
    gzip = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS, 9, strategy)
    packed = gzip.compress(data) + gzip.flush()
    return base64.b85encode(packed).decode("ascii").replace("<", ",")


def fits_in_a_page(model: Path) -> bool:
    """Whether a model's weights are one file, small enough for a browser to compute with."""
    weights = model / "model.safetensors"
    return weights.is_file() and weights.stat().st_size <= LARGEST


def build(
    model: Path | None, dual: Path | None, name: str = "mini", served: str | None = None
) -> str:
    """The page with a model, and a dual encoder for the view that needs one.

    model, dual: folders in transformers' layout, their weights in one model.safetensors. Without a
    model the page asks the server that it came from. name: what the page calls the model.
    served: what the server answers with that the page is on, where that is another model.

    Raises CheckpointError for weights that are missing, or too large for a page.
    """
    parts = {"kernel": ENGINE / "kernel.wasm"}
    weights = []
    if model is not None:
        parts |= {
            "config": model / "config.json",
            "tokenizer": model / "tokenizer.json",
            "preprocessor": model / "preprocessor_config.json",
            "weights": model / "model.safetensors",
            "codec": model / "mask_codec.safetensors",
        }
        weights.append(parts["weights"])
    for path in (parts.get("config"), parts.get("tokenizer")):
        if path is not None and not path.is_file():
            raise CheckpointError(f"{path}: no such file")
    if model is not None and (method := quantization(model)) is not None:
        raise CheckpointError(
            f"{model}: is in {method}, which a page does not read; open the checkpoint that it was "
            "made from"
        )
    duals = (
        {}
        if dual is None
        else {
            "dual-config": dual / "config.json",
            "dual-tokenizer": dual / "tokenizer.json",
            "dual-weights": dual / "model.safetensors",
        }
    )
    for path in (*weights, *duals.values()):
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; the lab wants weights in one file")
        if path.stat().st_size > LARGEST:
            raise CheckpointError(
                f"{path}: {path.stat().st_size >> 20} MB are more than a page can hold "
                f"({LARGEST >> 20} MB); leave out --out to have it computed by torch"
            )
    titles, texts = _lessons()
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    stickers = (PAGE / "stickers.json").read_text(encoding="utf-8")
    for place, text in {
        "/* style */": (PAGE / "style.css").read_text(encoding="utf-8"),
        "/* stickers */": _harmless(stickers),
        "/* worker */": _harmless(join_modules(ENGINE / "worker.js")),
        "/* page */": _harmless(join_modules(PAGE / "app.js")),
        "<!-- model -->": _packed(parts) + ("" if model else '<meta id="remote">'),
        "/* lesson titles */": _harmless(json.dumps(titles)),
        "<body>": f'<body data-model="{escape(name)}" data-served="{escape(served or name)}">',
        "<!-- dual -->": _packed(duals),
        "<!-- lessons -->": _script("lessons", _letters(json.dumps(texts).encode())),
    }.items():
        assert place in page, place
        page = page.replace(place, text, 1)
    return page


def _packed(parts: dict[str, Path]) -> str:
    found = []
    for name, path in parts.items():
        if path.is_file():
            found.append(_script(name, *pack(path)))
    return "\n".join(found)


def _script(name: str, letters: str, planes: int = 1) -> str:
    return f'<script type="application/gzip" id="{name}" data-planes="{planes}">{letters}</script>'


def _lessons() -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Every lesson's number and title, and its text as HTML, by topic; none in a bare checkout."""
    try:
        every = lessons()
    except PaliglassError:
        return {}, {}
    titles = {one.topic: {"number": one.number, "title": one.title} for one in every}
    return titles, {one.topic: _html(one) for one in every}


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
