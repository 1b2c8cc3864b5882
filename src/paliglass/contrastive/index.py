"""An index of embedded pictures: a folder is encoded once, then every search is one product.

One safetensors file: `images` (N × D) and `texts` (M × D), of unit length, and in its metadata
whose they are. A picture whose file has changed since (its time or size differs) is encoded again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from paliglass.contrastive.modeling_contrastive import ContrastiveModel
from paliglass.contrastive.processing import ContrastiveProcessor
from paliglass.errors import CheckpointError, PaliglassError, PictureError
from paliglass.files import require_readable
from paliglass.pictures import load_picture, picture_file
from paliglass.tensors import open_tensors, read_tensor, save_file

__all__ = ["Index", "Stamp", "build", "embed_pictures", "embed_words", "fingerprint", "stamp"]

Stamp = tuple[int, int]


@dataclass
class Index:
    """Embeddings with their names.

    model: fingerprint of the dual encoder that made them; names: the pictures' paths; stamps: of
    each file its time (ns) and size; images: N × D; words: texts; texts: M × D.
    """

    model: str
    names: list[str] = field(default_factory=list)
    stamps: list[Stamp] = field(default_factory=list)
    images: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    words: list[str] = field(default_factory=list)
    texts: Tensor = field(default_factory=lambda: torch.empty(0, 0))

    def save(self, path: Path) -> None:
        """Puts the file in place in one step. Raises OSError where there is no right to."""
        data = {"model": self.model, "names": self.names, "words": self.words}
        metadata = {"index": json.dumps({**data, "stamps": self.stamps})}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"images": self.images, "texts": self.texts}, path, metadata)

    @classmethod
    def load(cls, path: Path, model: str | None = None, width: int | None = None) -> Index:
        """Reads what `save` wrote.

        model, width: fingerprint and D of who is to search in it; another model's may differ.

        Raises PaliglassError where it is something else, or cannot be read.
        """
        require_readable(path)
        try:
            with open_tensors(path) as file:
                data = json.loads(file.metadata()["index"])
                images, texts = (read_tensor(file, name, path) for name in ("images", "texts"))
            stamps = [(int(time), int(size)) for time, size in data["stamps"]]
            index = cls(data["model"], data["names"], stamps, images, data["words"], texts)
            if not all(isinstance(t, str) for t in (index.model, *index.names, *index.words)):
                raise TypeError
        except (CheckpointError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise PaliglassError(f"{path}: is no index of paliglass; delete it") from error
        width = width if index.model == model else None
        for tensor, count in ((images, len(index.names)), (texts, len(index.words))):
            is_good = tensor.is_floating_point() and tensor.ndim == 2
            if not is_good or (count and width not in (None, tensor.shape[1])):
                raise PaliglassError(f"{path}: is an index of another shape; delete it")
            if len(tensor) != count:
                raise PaliglassError(f"{path}: names and embeddings differ in number; delete it")
        if len(stamps) != len(images):
            raise PaliglassError(f"{path}: names and embeddings differ in number; delete it")
        return index

    def search(self, query: Tensor, most: int) -> list[tuple[str, float]]:
        """The pictures nearest to a vector of D, best first, with their cosines."""
        if not self.names:
            return []
        if self.images.shape[1] != len(query):
            raise PaliglassError(
                f"the index has {self.images.shape[1]} numbers a picture, the text {len(query)}: "
                "they are of two models"
            )
        cosines = self.images @ query
        best = cosines.topk(min(most, len(self.names)))
        return [
            (self.names[i], score)
            for i, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def fingerprint(*folders: Path) -> str:
    """Tells checkpoints apart: by their checksums where they have them, else by files' stamps.

    folders: a model's, and that of an adapter.
    """
    known = hashlib.sha256()
    for folder in folders:
        for name in ("config.json", "adapter_config.json"):
            if (folder / name).is_file():
                known.update((folder / name).read_bytes())
        checksums = folder / "checksums.json"
        if checksums.is_file():
            known.update(checksums.read_bytes())
        else:
            for path in sorted(folder.glob("*.safetensors")):
                known.update(repr((path.name, *stamp(path))).encode())
    return known.hexdigest()


def stamp(path: str | Path) -> Stamp:
    """A file's time of change (ns) and size. Raises OSError."""
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size


@torch.inference_mode()
def embed_pictures(
    model: ContrastiveModel, processor: ContrastiveProcessor, images: Sequence[Image.Image]
) -> Tensor:
    """N pictures → N × D, of unit length, on the CPU."""
    pixels = torch.stack([processor.pixels(image) for image in images])
    return model.embed_images(pixels.to(model.device)).cpu()


@torch.inference_mode()
def embed_words(
    model: ContrastiveModel, processor: ContrastiveProcessor, texts: Sequence[str]
) -> Tensor:
    """M texts → M × D, of unit length, on the CPU."""
    words = processor.words(texts)
    return model.embed_texts(**{k: v.to(model.device) for k, v in words.items()}).cpu()


def build(
    fingerprint: str,
    names: Sequence[str],
    embed: Callable[[list[Image.Image]], Tensor],
    known: Index | None = None,
    *,
    batch_size: int = 32,
    load: Callable[[str], Image.Image] = load_picture,
    failed: Callable[[PictureError], None] | None = None,
    done: Callable[[int], None] | None = None,
) -> Index:
    """An index of picture files, in the order given.

    Args:
        fingerprint: the model's.
        names: the files, with a frame or page behind `#` where one is meant; see `load_picture`.
        embed: pictures → embeddings.
        known: an older index; what it holds of unchanged files is not computed again.
        batch_size: pictures that are encoded together.
        load: opens one, and raises PictureError.
        failed: told of each file that is no whole picture, and then left out; else that is raised.
        done: told how many more pictures there are.
    """
    old: dict[tuple[str, Stamp], Tensor] = {}
    if known is not None and known.model == fingerprint:
        keys = zip(known.names, known.stamps, strict=True)
        old = dict(zip(keys, known.images, strict=True))
    found: dict[str, tuple[Stamp, Tensor]] = {}
    new: list[tuple[str, Stamp, Image.Image]] = []

    def flush() -> None:
        if new:
            embeds = embed([image for _, _, image in new])
            for (name, stamp, _), row in zip(new, embeds, strict=True):
                found[name] = stamp, row
            if done is not None:
                done(len(new))
            new.clear()

    for name in names:
        stamp = _stamp_of(name)
        if (name, stamp) in old:
            found[name] = stamp, old[name, stamp]
            if done is not None:
                done(1)
            continue
        try:
            new.append((name, stamp, load(name)))
        except PictureError as error:
            if failed is None:
                raise
            failed(error)
        if len(new) == batch_size:
            flush()
    flush()
    kept = [name for name in names if name in found]
    images = torch.stack([found[name][1] for name in kept]) if kept else torch.empty(0, 0)
    return Index(fingerprint, kept, [found[name][0] for name in kept], images)


def _stamp_of(name: str) -> Stamp:
    """Of a picture's file; zeros without one, as behind a `data:` address or a wrong name."""
    try:
        return stamp(picture_file(name))
    except OSError:  # to open it tells why
        return 0, 0
