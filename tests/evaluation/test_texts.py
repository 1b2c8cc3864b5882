"""Text metrics against hand-made and reference values."""

from __future__ import annotations

import pytest

from paliglass.evaluation.texts import (
    anls,
    character_errors,
    cider,
    exact,
    normalize_vqa,
    vqa_accuracy,
    word_errors,
)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The two  Dogs", "2 dogs"),
        ("dont know", "don't know"),
        ("yes, it is!", "yes it is"),
        ("couldnt've couldn'tve", "couldn't've couldn't've"),
        ("twas yall'd've", "'twas y'all'd've"),
        ("lets somebody'd", "lets somebodyd"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("black/white", "black white"),
        ("a.m.", "am"),
        ("none", "0"),
    ],
)
def test_answers_are_compared_as_vqa_does(answer: str, expected: str) -> None:
    assert normalize_vqa(answer) == expected


@pytest.mark.parametrize(("agree", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0)])
def test_vqa_accuracy_is_the_published_one(agree: int, expected: float) -> None:
    # Of ten people `agree` say so; each is left out in turn: .3, .6, .9 and 1 as published.
    answers = ["red"] * agree + [f"other {i}" for i in range(10 - agree)]
    assert vqa_accuracy("Red.", answers) == pytest.approx(expected)


def test_vqa_accuracy_of_fewer_answers() -> None:
    assert vqa_accuracy("a dog", ["dog"]) == 1
    assert vqa_accuracy("cat", ["dog"]) == 0
    assert vqa_accuracy("dog", ["dog", "dog"]) == 1


def test_anls_by_hand() -> None:
    assert anls("Walk", ["walk", "run"]) == 1
    assert anls("wakl", ["walk"]) == 0  # two of four characters: half is too much
    assert anls("walks", ["walk"]) == pytest.approx(0.8)
    assert anls("xyz", ["walk"]) == 0


def test_errors_are_counted_from_the_nearest_answer() -> None:
    assert character_errors("SHOP", ["STOP"]) == (1, 4)
    assert character_errors("", ["AB", "A"]) == (1, 1)
    assert word_errors("the cat sat", ["the cat sat down", "a dog"]) == (1, 4)
    assert exact(" a dog ", ["a dog"]) == 1
    assert exact("A dog", ["a dog"]) == 0


def test_word_errors_are_the_published_example() -> None:
    # jiwer's own: "hello world" heard as "hello duck" has a word error rate of 0.5.
    wrong, length = word_errors("hello duck", ["hello world"])
    assert wrong / length == 0.5


def test_cider_is_the_reference_implementations() -> None:
    answers = [
        ["a dog runs on the green grass", "a brown dog is running in a field"],
        ["two cats sleep on a red sofa", "cats sleeping on the couch"],
        ["a man rides a bicycle down the street", "someone is riding a bike in the city"],
    ]
    said = [
        "a dog is running on the grass",
        "two cats sleep on a red sofa",
        "the the the the street street",
    ]
    # pycocoevalcap 1.2: Cider().compute_score({i: answers}, {i: [said]})
    expected = [2.34286580, 5.33474798, 0.39915632]
    assert cider(said, answers) == pytest.approx(expected, abs=1e-6)
    assert cider(said[:1], answers[:1]) == [0.0]
    assert cider(["", *said[1:]], answers)[0] == 0
