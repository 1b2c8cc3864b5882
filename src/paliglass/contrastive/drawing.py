"""The similarity matrix as a picture: pictures down the side, texts along the top."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

from paliglass.pictures import Picture, load_picture

__all__ = ["CELL", "similarity_picture"]

CELL, GAP = 96, 2
_LINE = 16  # of a text, and of an em in it
_PALE, _DEEP = (247, 249, 252), (24, 92, 160)


def similarity_picture(
    images: Sequence[Picture], texts: Sequence[str], similarities: Sequence[Sequence[float]]
) -> Image.Image:
    """Draws what each picture has to do with each text.

    One row for each picture (its thumbnail on the left), one column for each text (on top); a cell
    holds its number and is the darker the larger that is within the matrix. Where rows and columns
    are pairs (as many of each), the diagonal, which training wants dark, is framed.

    Args:
        images: n pictures.
        texts: m texts.
        similarities: n × m numbers: cosines, logits or probabilities; a tensor will do.

    Raises ValueError where the shape is another, PictureError for an unreadable picture.
    """
    rows = [[float(value) for value in row] for row in similarities]
    if [len(row) for row in rows] != [len(texts)] * len(images) or not rows or not texts:
        raise ValueError(f"similarities must be {len(images)} × {len(texts)}, and not empty")
    font, small = ImageFont.load_default(_LINE), ImageFont.load_default(_LINE - 4)
    columns = [textwrap.wrap(text, CELL // 6, max_lines=8, placeholder=" …") for text in texts]
    head = max(map(len, columns)) * (_LINE - 2) + 3 * GAP
    step = CELL + GAP
    drawn = Image.new("RGB", (step * (len(texts) + 1) + GAP, head + step * len(images) + GAP))
    drawn.paste("white", (0, 0, *drawn.size))
    draw = ImageDraw.Draw(drawn)

    for j, lines in enumerate(columns):
        x, y = GAP + step * (j + 1) + CELL // 2, head - GAP
        draw.multiline_text(
            (x, y), "\n".join(lines), "black", small, anchor="md", align="center", spacing=2
        )
    low, high = min(map(min, rows)), max(map(max, rows))
    for i, row in enumerate(rows):
        y = head + step * i
        thumbnail = ImageOps.contain(load_picture(images[i]), (CELL, CELL))
        left, top = (CELL - thumbnail.width) // 2, (CELL - thumbnail.height) // 2
        drawn.paste(thumbnail, (GAP + left, y + top))
        for j, value in enumerate(row):
            x = GAP + step * (j + 1)
            depth = (value - low) / (high - low) if high > low else 0.0
            colour = tuple(round(a + (b - a) * depth) for a, b in zip(_PALE, _DEEP, strict=True))
            draw.rectangle((x, y, x + CELL - 1, y + CELL - 1), fill=colour)
            ink = "white" if depth > 0.5 else "black"
            draw.text((x + CELL // 2, y + CELL // 2), f"{value:.2f}", ink, font, anchor="mm")
            if i == j and len(images) == len(texts):
                draw.rectangle((x, y, x + CELL - 1, y + CELL - 1), outline="#d9480f", width=3)
    return drawn
