"""Folders → examples: what tools export, and pictures sorted into folders by class.

    metadata.jsonl, .csv            Hugging Face's imagefolder, see `data.imagefolder`
    data.jsonl and kin              PaliGemma's lines; Roboflow's _annotations.train.jsonl
    _annotations.coco.json          Roboflow's COCO
    data.yaml, classes.txt          YOLO
    results.jsonl                   what `--out` of this package's tasks wrote
    train/, valid/, test/           splits, each of them one of these
    dog/, cat/                      pictures of each class → `answer en what is this?`

A folder that is none of these is refused: folders of tools and splits are no classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from paliglass.data import jsonl
from paliglass.data.coco import read_coco
from paliglass.data.example import Example, Findings
from paliglass.data.imagefolder import read_metadata
from paliglass.data.yolo import read_yolo
from paliglass.errors import PaliglassError
from paliglass.formats.records import read_json
from paliglass.pictures import SUFFIXES, UNREAD_SUFFIXES
from paliglass.tasks.prompts import answer_prompt

if TYPE_CHECKING:
    from paliglass.modeling_mask_codec import MaskCodec

__all__ = ["HELD_OUT", "TRAIN", "Split", "read_folder"]

Split = Literal["train", "held out", "all"]

TRAIN = ("train", "training")
HELD_OUT = ("valid", "validation", "val", "dev", "test", "testing")
# Words in the names of folders that tools make, as train2017 or test_images: no class is called so
# unless others with names of their own lie beside.
_TOOLS = frozenset(
    """images image img imgs jpegimages pictures photos labels annotations drawings masks samples
    dataset data set split crops segmentationclass segmentationobject imagesets mask label
    annotation ann anns dir gt groundtruth im frame frames raw input inputs target targets depth
    rgb""".split()
)
_ANNOTATIONS = (".json", ".jsonl", ".csv", ".xml", ".yaml", ".yml", ".parquet", ".tfrecord")
_HINT = (
    "give the annotation file itself (--images names its pictures' folder), or a folder with "
    "metadata.jsonl, metadata.csv, data.jsonl, _annotations.coco.json or data.yaml, or with "
    "folders of pictures named after what they show"
)


def read_folder(
    folder: Path, split: Split, task: str, codec: MaskCodec | None, findings: Findings
) -> Iterator[Example]:
    """The examples of a folder.

    split: which to read of a folder with several: "train", "held out" (the first there is of
    valid, val, test …), or "all". Raises PaliglassError for a folder that is none of the above.
    """
    reader = _reader(folder, split, task, codec, findings)
    if reader is not None:
        yield from reader
        return
    splits = _splits(folder)
    if splits:
        for part in _chosen(folder, splits, split):
            yield from read_folder(part, split, task, codec, findings)
        return
    yield from _classes(folder, findings)


def _reader(
    folder: Path, split: Split, task: str, codec: MaskCodec | None, findings: Findings
) -> Iterator[Example] | None:
    """What reads the annotation file of a folder, if it has one that is known."""

    def has(name: str) -> bool:
        return (folder / name).is_file()

    for name in ("metadata.jsonl", "metadata.csv"):
        if has(name):
            return read_metadata(folder / name, findings)
    for name in ("data.jsonl", "annotations.jsonl", "_annotations.jsonl"):
        if has(name):
            return jsonl.read_examples(folder / name, findings)
    of_splits = {
        name: file
        for name in (*TRAIN, *HELD_OUT)
        for file in (folder / f"{name}.jsonl", folder / f"_annotations.{name}.jsonl")
        if file.is_file()
    }
    if of_splits:
        files = _chosen(folder, of_splits, split)
        return (e for file in files for e in jsonl.read_examples(file, findings))
    if has("_annotations.coco.json"):
        path = folder / "_annotations.coco.json"
        return read_coco(path, read_json(path), folder, task, codec, findings)
    if has("results.jsonl"):
        return jsonl.read_results(folder / "results.jsonl", findings, codec)
    for name in ("data.yaml", "data.yml"):
        if has(name):
            parts = {
                "train": ["train"],
                "held out": ["val", "test"],
                "all": ["train", "val", "test"],
            }
            return read_yolo(folder / name, parts[split], task, codec, findings)
    if has("classes.txt") and (folder / "images").is_dir() and (folder / "labels").is_dir():
        return read_yolo(folder / "classes.txt", (), task, codec, findings)
    return None


def _visible(folder: Path) -> list[Path]:
    """What lies in a folder, but for what systems and editors hide there."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise PaliglassError(f"{folder}: cannot be read ({error.strerror})") from None
    return [e for e in entries if not e.name.startswith(".") and e.name != "__MACOSX"]


