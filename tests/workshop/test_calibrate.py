"""Scores fitted to how often they are right."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from tests.tiny import noise_picture, tiny_model, tiny_processor, worded_config
from tests.workshop.conftest import Command
from workshop import calibrate
from workshop.calibrate import (
    Judged,
    calibration_error,
    draw_diagram,
    fit,
    judge,
    matched,
    overlaps,
    reliability,
)
from workshop.world.tasks import Example

from paliglass import PaliGemma
from paliglass.checkpoints import save_folder
from paliglass.modeling_mask_codec import MaskCodec, MaskCodecConfig
from paliglass.tasks.boxes import parse_boxes
from paliglass.tasks.confidence import FILE, Platt, load_calibration


def sampled(slope: float, intercept: float, count: int = 4000) -> tuple[list[float], list[bool]]:
    """Scores, and answers right as often as a known scaling of them says."""
    rng = np.random.default_rng(0)
    raw = rng.uniform(0.02, 0.98, count).tolist()
    scaling = Platt(slope, intercept)
    return raw, [bool(rng.random() < scaling(score)) for score in raw]


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (2.5, 1.0), (0.3, -2.0)])
def test_the_scaling_that_made_the_data_is_found(slope: float, intercept: float) -> None:
    raw, right = sampled(slope, intercept)
    found = fit(raw, right)
    assert found.slope == pytest.approx(slope, abs=0.15)
    assert found.intercept == pytest.approx(intercept, abs=0.15)
    scores = [found(score) for score in raw]
    assert calibration_error(scores, right) < 0.03
    if slope != 1:
        assert calibration_error(scores, right) < calibration_error(raw, right) / 2


@pytest.mark.parametrize("gap", [0.0, 0.4])
def test_separable_scores_give_a_finite_scaling(gap: float) -> None:
    raw = [0.5 - gap] * 30 + [0.5 + gap] * 30
    found = fit(raw, [False] * 30 + [True] * 30)
    assert math.isfinite(found.slope)
    assert math.isfinite(found.intercept)
    assert found(0.5 - gap) <= found(0.5 + gap)


def test_scores_that_say_the_contrary_become_the_share_of_the_right() -> None:
    raw, right = sampled(3.0, 0.0)
    found = fit(raw, [not is_right for is_right in right])
    assert found.slope == 0
    assert found(0.1) == pytest.approx(1 - np.mean(right), abs=0.01)


def test_calibration_error_by_hand() -> None:
    scores, right = [0.1, 0.15, 0.9, 1.0], [False, True, True, True]
    assert reliability(scores, right) == [
        pytest.approx((0.125, 0.5, 2)),
        pytest.approx((0.95, 1, 2)),
    ]
    assert calibration_error(scores, right) == pytest.approx((0.375 + 0.05) / 2)


def test_each_true_object_counts_once_and_the_best_pair_first() -> None:
    true = parse_boxes(
        "<loc0000><loc0000><loc0100><loc0100> a ; <loc0500><loc0500><loc0600><loc0600> a"
    )
    found = parse_boxes(
        "<loc0000><loc0000><loc0100><loc0080> a ; <loc0000><loc0000><loc0100><loc0100> a ; "
        "<loc0500><loc0500><loc0600><loc0600> b"
    )
    fits = overlaps(found, true, None)
    assert fits == pytest.approx(np.array([[0.8, 0], [1, 0], [0, 0]]), abs=1e-6)
    assert matched(fits) == [False, True, False]
    assert matched(overlaps([], true, None)) == []
    assert matched(overlaps(found, [], None)) == [False] * 3


def test_masks_are_compared_where_there_is_a_codec() -> None:
    torch.manual_seed(0)
    codec = MaskCodec(MaskCodecConfig(width=8, embedding_dim=8)).eval()
    codes = "".join(f"<seg{i:03}>" for i in range(16))
    box = "<loc0000><loc0000><loc1023><loc1023>"
    [one] = parse_boxes(f"{box}{codes} a")
    [without] = parse_boxes(f"{box} a")
    mask = codec.decode(torch.arange(16)[None])[0].numpy() > 0
    assert overlaps([one, without], [one], codec).tolist() == [[float(mask.any())], [0.0]]


class FakeWorld:
    """Noise with prompts of every kind; the truths of every other scene cannot be right."""

    size = 56

    def __init__(self, model: PaliGemma) -> None:
        self.model = model

    def sample(self, index: int, prompts: int) -> tuple[Any, list[Example]]:
        scene = type(
            "Scene", (), {"image": np.asarray(noise_picture(self.size, self.size, seed=index))}
        )()
        examples = []
        for prefix in ("caption en", "answer en what?", "ocr", "detect dog")[:prompts]:
            truth = "never said"
            if index % 3 and prefix != "detect dog":
                truth = self.model.generate(scene.image, prefix, max_new_tokens=128)
            elif index % 3:
                [box] = self.model.detect(scene.image, "dog", max_new_tokens=9) or [None]
                if box is not None:
                    y0, x0, y1, x1 = (round(box.box[i] / self.size * 1023) for i in (1, 0, 3, 2))
                    truth = f"<loc{y0:04}><loc{x0:04}><loc{y1:04}><loc{x1:04}> dog"
            examples.append(Example(prefix, truth))
        return scene, examples


@pytest.fixture(scope="module")
def model() -> PaliGemma:
    return PaliGemma(tiny_model(worded_config()), tiny_processor())


def test_every_kind_of_answer_is_judged(model: PaliGemma) -> None:
    world: Any = FakeWorld(model)
    judged = judge(model, world, 12, prompts=4)
    assert set(judged) == {"caption", "answer", "ocr", "detect"}
    for task in ("caption", "answer", "ocr"):
        answers = judged[task]  # type: ignore[index]
        assert answers.right == [index % 3 != 0 for index in answers.scene]
        assert all(0 < raw <= 1 for raw in answers.raw)
    detections = judged["detect"]
    assert not any(r for r, s in zip(detections.right, detections.scene, strict=True) if not s % 3)
    assert any(detections.right)


def test_one_command_writes_what_load_reads(
    model: PaliGemma, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_folder(model.model, "model", model.processor)
    judged = {"ocr": Judged(), "detect": Judged()}
    raw, right = sampled(2.0, -1.0, 200)
    for i, row in enumerate(zip(raw, right, strict=True)):
        judged["ocr"].add(*row, i)
    judged["detect"].add(0.5, True, 0)
    monkeypatch.setattr(calibrate, "judge", lambda *_args: judged)
    monkeypatch.setattr(calibrate, "World", lambda *_args, **_options: None)
    result = command(calibrate.calibrate, "model", "--diagram", "drawn.svg", "--threads", "1")
    assert result.code == 0, result.err
    calibration = load_calibration(Path("model"))
    assert calibration.detect is None
    assert calibration.ocr == fit(raw, right)
    assert json.loads(Path("model", FILE).read_text()).keys() == {"ocr"}
    assert "detect: too few answers" in result.out
    circles = ElementTree.parse("drawn.svg").findall(".//{*}circle")
    assert len(circles) >= 15


def test_a_diagram_has_a_panel_for_each_task() -> None:
    raw, right = sampled(2.0, 0.0, 50)
    tree = ElementTree.fromstring(
        draw_diagram({"ocr": (raw, raw, right), "<b>": (raw, raw, right)})
    )
    texts = [element.text for element in tree.iter() if element.text]
    assert any(text.startswith("<b>") for text in texts)
    assert sum("error" in text for text in texts) == 4
