"""What a notebook shows: pictures in a page, tables, an image displayed from within a cell."""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["image_tag", "show", "table", "to_png"]

LARGEST = 1024  # pixels: a notebook keeps what it shows


def to_png(image: Image.Image) -> bytes:
    """A PNG file's bytes, of a large picture scaled down."""
    image = image.copy()
    image.thumbnail((LARGEST, LARGEST))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def image_tag(image: Image.Image) -> str:
    """An `<img>` that needs no file."""
    return f'<img src="data:image/png;base64,{base64.b64encode(to_png(image)).decode()}">'


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table; the texts may hold anything."""

    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return f"<table><thead>{row(columns, 'th')}</thead><tbody>{body}</tbody></table>"


def show(image: Image.Image) -> None:
    """In the notebook that this runs in, or in the system's viewer."""
    ipython = sys.modules.get("IPython")  # who runs a notebook has imported it
    if ipython is not None and ipython.get_ipython() is not None:
        from IPython.display import display

        display(image)
    else:
        image.show()
