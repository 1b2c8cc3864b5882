"""Our ColPali and transformers' ColPaliForRetrieval: ids, pixels, vectors and scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.parity.reference_colpali import (
    QUERIES,
    pictures,
    reference_processor,
    their_pages,
    their_queries,
)
from tests.tiny import randomise, tiny_processor
from tests.tiny_colpali import adapter_folder, colpali_folder
from torch import Tensor

from paliglass.retrieval.folders import load_colpali, save_colpali
from paliglass.retrieval.index import embed_pages, embed_query
from paliglass.retrieval.modeling_colpali import ColPaliForRetrieval, late_interaction
from paliglass.retrieval.processing import ColPaliProcessor

TOLERANCE = {"rtol": 0.0, "atol": 1e-4}
GEMMA2 = {"model_type": "gemma2", "query_pre_attn_scalar": 16, "final_logit_softcapping": 3.0}


def published(theirs: Any, folder: Path) -> Path:
    """As transformers 5 saves it."""
    theirs.save_pretrained(folder)
    tiny_processor().tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def pair(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Any, ColPaliForRetrieval, ColPaliProcessor]:
    folder = colpali_folder(tmp_path_factory.mktemp("colpali") / "hf")
    theirs, info = transformers.ColPaliForRetrieval.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    return theirs.eval(), *load_colpali(folder, device="cpu")


@pytest.mark.parametrize("side", ["left", "right"])
def test_ids_of_queries(side: str) -> None:
    theirs = reference_processor(side).process_queries(QUERIES, padding_side=side)
    ours = ColPaliProcessor(tiny_processor()).queries(QUERIES)
    for row, _ in enumerate(QUERIES):
        ids = ours["input_ids"][row][ours["attention_mask"][row].bool()]
        assert torch.equal(ids, theirs["input_ids"][row][theirs["attention_mask"][row].bool()])
    if side == "left":
        assert torch.equal(ours["input_ids"], theirs["input_ids"])
    assert (theirs["token_type_ids"] == 0).all()  # every token sees every other


def test_ids_and_pixels_of_pages() -> None:
    theirs = reference_processor().process_images(pictures())
    ours = ColPaliProcessor(tiny_processor()).images(pictures())
    for key in ("input_ids", "attention_mask"):
        assert torch.equal(ours[key], theirs[key]), key
    torch.testing.assert_close(ours["pixel_values"], theirs["pixel_values"], atol=1e-6, rtol=0)


def test_vectors_of_pages(pair: tuple[Any, ColPaliForRetrieval, ColPaliProcessor]) -> None:
    theirs, ours, processor = pair
    vectors = embed_pages(ours, processor, pictures())
    torch.testing.assert_close(vectors, their_pages(theirs), **TOLERANCE)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(vectors.shape[:2]))


def test_vectors_of_padded_queries_and_of_each_alone(
    pair: tuple[Any, ColPaliForRetrieval, ColPaliProcessor],
) -> None:
    theirs, ours, processor = pair
    expected = their_queries(theirs)
    with torch.inference_mode():
        vectors = ours(**processor.queries(QUERIES))
    torch.testing.assert_close(vectors, expected, **TOLERANCE)
    for row, text in enumerate(QUERIES):
        alone = embed_query(ours, processor, text)
        torch.testing.assert_close(expected[row][-len(alone) :], alone, **TOLERANCE)


def test_scores(pair: tuple[Any, ColPaliForRetrieval, ColPaliProcessor]) -> None:
    theirs, ours, processor = pair
    pages = embed_pages(ours, processor, pictures())
    queries = [embed_query(ours, processor, text) for text in QUERIES]
    expected = reference_processor().score_retrieval(their_queries(theirs), their_pages(theirs))
    scores = torch.stack([late_interaction(query, pages) for query in queries])
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(
        scores, reference_processor().score_retrieval(queries, list(pages)), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("text", [{}, GEMMA2], ids=["gemma", "gemma2"])
def test_what_transformers_saves_is_read(text: dict[str, Any], tmp_path: Path) -> None:
    config = transformers.ColPaliConfig.from_pretrained(colpali_folder(tmp_path / "a", **text))
    theirs = transformers.ColPaliForRetrieval._from_config(config, attn_implementation="eager")
    randomise(theirs)
    ours, processor = load_colpali(published(theirs.eval(), tmp_path / "theirs"), device="cpu")
    torch.testing.assert_close(
        embed_pages(ours, processor, pictures()), their_pages(theirs), **TOLERANCE
    )


def test_transformers_reads_what_we_save(tmp_path: Path) -> None:
    base = colpali_folder(tmp_path / "base", "engine")
    ours, processor = load_colpali(
        adapter_folder(tmp_path / "adapter", base), device="cpu", fast=False
    )
    save_colpali(ours, tmp_path / "saved", processor)
    theirs, info = transformers.ColPaliForRetrieval.from_pretrained(
        tmp_path / "saved", output_loading_info=True
    )
    assert not any(info.values()), info
    their_processor = transformers.ColPaliProcessor.from_pretrained(tmp_path / "saved")
    with torch.inference_mode():
        expected = theirs.eval()(**their_processor.process_queries(QUERIES)).embeddings
        vectors = ours(**processor.queries(QUERIES))
    torch.testing.assert_close(vectors, expected, **TOLERANCE)
    torch.testing.assert_close(
        embed_pages(ours, processor, pictures()), their_pages(theirs), **TOLERANCE
    )


def test_an_adapter_is_merged_as_peft_does(tmp_path: Path) -> None:
    base = colpali_folder(tmp_path / "base", "engine")
    adapter = adapter_folder(tmp_path / "adapter", base)
    theirs = colpali_engine(colpali_folder(tmp_path / "hf"))
    peft = pytest.importorskip("peft")
    theirs = peft.PeftModel.from_pretrained(theirs, adapter).merge_and_unload()
    ours, processor = load_colpali(adapter, device="cpu")
    batch = reference_processor().process_images(pictures())
    del batch["labels"]
    with torch.inference_mode():
        expected = theirs(**batch)
    vectors = embed_pages(ours, processor, pictures())
    torch.testing.assert_close(vectors, expected, **TOLERANCE)
    before, _ = load_colpali(base, device="cpu")
    assert (embed_pages(before, processor, pictures()) - vectors).abs().max() > 0.01


def colpali_engine(folder: Path) -> torch.nn.Module:
    """What colpali-engine's ColPali is: a PaliGemma, and a layer of another name."""

    class ColPali(torch.nn.Module):
        def __init__(self, theirs: Any) -> None:
            super().__init__()
            language_model = torch.nn.ModuleDict({"model": theirs.vlm.language_model})
            self.model = torch.nn.ModuleDict({"language_model": language_model})
            self.custom_text_proj = theirs.embedding_proj_layer
            self.config = {"model_type": "custom"}
            self.whole = [theirs]  # not a submodule twice

        def forward(self, **batch: Tensor) -> Tensor:
            return self.whole[0](**batch).embeddings

    model = transformers.ColPaliForRetrieval.from_pretrained(folder, attn_implementation="eager")
    return ColPali(model.eval())
