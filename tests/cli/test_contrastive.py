"""embed, search, classify, similarity on a tiny random dual encoder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tests.cli.helpers import Result, picture
from tests.tiny import tiny_tokenizer
from tests.tiny_dual import CONFIGS, dual_model

from paliglass.contrastive.folders import load_contrastive, save_contrastive
from paliglass.contrastive.index import Index, embed_pictures, embed_words

Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("dual")
    for name in ("siglip", "resnet-cbow-clip"):
        save_contrastive(dual_model(CONFIGS[name]), base / name, tiny_tokenizer())
    return {name: base / name for name in ("siglip", "resnet-cbow-clip")}


@pytest.fixture(autouse=True)
def default_model(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIGLASS_DUAL_MODEL", str(folders["siglip"]))


@pytest.fixture
def photos() -> Path:
    for colour in ("red", "lime", "blue"):
        picture(f"photos/{colour}.png", colour)
    return Path("photos")


def test_embed_writes_pictures_and_texts(cli: Cli, photos: Path, folders: dict[str, Path]) -> None:
    result = cli("embed", photos, "--out", "x.safetensors", "-t", "a dog", "-t", "a cat")
    assert result == (0, "x.safetensors: 3 pictures and 2 texts, 32 numbers each\n", "")
    index = Index.load(Path("x.safetensors"))
    model, processor = load_contrastive(folders["siglip"])
    images = [Image.open(name).convert("RGB") for name in index.names]
    expected = embed_pictures(model, processor, images)
    assert (index.images - expected).abs().max() < 1e-6
    expected = embed_words(model, processor, ["a dog", "a cat"])
    assert (index.texts - expected).abs().max() < 1e-6


def test_search_gives_the_best_first_and_keeps_its_index(cli: Cli, photos: Path) -> None:
    first = cli("search", photos, "a dog", "--json")
    assert first.code == 0
    records = first.records()
    assert {record["file"] for record in records} == set(map(str, photos.iterdir())) - {
        "photos/.paliglass"
    }
    scores = [record["score"] for record in records]
    assert scores == sorted(scores, reverse=True)
    index = photos / ".paliglass" / "index.safetensors"
    before = index.stat()
    assert first.err.startswith(f"note: the index is kept in {index}; ")
    assert cli("search", photos, "a dog", "--json") == (0, first.out, "")
    assert index.stat().st_mtime_ns == before.st_mtime_ns
    assert cli("search", photos, "a dog", "--top", "1").out == (
        f"{scores[0]:.3f}\t{records[0]['file']}\n"
    )


def test_search_sees_what_has_changed(
    cli: Cli, photos: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def scores(*options: object) -> dict[str, float]:
        found = cli("search", photos, "a dog", "--json", "--index", "kept", *options)
        return {Path(record["file"]).name: record["score"] for record in found.records()}

    first = scores()
    picture(photos / "red.png", "blue")
    os.utime(photos / "red.png", ns=(1, 1))
    picture(photos / "new.png", "blue")
    (photos / "lime.png").unlink()
    second = scores()
    assert second.keys() == {"red.png", "blue.png", "new.png"}
    assert second["red.png"] == second["new.png"] == second["blue.png"] == first["blue.png"]
    assert first["red.png"] != first["blue.png"]
    other = scores("--model", folders["resnet-cbow-clip"])
    assert other.keys() == second.keys()
    assert other != second


def test_classify_orders_the_labels(cli: Cli, photos: Path, folders: dict[str, Path]) -> None:
    result = cli(
        "classify", photos, "dog ; cat ;; dog", "--json", "-m", folders["resnet-cbow-clip"]
    )
    assert result.code == 0
    assert len(result.records()) == 3
    for record in result.records():
        assert record["labels"].keys() == {"dog", "cat"}
        values = list(record["labels"].values())
        assert values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1, abs=1e-5)
    one = cli("classify", photos / "red.png", "dog;cat", "--template", "a {}")
    assert one.code == 0
    assert one.out.count(",") == 1
    assert "\t" not in one.out


def test_similarity_prints_and_draws(cli: Cli, photos: Path) -> None:
    texts = ["-t", "a dog", "-t", "a cat"]
    result = cli("similarity", photos, *texts, "--json", "--out", "matrix.png")
    assert result.code == 0
    assert [Path(record["file"]).name for record in result.records()] == [
        *("blue.png", "lime.png", "red.png")
    ]
    assert all(-1 <= v <= 1 for r in result.records() for v in r["texts"].values())
    with Image.open("matrix.png") as drawn:
        assert drawn.width > 2 * 96
        assert drawn.height > 3 * 96
    table = cli("similarity", photos, *texts).out
    assert f"{result.records()[0]['texts']['a dog']:.3f}" in table


@pytest.mark.parametrize(
    "command",
    [
        ("embed", "photos", "--out", "x"),
        ("search", "photos", "a dog"),
        ("classify", "photos", "dog"),
        ("similarity", "photos", "--text", "a dog"),
    ],
)
def test_a_broken_picture_is_named_and_the_others_go_on(
    cli: Cli, photos: Path, command: tuple[str, ...]
) -> None:
    (photos / "red.png").write_bytes(b"")
    result = cli(*command)
    assert result.code == 1
    assert "error: photos/red.png: is empty" in result.err
    assert "1 of 3 pictures could not be read" in result.err
    assert result.out


@pytest.mark.parametrize(
    ("command", "code", "problem"),
    [
        (("search", "nowhere", "a dog"), 1, "nowhere: is no folder"),
        (("classify", "dog ; cat"), 2, "give pictures, then the labels"),
        (("classify", "photos", " ; "), 2, "give pictures, then the labels"),
        (("similarity", "photos"), 2, "give the texts"),
        (("classify", "photos", "dog", "-m", "nothing"), 1, "nothing: no such folder"),
        (("classify", "photos", "dog", "--template", "x"), 1, "has no {}"),
    ],
)
def test_bad_usage(
    cli: Cli, photos: Path, command: tuple[str, ...], code: int, problem: str
) -> None:
    result = cli(*command)
    assert result.code == code
    assert problem in result.err
