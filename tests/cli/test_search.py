"""search with ColPali: pages of documents, an index in a folder, heat maps."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.cli.helpers import Result, picture
from tests.tiny import tiny_tokenizer
from tests.tiny_colpali import adapter_folder, colpali_folder
from tests.tiny_dual import dual_model

from paliglass.contrastive.folders import save_contrastive
from paliglass.retrieval import load_colpali
from paliglass.retrieval.index import embed_pages, embed_query
from paliglass.retrieval.modeling_colpali import late_interaction

Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def colpali(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colpali_folder(tmp_path_factory.mktemp("colpali") / "hf")


@pytest.fixture(autouse=True)
def default_model(colpali: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIGLASS_DUAL_MODEL", str(colpali))


@pytest.fixture
def docs() -> Path:
    """A PDF of two pages, and two pictures."""
    pytest.importorskip("pypdfium2")
    pages = [Image.new("RGB", (90, 120), colour) for colour in ("red", "white")]
    Path("docs").mkdir()
    pages[0].save("docs/report.pdf", save_all=True, append_images=pages[1:])
    picture("docs/lime.png", "lime")
    picture("docs/navy.jpg", "navy")
    return Path("docs")


def names(result: Result) -> set[tuple[str, int | None]]:
    return {(record["file"], record.get("page")) for record in result.records()}


EVERY = {
    *(("docs/report.pdf", 1), ("docs/report.pdf", 2)),
    *(("docs/lime.png", None), ("docs/navy.jpg", None)),
}


def test_pages_come_with_the_models_own_scores(cli: Cli, docs: Path, colpali: Path) -> None:
    result = cli("search", docs, "a dog", "--json")
    assert result.code == 0
    assert names(result) == EVERY
    model, processor = load_colpali(colpali)
    query = embed_query(model, processor, "a dog")
    scores = []
    for record in result.records():
        name = record["file"] + (f"#{record['page']}" if "page" in record else "")
        expected = late_interaction(query, embed_pages(model, processor, [name]))
        assert record["score"] == pytest.approx(expected.item(), abs=0.01)
        scores.append(record["score"])
    assert scores == sorted(scores, reverse=True)
    best = result.records()[0]
    assert cli("search", docs, "a dog", "-n", "1").out == "{:.3f}\t{}\n".format(
        best["score"], best["file"] + (f"#{best['page']}" if "page" in best else "")
    )


def test_the_index_is_kept_and_only_changes_are_embedded(
    cli: Cli, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cli("search", docs, "a dog", "--json")
    [index] = (docs / ".paliglass").iterdir()
    assert first.err == (f"note: the index is kept in {index}; --index FOLDER keeps it elsewhere\n")
    assert len(list(index.iterdir())) == 1
    embedded: list[int] = []
    real = embed_pages
    monkeypatch.setattr(
        "paliglass.retrieval.index.embed_pages",
        lambda model, processor, images: (
            embedded.append(len(images)) or real(model, processor, images)
        ),
    )
    assert cli("search", docs, "a dog", "--json") == (0, first.out, "")
    assert embedded == []
    picture(docs / "lime.png", "blue")
    os.utime(docs / "lime.png", ns=(1, 1))
    picture(docs / "new.png", "blue")
    second = cli("search", docs, "a dog", "--json")
    assert embedded == [2]
    assert names(second) == {*EVERY, ("docs/new.png", None)}
    assert cli("search", docs / "report.pdf", "a dog", "--json").err == ""  # its folder's index
    assert embedded == [2]


def test_a_single_document_is_searched_alone(cli: Cli, docs: Path) -> None:
    result = cli("search", docs / "report.pdf", "a dog", "--json", "--index", "kept")
    assert names(result) == {("docs/report.pdf", 1), ("docs/report.pdf", 2)}
    assert len(list(Path("kept").iterdir())) == 1
    assert not (docs / ".paliglass").exists()


def test_drawings_show_the_page_below_its_heat(cli: Cli, docs: Path) -> None:
    result = cli("search", docs, "a dog", "--json", "--out", "found")
    drawn = {record["drawing"] for record in result.records()}
    assert drawn == {str(path) for path in Path("found").iterdir()}
    assert len(drawn) == 4
    for record in result.records():
        with Image.open(record["drawing"]) as image:
            pixels = np.asarray(image).astype(int)
        if record["file"].endswith("navy.jpg"):
            assert image.size == (40, 30)
            # Some of it is as it was, some is tinted, and blue is left everywhere.
            assert np.abs(pixels - [0, 0, 128]).sum(-1).min() < 12
            assert pixels[..., 0].max() > 100
            assert pixels[..., 2].min() >= 128 * 0.4 - 4
    assert cli("search", docs, "a dog", "--out", "found").code == 1
    assert cli("search", docs, "a dog", "--out", "found", "--overwrite").code == 0
    inside = cli("search", docs, "a dog", "--recursive", "--out", docs / "found")
    assert inside.code == 1
    assert "would be taken for documents" in inside.err
    assert cli("search", docs, "a dog", "--out", docs, "--overwrite").err == (
        inside.err.replace("docs/found", "docs")
    )
    assert cli("search", docs, "a dog", "--out", docs / "found").code == 0


def test_int8_and_the_other_layouts_find_too(cli: Cli, docs: Path) -> None:
    engine = colpali_folder(Path("engine"), "engine")
    adapter = adapter_folder(Path("adapter"), engine.absolute())
    indices = []
    for model in (engine, adapter):
        result = cli("search", docs, "a dog", "--json", "-m", model, "--quantize", "int8")
        assert result.code == 0, result.err
        assert names(result) == EVERY
        indices.append({path.name for path in (docs / ".paliglass").iterdir()})
    assert len(indices[1] - indices[0]) == 1  # an adapter's vectors are not its base's


def test_convert_writes_a_colpali_in_int8(cli: Cli, docs: Path) -> None:
    base = colpali_folder(Path("engine"), "engine")
    adapter = adapter_folder(Path("adapter"), base.absolute())
    assert cli("convert", adapter, "small", "--quantize", "int8").code == 0
    assert not Path("small/adapter_config.json").exists()
    at_once = cli("search", docs, "a dog", "--json", "-m", adapter, "--quantize", "int8")
    assert cli("search", docs, "a dog", "--json", "-m", "small").out == at_once.out
    refused = cli("convert", adapter, "other", "--set", "rope_theta=1")
    assert refused.code == 2
    assert "adapter is a ColPali" in refused.err


def test_broken_pages_are_named_and_the_others_found(cli: Cli, docs: Path) -> None:
    (docs / "lime.png").write_bytes(b"")
    (docs / "broken.pdf").write_bytes(b"%PDF-1.4")
    result = cli("search", docs, "a dog", "--json")
    assert result.code == 1
    assert names(result) == EVERY - {("docs/lime.png", None)}
    assert "error: docs/lime.png: is empty" in result.err
    assert "error: docs/broken.pdf: cannot be read" in result.err
    assert "2 of 5 pages could not be read" in result.err


def test_a_folder_without_documents_is_named(cli: Cli) -> None:
    Path("empty").mkdir()
    result = cli("search", "empty", "a dog")
    assert (result.code, result.out) == (1, "")
    assert "empty: holds neither pictures nor PDFs" in result.err


def test_a_stopped_run_goes_on(cli: Cli, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = embed_pages
    calls: list[int] = []

    def interrupted(model: object, processor: object, images: list[Image.Image]) -> torch.Tensor:
        if calls:
            raise KeyboardInterrupt
        calls.append(len(images))
        return real(model, processor, images)  # type: ignore[arg-type]

    monkeypatch.setattr("paliglass.retrieval.index.embed_pages", interrupted)
    assert cli("search", docs, "a dog", "--batch-size", "3").code == 130
    embedded: list[int] = []
    monkeypatch.setattr(
        "paliglass.retrieval.index.embed_pages",
        lambda model, processor, images: (
            embedded.append(len(images)) or real(model, processor, images)
        ),
    )
    assert len(cli("search", docs, "a dog", "--json").records()) == 4
    assert embedded == [1]


@pytest.mark.parametrize(
    ("command", "code", "problem"),
    [
        (("search", "nowhere", "a dog"), 1, "nowhere: is no folder and no file"),
        (("search", "docs", " "), 2, "the query is empty"),
        (("search", "docs", "a dog", "--index", "docs/lime.png"), 1, "ColPali's index is a folder"),
        (("search", "docs", "a dog", "-m", "mini"), 1, "is a PaliGemma and no ColPali"),
        (("search", "docs", "a dog", "-m", "docs"), 1, "docs: there is no config.json"),
        (("search", "docs", "a dog", "-m", "dual", "--out", "x"), 2, "--out is for ColPali"),
        (("search", "docs", "a dog", "-m", "dual", "--quantize", "int8"), 2, "is for ColPali"),
        (("search", "docs/report.pdf", "a dog", "-m", "dual"), 1, "searches single documents too"),
        (("search", "docs", "a dog", "-m", "dual", "--index", "docs"), 1, "index is a file"),
        (("caption", "docs/lime.png", "-m", "colpali"), 1, "is a ColPali, which finds pages"),
        (("info", "colpali"), 1, "`paliglass search DOCUMENTS TEXT"),
        (("embed", "docs", "--out", "x", "-m", "colpali"), 1, "model_type is 'colpali'"),
    ],
)
def test_bad_usage(
    cli: Cli, docs: Path, colpali: Path, command: tuple[str, ...], code: int, problem: str
) -> None:
    save_contrastive(dual_model(), Path("dual"), tiny_tokenizer())
    Path("colpali").symlink_to(colpali)
    result = cli(*command)
    assert result.code == code, result.err
    assert problem in result.err
    assert result.out == ""


def test_another_models_index_is_refused(cli: Cli, docs: Path) -> None:
    assert cli("search", docs, "a dog", "--index", "kept").code == 0
    other = colpali_folder(Path("other"), seed=1)
    result = cli("search", docs, "a dog", "--index", "kept", "-m", other)
    assert result.code == 1
    assert "is the index of another model" in result.err
    assert cli("search", docs, "a dog", "-m", other).code == 0  # in a folder of its own


def test_a_dual_encoder_says_that_it_leaves_pdfs_out(cli: Cli, docs: Path) -> None:
    save_contrastive(dual_model(), Path("dual"), tiny_tokenizer())
    result = cli("search", docs, "a dog", "--json", "-m", "dual")
    assert result.code == 0
    assert names(result) == {("docs/lime.png", None), ("docs/navy.jpg", None)}
    assert (
        "1 PDF is left out: only ColPali finds pages: --model vidore/colpali-v1.3-hf" in result.err
    )


@pytest.mark.parametrize("name", ["report.pdf", "picture.heic", None])
def test_where_there_is_no_picture_nothing_is_kept(cli: Cli, docs: Path, name: str | None) -> None:
    save_contrastive(dual_model(), Path("dual"), tiny_tokenizer())
    folder = Path("without")
    folder.mkdir()
    if name is not None:
        (folder / name).write_bytes(b"%PDF-1.7")
    result = cli("search", folder, "a dog", "-m", "dual")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: without: ")
    assert not (folder / ".paliglass").exists()
