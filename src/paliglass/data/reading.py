"""Files and folders → examples, whatever the form: see `data.jsonl`, `coco`, `vqa`, `yolo`,
`folders`.

Pictures are opened only when their turn comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from paliglass.data.coco import read_coco
from paliglass.data.example import OBJECT_TASKS, Example, Findings, tidy
from paliglass.data.folders import Split, read_folder
from paliglass.data.jsonl import read_examples, read_results
from paliglass.data.vqa import read_vqa
from paliglass.data.yolo import read_yolo
from paliglass.errors import PaliglassError
from paliglass.formats.coco import is_coco
from paliglass.formats.jsonl import EXAMPLE
from paliglass.formats.records import read_json
from paliglass.pictures import find_file

if TYPE_CHECKING:
    from paliglass.modeling_mask_codec import MaskCodec

__all__ = ["open_examples", "trainable", "united"]

_KNOWN = ".jsonl, COCO's or VQAv2's .json, YOLO's .yaml, or a folder"


def open_examples(
    data: Path,
    images: Path | None = None,
    task: str | None = None,
    codec: MaskCodec | None = None,
    *,
    split: Split = "train",
    findings: Findings | None = None,
    tell: Callable[[str], object] = lambda message: None,
) -> list[Example]:
    """The examples of a file or folder, for training, validation and evaluation alike.

    Args:
        data: the file or folder.
        images: where a COCO or VQAv2 file's pictures are; by default the file's folder.
        task: "detect" (the default) or "segment", for boxes and masks of COCO and YOLO.
        codec: what turns masks into `<seg>` tokens.
        split: which to read of a folder with several; see `read_folder`.
        findings: gets all that is found wrong, and examples without an answer stay, to be looked
            over too; without it, what is wrong raises.
        tell: gets one line where something was left out.

    Raises PaliglassError, naming file and entry, where the data is of no known form, an entry is
    wrong, or nothing is left.
    """
    chosen = task or "detect"
    if chosen not in OBJECT_TASKS:
        raise PaliglassError(f"boxes are for detect or segment, not {chosen!r}")
    found = Findings()
    data = find_file(data)
    images = images and find_file(images)
    examples = list(united(tidy(_read(data, images, chosen, codec, split, found), found), found))
    if findings is not None:
        findings += found
        return examples
    examples = [example for example in examples if not example.is_empty]
    wrong, left_out = found.of("wrong"), found.of("left out")
    if wrong:
        more = f"; {len(wrong) - 1} more such: paliglass data check {data}" if wrong[1:] else ""
        raise PaliglassError(f"{wrong[0].where}: {wrong[0].problem}{more}")
    if not examples:
        first = f"; {left_out[0].where}: {left_out[0].problem}" if left_out else ""
        raise PaliglassError(f"{data}: holds no examples{first}")
    if left_out:
        tell(
            f"{len(left_out)} left out, the first: {left_out[0].where}: {left_out[0].problem}; "
            f"paliglass data check {data} lists all"
        )
    return examples


def _read(
    data: Path,
    images: Path | None,
    task: str,
    codec: MaskCodec | None,
    split: Split,
    findings: Findings,
) -> Iterator[Example]:
    if data.is_dir():
        return read_folder(data, split, task, codec, findings)
    if not data.is_file():
        raise PaliglassError(
            f"{data}: {'is no file' if data.exists() else 'no such file or folder'}"
        )
    kind = data.suffix.lower()
    if kind == ".jsonl":
        is_results = data.name == "results.jsonl"
        return read_results(data, findings, codec) if is_results else read_examples(data, findings)
    if kind in (".yaml", ".yml"):
        splits = {"train": ["train"], "held out": ["val", "test"], "all": ["train", "val", "test"]}
        return read_yolo(data, splits[split], task, codec, findings)
    if kind != ".json":
        raise PaliglassError(f"{data}: is none of {_KNOWN}; a line of .jsonl is {EXAMPLE}")
    content = read_json(data)
    folder = images or data.parent
    if isinstance(content, dict) and "questions" in content:
        return read_vqa(data, content, folder, findings)
    if is_coco(content):
        return read_coco(data, content, folder, task, codec, findings)
    raise PaliglassError(
        f"{data}: has no images and annotations (COCO) and no questions (VQAv2); it is none of "
        f"{_KNOWN}"
    )


def united(examples: Iterable[Example], findings: Findings) -> Iterator[Example]:
    """Several entries of `detect` or `segment` with one prompt about one picture, taken together.

    Each alone would teach that what the others say is not there. Of other tasks each is an answer.
    """
    kept: dict[object, Example] = {}
    for number, example in enumerate(examples):
        if example.task not in OBJECT_TASKS:
            kept[number] = example
            continue
        key = example.asked
        first = kept.get(key)
        if first is None:
            kept[key] = example
            continue
        findings.odd(
            example.where,
            f"has the picture and prompt of {first.where}; what they say is taken together",
        )
        kept[key] = replace(
            first,
            suffix=_union(first.suffix, example.suffix),
            ignored=_union(first.ignored, example.ignored),
        )
    yield from kept.values()


def _union(*suffixes: str) -> str:
    parts = (part.strip() for suffix in suffixes for part in suffix.split(";"))
    return " ; ".join(dict.fromkeys(part for part in parts if part))


def trainable(examples: Sequence[Example]) -> list[Example]:
    """Without those that would teach that nothing is where something is: crowds alone, for one.

    Raises PaliglassError where none is left.
    """
    found = [example for example in examples if not example.is_partial]
    if examples and not found:
        raise PaliglassError(
            f"{examples[0].where}: this and the other {len(examples) - 1} examples hold nothing "
            "that a model can say"
        )
    return found
