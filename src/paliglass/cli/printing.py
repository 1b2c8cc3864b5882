"""Results on standard output, in the format asked for."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from paliglass.cli.messages import cell, harmless
from paliglass.cli.options import Format
from paliglass.cli.screen import Screen
from paliglass.formats.csv_table import to_csv
from paliglass.formats.export import export
from paliglass.formats.jsonl import to_line
from paliglass.tasks.results import Found

if TYPE_CHECKING:
    from PIL import Image
    from rich.table import Table

__all__ = ["Printer"]


class Printer:
    """Hands results to standard output in the format asked for.

    labels: what was looked for. preview: whether pictures are drawn in the terminal. named: whether
    each result stands beside its picture's name.
    """

    def __init__(
        self, screen: Screen, format: Format, labels: Sequence[str], preview: bool, named: bool
    ) -> None:
        self.screen, self.format = screen, format
        self.labels, self.preview, self.named = labels, preview, named
        self._kept: list[dict[str, Any]] = []  # of a format that is one document
        self._header = True

    def show(
        self, record: dict[str, Any], image: Image.Image | None, result: str | Found[Any]
    ) -> None:
        """One picture's result."""
        if self.format == "text":
            _show(self.screen, record["file"] if self.named else None, result)
            if self.preview and image is not None and isinstance(result, Found):
                _preview(self.screen, image, result)
        elif self.format == "jsonl":
            self.screen.answer(to_line(record))
        elif self.format == "csv":
            rows = to_csv([record], self._header)
            self._header = False
            if rows:
                self.screen.answer(rows.rstrip("\n"))
        else:
            self._kept.append(record)

    def finish(self) -> None:
        """Prints what could not be printed picture by picture."""
        if self.format in ("json", "coco"):
            [text] = export(self._kept, self.format, self.labels).values()
            self.screen.answer(text.rstrip("\n"))


def _preview(screen: Screen, image: Image.Image, found: Found[Any]) -> None:
    from paliglass.cli.preview import FORCE, choose_protocol, preview

    if sys.stdout.isatty() or FORCE in os.environ:
        protocol = choose_protocol(os.environ)
        # A small picture is enlarged, so that its labels can be read.
        scale = 1 if protocol == "blocks" else max(1, 480 // max(image.size))
        screen.write(
            preview(found.draw(image, scale), protocol, shutil.get_terminal_size().columns)
        )


def _show(screen: Screen, name: str | None, result: str | Found[Any]) -> None:
    """One result for people, or in columns for programs. name: None where there is one picture."""
    at_terminal = sys.stdout.isatty()
    name = None if name is None else cell(name)
    if isinstance(result, str):
        if name is None:
            screen.answer(harmless(result) if at_terminal else result)
        else:
            line = result.replace("\\", "\\\\")
            screen.answer(f"{name}\t{cell(line)}")
    elif at_terminal:
        screen.answer(_table(name, result) if result else f"{name or 'picture'}: nothing found")
    else:
        for found in result:
            edges = (f"{edge:.1f}" for edge in found.box)
            label = cell(found.label)
            columns = ([] if name is None else [name]) + [label, f"{found.score:.3f}", *edges]
            screen.answer("\t".join(columns))


def _table(name: str | None, detections: Found[Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=None if name is None else Text(name), title_justify="left")
    table.add_column("label")
    for column in ("score", "x0", "y0", "x1", "y1"):
        table.add_column(column, justify="right")
    for found in detections:
        edges = (f"{edge:.0f}" for edge in found.box)
        table.add_row(Text(harmless(found.label)), f"{found.score:.2f}", *edges)
    return table
