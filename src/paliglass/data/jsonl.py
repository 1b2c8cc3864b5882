"""JSON lines → examples: PaliGemma's own form, and the results of this package's tasks.

    {"image": "a.png", "prefix": "detect dog", "suffix": "<loc0256>… dog"}

Paths are relative to the file. "image" may be a list of pictures of one prompt, "suffix" one of
answers that are all right, of which the first is learned. In the results.jsonl of `--out DIR` each
answer is the suffix of its prompt.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from paliglass.data.example import Example, Findings
from paliglass.data.masks import MaskEncoder
from paliglass.data.pictures import named_file
from paliglass.errors import PaliglassError
from paliglass.formats.jsonl import EXAMPLE, ExampleLine, ResultLine
from paliglass.formats.records import decode, parse_json, read_lines
from paliglass.formats.rle import decode_rle
from paliglass.tasks.boxes import Box, clip_box, encode_box
from paliglass.tasks.prompts import one_label

if TYPE_CHECKING:
    from paliglass.modeling_mask_codec import MaskCodec

__all__ = ["read_examples", "read_results"]


def read_examples(path: Path, findings: Findings) -> Iterator[Example]:
    """PaliGemma's lines. Raises PaliglassError for a file that is no text or has no line."""
    empty = True
    for where, text in read_lines(path):
        empty = False
        with findings.at(where):
            line = decode(parse_json(text, where, EXAMPLE), ExampleLine, where, EXAMPLE)
            names = [line.image] if isinstance(line.image, str) else line.image
            if names is None or line.suffix is None:
                findings.left_out(where, f"{'image' if names is None else 'suffix'} is null")
                continue
            if not names or not all(names):
                raise PaliglassError(f"{where}: image is empty; write {EXAMPLE}")
            answers: tuple[str, ...] = ()
            if isinstance(line.suffix, list):
                answers = tuple(a for a in line.suffix if a and not a.isspace())
            suffix = line.suffix if isinstance(line.suffix, str) else "".join(answers[:1])
            if not suffix and isinstance(line.suffix, list):
                findings.left_out(where, "suffix is a list without an answer")
                continue
            images = tuple(named_file(path.parent, name) for name in names)
            yield Example(images, line.prefix, suffix, where, answers)
    if empty:
        raise PaliglassError(f"{path}: holds no examples; a line is {EXAMPLE}")


def read_results(path: Path, findings: Findings, codec: MaskCodec | None) -> Iterator[Example]:
    """The lines of a run's results.jsonl; masks take a codec."""
    lines = []
    encoder = MaskEncoder(codec)
    for where, text in read_lines(path):
        with findings.at(where):
            line = decode(parse_json(text, where), ResultLine, where)
            is_text = line.detections is None
            parts = None if is_text else _parts(line, where, findings, encoder)
            lines.append((where, line, parts))
    codes = encoder.finish()
    for where, line, parts in lines:
        image = Path(line.file)
        image = image if image.exists() else named_file(path.parent, line.file)
        if parts is None:
            if line.answer is None:
                findings.left_out(where, "answer is null")
                continue
            yield Example((image,), line.prompt, line.answer, where)
        else:
            suffix = " ; ".join(
                f"{box}{'' if mask is None else codes[mask]} {label}" for box, mask, label in parts
            )
            yield Example((image,), line.prompt, suffix, where)


def _parts(
    line: ResultLine, where: str, findings: Findings, encoder: MaskEncoder
) -> list[tuple[str, int | None, str]]:
    """(location tokens, number of the mask, label) of each thing."""
    width, height = line.width or 0, line.height or 0
    if not (width > 0 and height > 0):
        raise PaliglassError(f"{where}: width and height must be above 0")
    parts = []
    for thing in line.detections or ():
        if not all(map(math.isfinite, thing.box)):
            raise PaliglassError(f"{where}: {thing.label}: its box {list(thing.box)} is not finite")
        box = clip_box(Box(*thing.box), width, height)
        if box is None:
            findings.left_out(where, f"{thing.label}: its box {list(thing.box)} has no area")
            continue
        number = None
        if thing.mask is not None:
            try:
                number = encoder.add(decode_rle(thing.mask), box)
            except (ValueError, TypeError, KeyError):
                raise PaliglassError(f"{where}: {thing.label}: its mask cannot be read") from None
            if number is None:
                findings.left_out(where, f"{thing.label}: its mask has no pixel in its box")
                continue
        parts.append((encode_box(box, width, height), number, one_label(thing.label)))
    return parts
