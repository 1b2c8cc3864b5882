"""Pictures of the manifest → squares of the model's size: all that is done apart from the model.

Nothing here needs torch, which would take each of Ray's processes seconds to import.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
from PIL import Image

from paliglass.errors import PictureError
from paliglass.files import reason
from paliglass.scale.sources import Entry, open_entry

__all__ = ["OPENED", "Opened", "Square"]


class Opened(NamedTuple):
    """A picture that was opened. square: S × S × 3 bytes, RGB; None where there is an error."""

    number: int
    id: str
    picture: str
    square: bytes | None = None
    width: int = 0
    height: int = 0
    error: str | None = None


OPENED = pa.schema(
    [
        ("number", pa.int64()),
        ("id", pa.string()),
        ("picture", pa.string()),
        ("square", pa.large_binary()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("error", pa.string()),
    ]
)


@dataclass(frozen=True)
class Square:
    """Opens pictures, and resizes them as the model wants: all that is done apart from it.

    side: of the model's square, in pixels. resample: Pillow's filter.
    """

    side: int
    resample: int = Image.Resampling.BICUBIC

    def open(self, entry: Entry) -> Opened:
        try:
            image = open_entry(entry)
            resized = image.resize((self.side, self.side), Image.Resampling(self.resample))
        except PictureError as error:
            return Opened(entry.number, entry.id, entry.picture, error=str(error))
        except Exception as error:  # of Pillow, where memory ends
            why = f"{entry.picture}: cannot be resized ({reason(error)})"
            return Opened(entry.number, entry.id, entry.picture, error=why)
        return Opened(entry.number, entry.id, entry.picture, resized.tobytes(), *image.size)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Rows of the manifest → `OPENED`, for Ray Data."""
        opened = [self.open(Entry(**row))._asdict() for row in table.to_pylist()]
        return pa.Table.from_pylist(opened, OPENED)
