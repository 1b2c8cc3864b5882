"""Boxes and labels drawn onto a picture."""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from paliglass.tasks.results import Detection


def label_colour(label: str) -> tuple[int, int, int]:
    """A strong colour that depends on the label alone, so it is the same in every picture."""
    hue = int.from_bytes(hashlib.sha256(label.encode()).digest()[:2], "big") / 65536
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.8)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_detections(picture: Image.Image, detections: Sequence[Detection]) -> Image.Image:
    """A copy of an upright picture with a frame and a name tag for everything found.

    Line and letters grow with the picture. A tag stands on its frame's upper edge, or inside it
    where there is no room above.
    """
    drawn = picture.convert("RGB")
    draw = ImageDraw.Draw(drawn)
    side = min(drawn.size)
    line = max(2, side // 160)
    font = ImageFont.load_default(max(12, side // 24))
    for found in detections:
        colour = label_colour(found.label)
        x0, y0, x1, y1 = found.box
        draw.rectangle((x0, y0, x1, y1), outline=colour, width=line)
        text = f"{found.label} {found.score:.2f}"
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        width, height = right - left + 2 * line, bottom - top + 2 * line
        tag_x = max(0.0, min(x0, drawn.width - width))
        tag_y = y0 - height if y0 >= height else y0
        draw.rectangle((tag_x, tag_y, tag_x + width, tag_y + height), fill=colour)
        draw.text((tag_x + line - left, tag_y + line - top), text, fill="white", font=font)
    return drawn
