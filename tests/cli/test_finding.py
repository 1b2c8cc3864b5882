"""detect and segment: formats, thresholds, masks, previews; ask among given answers."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.cli.helpers import picture, results
from tests.tiny import tiny_processor

from paliglass import Box, Detection
from paliglass.formats.rle import decode_rle
from paliglass.tasks.results import Answer, Found, Segment

MASK = np.zeros((30, 40), bool)
MASK[3:20, 2:21] = True


class Fake:
    """A model that finds the same two things in every picture that is not blue."""

    def __init__(self, segments: bool = False) -> None:
        self.asked: list[dict] = []
        self.processor = tiny_processor()
        self.items = [
            Detection("dog", Box(1.0, 2.0, 21.25, 20.0), 0.875),
            Detection("a cat", Box(0, 0, 5, 5), 0.25),
        ]
        if segments:
            self.items = [Segment(i.label, i.box, MASK, i.score) for i in self.items]

    def find_task(self, labels, free, min_score):
        self.asked.append({"labels": labels, "free": free})

        def result(image):
            is_blue = image.pixels[:, 0, 0].tolist() == [-1, -1, 1]
            return Found([] if is_blue else self.items, *image.size).above(min_score)

        return result

    detect_task = segment_task = find_task

    def ask_task(self, question, language, choices):
        self.asked.append({"question": question, "language": language, "choices": choices})
        return lambda image: Answer(choices[0], 0.75)

    def text_task(self, prompt, calibrated):
        return lambda image: Answer("two dogs", 0.5)

    def answer(self, jobs, options):
        for _, task, [image] in jobs:
            yield task(image), 3


@pytest.fixture
def model(monkeypatch):
    fake = Fake()
    fake.loaded = []
    monkeypatch.setattr("paliglass.model.load", lambda *_, **o: fake.loaded.append(o) or fake)
    return fake


@pytest.fixture
def segments(model):
    model.items = Fake(segments=True).items
    return model


@pytest.fixture
def pictures():
    return [str(picture("a.png")), str(picture("b.png", "blue"))]


def test_segment_saves_drawings_and_masks(cli, segments, pictures):
    result = cli("segment", *pictures, "dog ; a cat", "--out", "o")
    assert result.code == 0
    assert segments.asked[0]["labels"] == ["dog", "a cat"]
    assert result.out.splitlines()[0] == "a.png\tdog\t0.875\t1.0\t2.0\t21.2\t20.0"
    with_masks, empty = results("o")
    assert with_masks["drawing"] == "drawings/a.segment.png"
    assert with_masks["masks"] == ["masks/a.segment.1.png", "masks/a.segment.2.png"]
    assert (empty["detections"], empty["masks"]) == ([], [])
    for file, item in zip(with_masks["masks"], with_masks["detections"], strict=True):
        assert (decode_rle(item["mask"]) == MASK).all()
        with Image.open(Path("o", file)) as mask:
            assert (np.asarray(mask) == MASK).all()
    with Image.open("o/drawings/a.segment.png") as drawn:
        assert drawn.getpixel((10, 10)) != (255, 0, 0)


def test_the_mask_codec_reaches_the_loader(cli, segments, pictures):
    cli("segment", "a.png", "dog", "--mask-codec", "vae-oid.npz")
    cli("segment", "a.png", "dog")
    assert [o.get("mask_codec") for o in segments.loaded] == [Path("vae-oid.npz"), None]


def test_json_has_size_and_scores(cli, model, pictures):
    first, second = cli("detect", *pictures, "dog", "--json").records()
    assert (first["width"], first["height"]) == (40, 30)
    assert first["detections"][0] == {"label": "dog", "box": [1, 2, 21.25, 20], "score": 0.875}
    assert second["detections"] == []
    assert cli("detect", *pictures, "dog", "--format", "jsonl").records() == [first, second]
    assert json.loads(cli("detect", *pictures, "dog", "--format", "json").out) == [first, second]


def test_words_have_scores(cli, model, pictures):
    [record] = cli("caption", "a.png", "--json").records()
    assert (record["answer"], record["score"]) == ("two dogs", 0.5)
    assert cli("caption", "a.png").out == "two dogs\n"


def test_csv_has_one_header(cli, model, pictures):
    names = [*pictures, str(picture("c.png"))]
    text = cli("detect", *names, "dog", "--format", "csv", "--batch-size", "1").out
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["file"], row["label"]) for row in rows] == [
        *(("a.png", "dog"), ("a.png", "a cat"), ("c.png", "dog"), ("c.png", "a cat"))
    ]


def test_coco_is_one_document(cli, model, pictures):
    coco = json.loads(cli("detect", *pictures, "gone.png", "dog", "--format", "coco").out)
    assert [image["file_name"] for image in coco["images"]] == ["a.png", "b.png"]
    assert [category["name"] for category in coco["categories"]] == ["dog", "a cat"]
    assert len(coco["annotations"]) == 2


def test_a_run_that_did_nothing_prints_no_document(cli, monkeypatch, pictures):
    def fails(*_, **__):
        raise MemoryError

    monkeypatch.setattr("paliglass.model.load", fails)
    result = cli("detect", "a.png", "dog", "--format", "coco")
    assert (result.code, result.out) == (1, "")


def test_min_score_leaves_out_the_less_sure(cli, model, pictures):
    for least, labels in (("0", ["dog", "a cat"]), ("0.25", ["dog", "a cat"]), ("0.3", ["dog"])):
        [record] = cli("detect", "a.png", "dog", "--json", "--min-score", least).records()
        assert [item["label"] for item in record["detections"]] == labels


def test_free_reaches_the_model(cli, model, pictures):
    cli("detect", "a.png", "dog", "--free")
    cli("detect", "a.png", "dog")
    assert [asked["free"] for asked in model.asked] == [True, False]


def test_ask_among_choices(cli, model, pictures):
    result = cli("ask", "a.png", "is it?", "--choice", "yes", "--choice", "no", "--lang", "de")
    assert result.out == "yes\n"
    assert model.asked == [{"question": "is it?", "language": "de", "choices": ["yes", "no"]}]
    [record] = cli("ask", "a.png", "is it?", "-c", "no", "-c", "yes", "--json").records()
    assert (record["answer"], record["score"]) == ("no", 0.75)


@pytest.mark.parametrize("style", ["cap", "caption", "describe"])
def test_styles_of_captions(cli, model, pictures, style):
    [record] = cli("caption", "a.png", "--style", style, "--lang", "fr", "--json").records()
    assert record["prompt"] == f"{style} fr"


def test_preview_shows_the_drawing_at_a_terminal_only(cli, model, pictures, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-kitty")
    piped = cli("detect", "a.png", "dog", "--preview").out
    assert "\x1b" not in piped
    monkeypatch.setenv("PALIGLASS_PREVIEW", "kitty")
    forced = cli("detect", "a.png", "dog", "--preview").out
    monkeypatch.delenv("PALIGLASS_PREVIEW")
    shown = cli("detect", "a.png", "dog", "--preview", terminal=True).out
    assert "\x1b_G" not in cli("detect", "a.png", "dog", terminal=True).out
    for text in (forced, shown):
        data = "".join(re.findall(r"\x1b_G[^;]*;([^\x1b]*)\x1b\\", text))
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            expected = Found(model.items, 40, 30).draw("a.png", 12)
            assert image.tobytes() == expected.tobytes()


def test_an_empty_folder_is_named_and_the_others_go_on(cli, model, pictures):
    Path("empty").mkdir()
    result = cli("detect", "empty", "a.png", "dog", "--json")
    assert result.code == 1
    assert [record["file"] for record in result.records()] == ["a.png"]
    [line] = result.err.splitlines()
    assert line.startswith("error: empty: holds no pictures")


@pytest.mark.parametrize(
    "flags",
    [
        ["--format", "xml"],
        ["--format", "yolo"],
        ["--format", "coco", "--json"],
        ["--format", "coco", "--preview"],
        ["--json", "--preview"],
        ["--min-score", "2"],
    ],
    ids=" ".join,
)
def test_what_does_not_go_together_is_bad_usage(cli, model, pictures, flags):
    result = cli("detect", "a.png", "dog", *flags)
    assert (result.code, result.out) == (2, "")
    assert not model.loaded


def test_yolo_is_for_things(cli, model, pictures):
    assert cli("caption", "a.png", "--format", "yolo", "--out", "o").code == 2
    picture("a.jpg")
    result = cli("detect", "a.png", "a.jpg", "dog", "--format", "yolo", "--out", "o")
    assert (result.code, model.loaded) == (1, [])
    assert "would share the label file" in result.err
    assert not Path("o").exists()
