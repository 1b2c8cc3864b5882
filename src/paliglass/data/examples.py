"""What a model is fine-tuned on: pictures with a prefix (the prompt) and a suffix (the answer).

    data.jsonl            {"image": "a.png", "prefix": "detect dog", "suffix": "<loc0256>… dog"} a
                          line, paths relative to the file; the community's PaliGemma format
    instances.json        COCO boxes, → `detect` with all categories, or `segment` with masks
    captions.json         COCO captions, → `caption en`
    questions.json        VQAv2's questions, with annotations.json beside it, → `answer en …`
    folder                class folders → `answer en what is this?`; or metadata.jsonl / .csv with
                          file_name and text (→ `caption en`) or prefix and suffix

Pictures are opened only when their turn comes. Every complaint names the file and the line.
"""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from paliglass.errors import PaliglassError
from paliglass.pictures import SUFFIXES
from paliglass.tasks.boxes import Box, encode_box
from paliglass.tasks.prompts import answer_prompt, caption_prompt, detect_prompt, segment_prompt

if TYPE_CHECKING:
    from paliglass.modeling_mask_codec import MaskCodec

Row = TypeVar("Row")
Read = TypeVar("Read")
LINE = '{"image": "dog.png", "prefix": "caption en", "suffix": "a dog"}'
MAX_ANSWERS = 10  # VQAv2 has ten a question
Problems = list[tuple[str, str]]  # (file and line, what is wrong with it)


@dataclass(frozen=True)
class Example:
    """A picture, what is asked about it, and what is right.

    where: file and line (or entry) that it came from, for messages. answers: other right answers,
    for metrics; `suffix` is the one to train on. notes: what is odd about it, but no error.
    """

    image: Path
    prefix: str
    suffix: str
    where: str
    answers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def open_examples(
    data: Path,
    images: Path | None = None,
    task: str | None = None,
    codec: MaskCodec | None = None,
    problems: Problems | None = None,
) -> list[Example]:
    """The examples of a file or folder of the kinds listed above.

    Args:
        data: the file or folder.
        images: where a COCO or VQAv2 file's pictures are; by default the file's folder.
        task: "detect" (the default) or "segment", for COCO boxes.
        codec: what turns COCO's masks into `<seg>` tokens.
        problems: gets what is wrong with lines, which are then left out; without it they raise.

    Raises PaliglassError where it is none of them, or an entry is wrong.
    """
    if data.is_dir():
        return _folder(data, problems)
    if not data.is_file():
        raise PaliglassError(f"{data}: no such file or folder")
    if data.suffix == ".jsonl":
        return _each(
            _lines(data),
            lambda line, where: _line(parse_line(line, where), where, data.parent),
            problems,
        )
    if data.suffix != ".json":
        raise PaliglassError(f"{data}: is no .jsonl, .json or folder; a line is {LINE}")
    content = _json(data)
    folder = images or data.parent
    if "questions" in content:
        return _vqa(data, content, folder, problems)
    if not {"images", "annotations"} <= content.keys():
        raise PaliglassError(
            f"{data}: has no images and annotations (COCO) and no questions (VQAv2)"
        )
    if "categories" in content:
        return _coco(data, content, folder, task or "detect", codec, problems)
    return _coco_captions(data, content, folder, problems)


def _each(
    rows: Iterable[tuple[str, Row]], read: Callable[[Row, str], Read], problems: Problems | None
) -> list[Read]:
    """`read` of every (where, row); what it raises goes into `problems`, where given."""
    found = []
    for where, row in rows:
        try:
            found.append(read(row, where))
        except PaliglassError as error:
            if problems is None:
                raise
            problems.append((where, str(error).removeprefix(f"{where}: ")))
    return found


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(where, line) of a text; empty lines are passed over."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise PaliglassError(f"{path}: is no text in UTF-8; give JSON lines") from None
    number = 0
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield f"{path}, line {number}", line
    if not number:
        raise PaliglassError(f"{path}: holds no examples; a line is {LINE}")


def parse_line(line: str, where: str, model: str = LINE) -> dict[str, Any]:
    """The JSON object of a line. Raises PaliglassError, naming where and a line as it should be."""
    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        raise PaliglassError(f"{where}: is not JSON ({error.msg}); write {model}") from None
    if not isinstance(data, dict):
        raise PaliglassError(f"{where}: is no JSON object; write {model}")
    return data


