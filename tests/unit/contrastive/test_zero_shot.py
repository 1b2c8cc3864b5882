"""Zero-shot classification, retrieval, and the picture of a similarity matrix."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from tests.tiny import noise_picture, tiny_tokenizer
from tests.tiny_dual import CONFIGS, dual_model
from torch.nn import functional as F

from paliglass.contrastive.drawing import CELL, similarity_picture
from paliglass.contrastive.processing import ContrastiveProcessor
from paliglass.contrastive.zero_shot import classify, embed_labels, retrieval_recall
from paliglass.errors import PromptError

PICTURES = [noise_picture(seed=seed) for seed in range(3)]
LABELS = ["dog", "cap", "en"]


def processor() -> ContrastiveProcessor:
    return ContrastiveProcessor(tiny_tokenizer(), 32, 12)


def test_clip_shares_out_one_and_siglip_judges_each_label_alone() -> None:
    clip = dual_model(CONFIGS["vit-transformer-clip"])
    results = classify(clip, processor(), PICTURES, LABELS)
    assert [set(row) for row in results] == [set(LABELS)] * 3
    for row in results:
        assert sum(row.values()) == pytest.approx(1)
        assert list(row.values()) == sorted(row.values(), reverse=True)

    siglip = dual_model(CONFIGS["vit-transformer-siglip"])
    together = classify(siglip, processor(), PICTURES, LABELS)
    alone = classify(siglip, processor(), PICTURES, ["cap"])
    for row, single in zip(together, alone, strict=True):
        assert row["cap"] == pytest.approx(single["cap"])
    assert sum(together[0].values()) != pytest.approx(1, abs=1e-3)


def test_the_probabilities_are_those_of_the_logits() -> None:
    model = dual_model(CONFIGS["vit-transformer-clip"])
    (row,) = classify(model, processor(), PICTURES[:1], LABELS, ["a {}"])
    words = processor().words([f"a {label}" for label in LABELS])
    with torch.inference_mode():
        images = model.embed_images(processor().pixels(PICTURES[0])[None])
        expected = model.logits(images, model.embed_texts(**words)).softmax(-1)[0]
    torch.testing.assert_close(torch.tensor([row[label] for label in LABELS]), expected)


def test_a_labels_vector_is_the_mean_of_its_templates() -> None:
    model = dual_model(CONFIGS["vit-transformer-clip"])
    single = [embed_labels(model, processor(), LABELS, [t]) for t in ("{}", "a {}")]
    both = embed_labels(model, processor(), LABELS, ["{}", "a {}"])
    torch.testing.assert_close(both, F.normalize(single[0] + single[1], dim=-1))


def test_classification_needs_labels_and_braces() -> None:
    model = dual_model(CONFIGS["vit-cbow-clip"])
    with pytest.raises(PromptError, match="at least one label"):
        classify(model, processor(), PICTURES, [])
    with pytest.raises(PromptError, match=r"no \{\} for the label"):
        classify(model, processor(), PICTURES, LABELS, ["a picture"])
    assert classify(model, processor(), [], LABELS) == []


def test_recall_by_hand() -> None:
    """Picture 0 finds its text first; 1 finds it second; 2 finds it last."""
    texts = torch.eye(3)
    images = torch.tensor([[0.9, 0.4, 0.1], [0.8, 0.6, 0.0], [0.7, 0.5, 0.2]])
    assert [retrieval_recall(images, texts, k) for k in (1, 2, 3, 9)] == pytest.approx(
        [1 / 3, 2 / 3, 1, 1]
    )
    assert retrieval_recall(texts, images, 1) == 1  # columns: .9, .6 and .2 are the largest


def test_equal_captions_are_as_right_as_ones_own() -> None:
    texts = torch.eye(3)
    images = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert retrieval_recall(images, texts, 1) == pytest.approx(1 / 3)
    assert retrieval_recall(images, texts, 1, same=["a dog", "a dog", "a cat"]) == 1


def colours(picture: Image.Image, column: int, row: int, rows: int) -> tuple[object, object]:
    """The colours of a cell: near its corner, and of its frame."""
    step = CELL + 2
    x = 2 + step * (column + 1)
    y = picture.height - 2 - step * (rows - row)
    return picture.getpixel((x + 8, y + 8)), picture.getpixel((x, y))


def test_the_matrix_is_drawn_with_its_diagonal_framed() -> None:
    values = torch.tensor([[0.9, 0.1], [-0.2, 0.8]])
    drawn = similarity_picture(PICTURES[:2], ["a dog", "a very long text " * 20], values)
    fills = {(i, j): colours(drawn, j, i, 2) for i in range(2) for j in range(2)}
    assert fills[0, 0][0] == (24, 92, 160)  # the largest is the darkest
    assert fills[1, 0][0] == (247, 249, 252)
    for (i, j), (fill, edge) in fills.items():
        assert (edge != fill) == (i == j)
    thumbnail = drawn.crop((2, drawn.height - 100, 98, drawn.height - 4))
    assert len(thumbnail.getcolors(10_000) or []) > 100


def test_the_given_pictures_are_not_changed_and_need_not_be_pairs() -> None:
    picture = noise_picture(300, 200)
    drawn = similarity_picture([picture], ["a", "b"], [[0.5, 0.5]])
    assert picture.size == (300, 200)
    fill, edge = colours(drawn, 0, 0, 1)
    assert fill == edge  # no pair, no frame


@pytest.mark.parametrize("values", [[[1.0]], [[1.0, 2.0, 3.0]] * 2, []])
def test_a_matrix_of_another_shape_is_refused(values: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="must be 2 × 2"):
        similarity_picture(PICTURES[:2], ["a", "b"], values)