def _splits(folder: Path) -> dict[str, Path]:
    """Split → its folder, where all folders are named like splits (or like tools' own)."""
    folders = [entry for entry in _visible(folder) if entry.is_dir()]
    splits = {e.name.lower(): e for e in folders if e.name.lower() in (*TRAIN, *HELD_OUT)}
    others = [e for e in folders if e not in splits.values() and not _is_tools(e.name)]
    if splits and not others:
        return splits
    return {name: f for name, f in splits.items() if _reader_name(f)} if splits else {}


def _is_tools(name: str) -> bool:
    """Whether a folder's name is made of the words that tools use, and of figures.

    A split of a set of two domains has one of the letters A and B behind it: trainA, test_b.
    """
    name = re.sub(rf"(?<![^\W_])({'|'.join((*TRAIN, *HELD_OUT))})_?[ab]$", r"\1", name.lower())
    words = re.findall(r"[^\W\d_]+", name)
    return bool(words) and all(word in (*TRAIN, *HELD_OUT, *_TOOLS) for word in words)


def _reader_name(folder: Path) -> str | None:
    """The first file in a folder that looks like annotations."""
    names = (entry.name for entry in _visible(folder) if entry.is_file())
    return next((name for name in names if name.lower().endswith(_ANNOTATIONS)), None)


def _text_beside(files: list[Path]) -> str | None:
    """A text file that belongs to a picture: a caption, or YOLO's labels."""
    texts = (file.with_suffix(".txt") for file in files)
    return next((text.name for text in texts if text.is_file()), None)


def _chosen(folder: Path, splits: dict[str, Path], split: Split) -> list[Path]:
    """Those to be read, in the order of `TRAIN` and `HELD_OUT`."""
    known = {"train": TRAIN, "held out": HELD_OUT, "all": (*TRAIN, *HELD_OUT)}[split]
    found = [splits[name] for name in known if name in splits]
    if not found:
        raise PaliglassError(
            f"{folder}: has no {split} split, but {', '.join(splits)}; name the one to read, as "
            f"{next(iter(splits.values()))}"
        )
    return found if split == "all" else found[:1]


def _classes(folder: Path, findings: Findings) -> Iterator[Example]:
    prompt = answer_prompt("what is this?")
    classes: dict[str, list[Path]] = {}
    for entry in _visible(folder):
        if entry.is_dir():
            visible = _visible(entry)
            for file in visible:
                if file.suffix.lower() in UNREAD_SUFFIXES:
                    findings.left_out(str(file), "is a picture of a format that is not read")
            files = [file for file in visible if file.suffix.lower() in SUFFIXES]
            if files:
                classes[entry.name] = files
    if not classes:
        annotations = _reader_name(folder)
        found = (
            f"holds {annotations}, which is not known here" if annotations else "has no examples"
        )
        raise PaliglassError(f"{folder}: {found}; {_HINT}")
    for name, files in classes.items():
        beside = _reader_name(folder / name) or _text_beside(files)
        if beside is not None:
            raise PaliglassError(
                f"{folder / name}: holds {beside} beside pictures, so {name!r} is no class; {_HINT}"
            )
    if all(map(_is_tools, classes)):
        raise PaliglassError(f"{folder}: {', '.join(classes)} are no classes; {_HINT}")
    if len(classes) == 1:
        findings.odd(str(folder), f"has one class only, {next(iter(classes))!r}")
    for name, files in classes.items():
        for file in files:
            yield Example((file,), prompt, name.replace("_", " "), str(file))