def _line(data: dict[str, Any], where: str, folder: Path) -> Example:
    for name in ("image", "prefix", "suffix"):
        if name not in data:
            raise PaliglassError(f'{where}: lacks "{name}"; write {LINE}')
    image, prefix, suffix = data["image"], data["prefix"], data["suffix"]
    answers: tuple[str, ...] = ()
    if isinstance(suffix, list) and suffix and all(isinstance(s, str) for s in suffix):
        answers, suffix = tuple(suffix), suffix[0]
    for name, value in (("image", image), ("prefix", prefix), ("suffix", suffix)):
        if not isinstance(value, str) or (name == "image" and not value):
            raise PaliglassError(f'{where}: "{name}" is {value!r}; write {LINE}')
    return Example(folder / image, prefix, suffix, where, answers)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PaliglassError(f"{path}: is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise PaliglassError(f"{path}: is no JSON object; it is to be COCO's or VQAv2's")
    return content


def _entries(
    path: Path,
    content: dict[str, Any],
    name: str,
    keys: Sequence[str],
    read: Callable[[dict[str, Any], str], Read],
    problems: Problems | None,
) -> list[Read]:
    """`_each` of a list in a JSON file, whose entries are to have all the keys."""
    entries = content.get(name)
    if not isinstance(entries, list):
        raise PaliglassError(f"{path}: {name} is no list")

    def read_whole(entry: Any, where: str) -> Read:
        lacking = [key for key in keys if not isinstance(entry, dict) or key not in entry]
        if lacking:
            raise PaliglassError(f"{where}: lacks {', '.join(lacking)}")
        return read(entry, where)

    places = ((f"{path}, {name}[{number}]", entry) for number, entry in enumerate(entries))
    return _each(places, read_whole, problems)


@dataclass(frozen=True)
class _Instance:
    """An annotation of COCO's. place: what instances are ordered by. note: as in `Example`."""

    image: Any
    place: tuple[Any, ...] = ()
    suffix: str | None = None
    note: str | None = None


def _coco(
    path: Path,
    content: dict[str, Any],
    folder: Path,
    task: str,
    codec: MaskCodec | None,
    problems: Problems | None,
) -> list[Example]:
    """For each picture a prompt with all categories; instances from left to right."""
    if task not in ("detect", "segment"):
        raise PaliglassError(f"COCO boxes are for detect or segment, not {task!r}")
    if task == "segment" and codec is None:
        raise PaliglassError(f"{path}: to segment takes a model with a mask codec")

    def category(entry: dict[str, Any], where: str) -> tuple[Any, str]:
        return entry["id"], str(entry["name"])

    def picture(entry: dict[str, Any], where: str) -> tuple[Any, tuple[str, tuple[int, int], str]]:
        return entry["id"], (entry["file_name"], (entry["width"], entry["height"]), where)

    def instance(entry: dict[str, Any], where: str) -> _Instance:
        kind, image, bbox = (entry[key] for key in ("category_id", "image_id", "bbox"))
        if kind not in names:
            raise PaliglassError(f"{where}: category_id {kind} is no category")
        if entry.get("iscrowd") or image not in pictures:
            return _Instance(image)
        size, box = pictures[image][1], _coco_box(bbox, where)
        if box.x0 >= box.x1 or box.y0 >= box.y1:  # COCO itself has such
            return _Instance(image, note=f"{where}: bbox {bbox} has no area, and is left out")
        codes = "" if codec is None or task == "detect" else _codes(entry, box, size, codec, where)
        is_outside = box.x0 < 0 or box.y0 < 0 or box.x1 > size[0] or box.y1 > size[1]
        note = f"{where}: bbox {bbox} leaves the picture of {size}" if is_outside else None
        suffix = f"{encode_box(box, *size)}{codes} {names[kind]}"
        return _Instance(image, (order.index(kind), bbox), suffix, note)

    names = dict(_entries(path, content, "categories", ("id", "name"), category, problems))
    order = list(names)
    keys: tuple[str, ...] = ("id", "file_name", "width", "height")
    pictures = dict(_entries(path, content, "images", keys, picture, problems))
    keys = ("image_id", "category_id", "bbox")
    of_image = defaultdict(list)
    for found in _entries(path, content, "annotations", keys, instance, problems):
        of_image[found.image].append(found)
    prompt = (detect_prompt if task == "detect" else segment_prompt)(list(names.values()))
    examples = []
    for number, (file, _, where) in pictures.items():
        instances = sorted(of_image[number], key=lambda it: it.place)
        suffix = " ; ".join(it.suffix for it in instances if it.suffix is not None)
        notes = tuple(it.note for it in instances if it.note is not None)
        examples.append(Example(folder / file, prompt, suffix, where, notes=notes))
    return examples


def _coco_box(values: Any, where: str) -> Box:
    try:
        x, y, width, height = (float(value) for value in values)
    except (TypeError, ValueError):
        raise PaliglassError(f"{where}: bbox is {values!r}; it is [x, y, width, height]") from None
    return Box(x, y, x + width, y + height)


def _codes(
    entry: dict[str, Any], box: Box, size: tuple[int, int], codec: MaskCodec, where: str
) -> str:
    import torch

    from paliglass.tasks.masks import crop_mask

    mask = _coco_mask(entry.get("segmentation"), size, where)
    crop = torch.from_numpy(crop_mask(mask, box))[None]
    return "".join(f"<seg{code:03}>" for code in codec.encode(crop)[0].tolist())


def _coco_mask(segmentation: Any, size: tuple[int, int], where: str) -> NDArray[np.bool_]:
    """COCO's polygons or run lengths → height × width."""
    from PIL import Image, ImageDraw

    from paliglass.formats.rle import decode_rle

    width, height = size
    try:
        if isinstance(segmentation, dict):
            return decode_rle(segmentation)
        drawn = Image.new("1", size)
        for polygon in segmentation:
            ImageDraw.Draw(drawn).polygon(list(map(float, polygon)), fill=1)
        return np.asarray(drawn)
    except (TypeError, ValueError, KeyError):
        raise PaliglassError(
            f"{where}: segmentation is neither polygons nor run lengths of {width} × {height}"
        ) from None


def _coco_captions(
    path: Path, content: dict[str, Any], folder: Path, problems: Problems | None
) -> list[Example]:
    def picture(entry: dict[str, Any], where: str) -> tuple[Any, str]:
        return entry["id"], entry["file_name"]

    def example(entry: dict[str, Any], where: str) -> Example:
        if entry["image_id"] not in files:
            raise PaliglassError(f"{where}: image_id {entry['image_id']} is no picture")
        caption = " ".join(str(entry["caption"]).split())
        return Example(folder / files[entry["image_id"]], caption_prompt(), caption, where)

    files = dict(_entries(path, content, "images", ("id", "file_name"), picture, problems))
    return _entries(path, content, "annotations", ("image_id", "caption"), example, problems)


def _vqa(
    path: Path, content: dict[str, Any], folder: Path, problems: Problems | None
) -> list[Example]:
    """VQAv2: questions, and the answers of annotations.json (or …annotations….json) beside it."""
    beside = path.with_name(path.name.replace("OpenEnded_", "").replace("questions", "annotations"))
    beside = beside if beside.is_file() else path.with_name("annotations.json")
    if not beside.is_file():
        raise PaliglassError(f"{path}: its answers are missing; put annotations.json beside it")

    def answer(entry: dict[str, Any], where: str) -> tuple[Any, tuple[str, list[str]]]:
        try:
            given = [str(answer["answer"]) for answer in entry["answers"]][:MAX_ANSWERS]
            likeliest = str(entry.get("multiple_choice_answer") or given[0])
        except (TypeError, KeyError, IndexError):
            raise PaliglassError(f'{where}: answers are to be [{{"answer": "yes"}}, …]') from None
        return entry["question_id"], (likeliest, given)

    def example(entry: dict[str, Any], where: str) -> Example:
        if entry["question_id"] not in answers:
            raise PaliglassError(f"{where}: {beside.name} has no answer to it")
        image = numbered.get(entry["image_id"], folder / f"{entry['image_id']}.jpg")
        likeliest, given = answers[entry["question_id"]]
        return Example(image, answer_prompt(entry["question"]), likeliest, where, tuple(given))

    keys: tuple[str, ...] = ("question_id", "answers")
    answers = dict(_entries(beside, _json(beside), "annotations", keys, answer, problems))
    numbered = {
        int(match[1]): file
        for file in folder.iterdir()
        if file.suffix.lower() in SUFFIXES and (match := re.search(r"(\d+)$", file.stem))
    }
    keys = ("question_id", "image_id", "question")
    return _entries(path, content, "questions", keys, example, problems)


def _folder(folder: Path, problems: Problems | None) -> list[Example]:
    if (path := folder / "metadata.jsonl").is_file():
        return _each(
            _lines(path),
            lambda line, where: _metadata(parse_line(line, where), where, folder),
            problems,
        )
    if (path := folder / "metadata.csv").is_file():
        return _each(_csv_rows(path), lambda row, where: _metadata(row, where, folder), problems)
    for name in ("data.jsonl", "train.jsonl"):
        if (folder / name).is_file():
            return open_examples(folder / name, problems=problems)
    files = sorted(file for file in folder.glob("*/*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise PaliglassError(
            f"{folder}: has no metadata.jsonl, metadata.csv or data.jsonl, and no folders of "
            "pictures named after what they show"
        )
    prompt = answer_prompt("what is this?")
    return [Example(file, prompt, file.parent.name.replace("_", " "), str(file)) for file in files]


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                yield f"{path}, line {number}", row
    except (UnicodeDecodeError, csv.Error) as error:
        raise PaliglassError(f"{path}: is no CSV in UTF-8 ({error})") from None


def _metadata(row: dict[str, Any], where: str, folder: Path) -> Example:
    name = row.get("file_name") or row.get("image")
    if not isinstance(name, str):
        raise PaliglassError(f"{where}: lacks file_name")
    if isinstance(row.get("prefix"), str) and isinstance(row.get("suffix"), str):
        return Example(folder / name, row["prefix"], row["suffix"], where)
    if not isinstance(row.get("text"), str):
        raise PaliglassError(f"{where}: lacks text, or prefix and suffix")
    return Example(folder / name, caption_prompt(), row["text"], where)
