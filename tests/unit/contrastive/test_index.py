"""An index is made once; only what has changed is encoded again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from paliglass.contrastive.index import Index, build, fingerprint
from paliglass.errors import PaliglassError, PictureError


class Encoder:
    """Embeds a picture as its mean colour, and counts what it was given."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: list[Image.Image]) -> Tensor:
        self.seen += len(images)
        colours = torch.tensor([image.resize((1, 1)).getpixel((0, 0)) for image in images]).float()
        return colours / colours.norm(dim=-1, keepdim=True)


@pytest.fixture
def names(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{colour}.png" for colour in ("red", "lime", "blue")]
    for path in paths:
        Image.new("RGB", (4, 4), path.stem).save(path)
    return list(map(str, paths))


def test_search_gives_the_nearest_first(names: list[str]) -> None:
    index = build("m", names, Encoder())
    query = torch.tensor([0.6, 0.0, 0.8])
    assert index.search(query, 2) == [
        (names[2], pytest.approx(0.8)),
        (names[0], pytest.approx(0.6)),
    ]
    assert len(index.search(query, 99)) == 3


def test_only_new_and_changed_pictures_are_encoded(names: list[str], tmp_path: Path) -> None:
    build("m", names[:2], Encoder()).save(tmp_path / "index")
    known = Index.load(tmp_path / "index")
    Image.new("RGB", (5, 5), "white").save(names[1])
    os.utime(names[1], ns=(1, 1))
    encoder = Encoder()
    index = build("m", [names[2], names[1], names[0]], encoder, known, batch_size=1)
    assert encoder.seen == 2
    assert index.names == [names[2], names[1], names[0]]
    assert index.images[1].tolist() == pytest.approx([3**-0.5] * 3)
    assert index.images[2].tolist() == [1, 0, 0]
    encoder = Encoder()
    build("another model", names, encoder, known)
    assert encoder.seen == 3


def test_broken_pictures_are_told_and_left_out(names: list[str]) -> None:
    Path(names[0]).write_bytes(b"no")
    os.unlink(names[2])
    problems: list[str] = []
    index = build("m", names, Encoder(), failed=lambda error: problems.append(str(error)))
    assert index.names == [names[1]]
    assert sorted(problems) == sorted(
        [f"{names[0]}: is not a picture", f"{names[2]}: no such file"]
    )
    with pytest.raises(PictureError, match="is not a picture"):
        build("m", names, Encoder())


def test_saved_is_loaded(names: list[str], tmp_path: Path) -> None:
    index = build("m", names, Encoder())
    index.words, index.texts = ["ä", "b"], torch.eye(2, 3)
    index.save(tmp_path / "new" / "index")
    loaded = Index.load(tmp_path / "new" / "index")
    assert (loaded.model, loaded.names, loaded.stamps) == ("m", names, index.stamps)
    assert loaded.words == ["ä", "b"]
    assert torch.equal(loaded.images, index.images)
    assert torch.equal(loaded.texts, index.texts)
    assert os.listdir(tmp_path / "new") == ["index"]


@pytest.mark.parametrize("content", [b"", b"no index", b"\x02\0\0\0\0\0\0\0{}"])
def test_what_is_no_index_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "index").write_bytes(content)
    with pytest.raises(PaliglassError, match="is no index of paliglass"):
        Index.load(tmp_path / "index")


@pytest.mark.parametrize(
    "changes",
    [
        {"images": torch.zeros(3)},
        {"images": torch.zeros(3, 3, 1)},
        {"images": torch.zeros(3, 4)},
        {"images": torch.zeros(2, 3)},
        {"images": torch.zeros(3, 3, dtype=torch.int64)},
        {"images": torch.full((3, 3), float("nan"))},
        {"texts": torch.zeros(1, 3)},
        {"texts": torch.zeros(0)},
    ],
)
def test_an_index_of_another_shape_is_refused(
    names: list[str], tmp_path: Path, changes: dict[str, Tensor]
) -> None:
    build("m", names, Encoder()).save(tmp_path / "index")
    assert Index.load(tmp_path / "index", "m", 3).names == names
    with safe_open(tmp_path / "index", "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in ("images", "texts")}
    save_file(tensors | changes, tmp_path / "index", metadata)
    with pytest.raises(PaliglassError, match=r"index: .*; delete it$"):
        Index.load(tmp_path / "index", "m", 3)


def test_an_unreadable_index_is_not_called_none(
    names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build("m", names, Encoder()).save(tmp_path / "index")

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PaliglassError, match=r"index: cannot be read \(Permission denied\)"):
        Index.load(tmp_path / "index")


def test_an_empty_index_finds_nothing() -> None:
    assert Index("m").search(torch.ones(3), 5) == []


def test_a_text_of_another_model_is_refused(names: list[str]) -> None:
    with pytest.raises(PaliglassError, match="they are of two models"):
        build("m", names, Encoder()).search(torch.ones(4), 5)


def test_a_fingerprint_tells_weights_apart(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"1")
    first = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"12")
    assert fingerprint(tmp_path) != first
    (tmp_path / "checksums.json").write_text("{}")
    by_sums = fingerprint(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert fingerprint(tmp_path) == by_sums
