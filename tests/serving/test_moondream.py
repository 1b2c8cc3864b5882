"""Moondream's own client, unmodified; it sends JPEG, so that is what answers are compared on."""

from __future__ import annotations

import io
import urllib.error
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.serving.helpers import SCENE, Running, scene_address

from paliglass.model import PaliGemma
from paliglass.tasks.results import Segment

moondream = pytest.importorskip("moondream")


@pytest.fixture(scope="module")
def client(server: Running) -> Any:
    return moondream.vl(endpoint=f"{server.url}/v1", api_key="any")


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    with Image.open(SCENE) as image:
        return image.convert("RGB")


@pytest.fixture(scope="module")
def jpeg(picture: Image.Image) -> bytes:
    """What the client makes of it."""
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("length", "style"), [("short", "cap"), ("normal", "caption"), ("long", "describe")]
)
def test_captions(
    client: Any, model: PaliGemma, picture: Any, jpeg: bytes, length: str, style: Any
) -> None:
    expected = model.caption(jpeg, style=style)
    assert client.caption(picture, length=length)["caption"] == expected
    pieces = list(client.caption(picture, length=length, stream=True)["caption"])
    assert "".join(pieces) == expected


def test_query(client: Any, model: PaliGemma, picture: Any, jpeg: bytes) -> None:
    question = "what colour is the star?"
    expected = model.ask(jpeg, question)
    assert client.query(picture, question)["answer"] == expected
    assert "".join(client.query(picture, question, stream=True)["answer"]) == expected


def test_detect_and_point(client: Any, model: PaliGemma, picture: Any, jpeg: bytes) -> None:
    expected = model.detect(jpeg, "tractor ; doughnut")
    found = client.detect(picture, "tractor ; doughnut")["objects"]
    assert len(expected) == len(found) > 0
    width, height = picture.size
    scale = np.array([width, height, width, height])
    for item, there in zip(found, expected, strict=True):
        box = np.array([item[k] for k in ("x_min", "y_min", "x_max", "y_max")]) * scale
        np.testing.assert_allclose(box, there.box, atol=1e-3)
        assert item["label"] == there.label
        assert item["score"] == pytest.approx(there.score, abs=1e-3)
    assert len(client.detect(picture, "tractor ; doughnut", {"max_objects": 1})["objects"]) == 1
    points = client.point(picture, "tractor")["points"]
    for point, there in zip(points, model.detect(jpeg, "tractor"), strict=True):
        assert point["x"] * width == pytest.approx((there.box.x0 + there.box.x1) / 2, abs=1e-3)
        assert point["y"] * height == pytest.approx((there.box.y0 + there.box.y1) / 2, abs=1e-3)
    assert client.detect(picture, "zebra")["objects"] == [] == list(model.detect(jpeg, "zebra"))


def test_supervision_reads_the_boxes(
    client: Any, model: PaliGemma, picture: Any, jpeg: bytes
) -> None:
    supervision = pytest.importorskip("supervision")
    found = supervision.Detections.from_vlm(
        supervision.VLM.MOONDREAM,
        client.detect(picture, "tractor ; doughnut"),
        resolution_wh=picture.size,
    )
    expected = [item.box for item in model.detect(jpeg, "tractor ; doughnut")]
    np.testing.assert_allclose(found.xyxy, expected, atol=1e-3)


def drawn(path: str, bbox: dict[str, float], size: tuple[int, int]) -> np.ndarray:
    """An SVG path, in shares of its box, filled: H × W."""
    from PIL import ImageDraw

    width, height = size
    mask = np.zeros((height, width), dtype=bool)
    x0, y0 = bbox["x_min"] * width, bbox["y_min"] * height
    w, h = (bbox["x_max"] - bbox["x_min"]) * width, (bbox["y_max"] - bbox["y_min"]) * height
    for part in path.split("M ")[1:]:
        numbers = [tuple(map(float, p.split())) for p in part.strip(" Z").split(" L ")]
        image = Image.new("1", (width * 4, height * 4))
        points = [((x0 + x * w) * 4, (y0 + y * h) * 4) for x, y in numbers]
        ImageDraw.Draw(image).polygon(points, fill=1)
        mask ^= np.asarray(image)[2::4, 2::4]
    return mask


def test_segment(client: Any, model: PaliGemma, picture: Any, jpeg: bytes) -> None:
    expected = model.segment(jpeg, "tractor")
    best: Segment = max(expected, key=lambda s: s.score)
    found = client.segment(picture, "tractor")
    mask = drawn(found["path"], found["bbox"], picture.size)
    union = (mask | best.mask).sum()
    assert (mask & best.mask).sum() / union > 0.97
    updates = list(client.segment(picture, "tractor", stream=True))
    assert updates[0]["bbox"] == found["bbox"]
    assert (updates[-1]["path"], updates[-1]["completed"]) == (found["path"], True)


def test_segment_of_nothing_has_no_path(server: Running) -> None:
    body = {"image_url": scene_address(), "object": "zebra"}
    found = server.post("/v1/segment", body).json()
    assert found == {"path": "", "bbox": None, "segments": []}


def test_several_labels_are_segments_of_their_own(server: Running, model: PaliGemma) -> None:
    body = {"image_url": scene_address(), "object": "tractor ; doughnut"}
    found = server.post("/v1/segment", body).json()["segments"]
    expected = model.segment(SCENE, "tractor ; doughnut")
    assert [item["label"] for item in found] == [item.label for item in expected]


def test_chat(server: Running, model: PaliGemma) -> None:
    client = moondream.vl(endpoint=f"{server.url}/v1", model="mini")
    content = [
        {"type": "text", "text": "caption en"},
        {"type": "image_url", "image_url": {"url": scene_address()}},
    ]
    messages = [{"role": "user", "content": content}]
    expected = model.caption(SCENE)
    assert client.chat(messages)["message"]["content"] == expected
    assert "".join(client.chat(messages, stream=True)["message"]) == expected


def test_what_cannot_be_honoured_is_refused(client: Any, picture: Any) -> None:
    for call in (
        lambda: client.query(picture, "what?", reasoning=True),
        lambda: client.point(picture, "tractor", spatial_refs=[[0.5, 0.5]]),
        lambda: client.query(None, "what?"),
        lambda: client.caption(picture, length="epic"),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            call()
        assert refused.value.code == 400
        refused.value.close()
