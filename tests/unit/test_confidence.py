"""Scores and what calibration makes of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paliglass.errors import CheckpointError
from paliglass.tasks.confidence import (
    FILE,
    Calibration,
    Platt,
    load_calibration,
    object_score,
    raw_score,
)

share = st.floats(0, 1)


def test_raw_scores() -> None:
    logs = [math.log(p) for p in (0.5, 0.125)]
    assert raw_score(logs) == pytest.approx(0.25)
    assert raw_score([]) == 1
    assert object_score(logs, logs) == pytest.approx(0.25 * 0.0625)
    assert object_score(logs, []) == pytest.approx(0.25)


@given(share)
def test_a_slope_of_one_changes_nothing(raw: float) -> None:
    assert Platt()(raw) == pytest.approx(raw, abs=2e-6)


@given(share, share, st.floats(0, 50), st.floats(-50, 50))
def test_scores_stay_in_order_and_above_zero(
    a: float, b: float, slope: float, intercept: float
) -> None:
    scaling = Platt(slope, intercept)
    low, high = scaling(min(a, b)), scaling(max(a, b))
    assert 0 < low <= high <= 1


def test_platt_scaling() -> None:
    z = 2 * math.log(0.8 / 0.2) - 1
    assert Platt(2, -1)(0.8) == pytest.approx(1 / (1 + math.exp(-z)))


def test_a_task_without_scaling_keeps_its_raw_score() -> None:
    calibration = Calibration(detect=Platt(0, 0))
    assert calibration.score("detect", 0.9) == 0.5
    assert calibration.score("caption", 0.9) == 0.9
    assert calibration.score(None, 0.9) == 0.9


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    calibration = Calibration(detect=Platt(1.25, -0.5), ocr=Platt(0.5, 2))
    calibration.save(tmp_path / FILE)
    assert load_calibration(tmp_path) == calibration
    assert [p.name for p in tmp_path.iterdir()] == [FILE]


def test_without_a_file_nothing_changes(tmp_path: Path) -> None:
    assert load_calibration(tmp_path) == Calibration()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"dance": {"slope": 1, "intercept": 0}}, "no task 'dance'"),
        ({"detect": {"slope": 1}}, "detect must have slope and intercept"),
        ({"detect": {"slope": 1, "intercept": 0, "x": 0}}, "detect must have"),
        ({"detect": [1, 0]}, "detect must have"),
        ({"detect": {"slope": "1", "intercept": 0}}, r"detect\.slope is '1'"),
        ({"detect": {"slope": True, "intercept": 0}}, r"detect\.slope is True"),
        ({"detect": {"slope": 1, "intercept": float("nan")}}, "NaN is no number"),
        ({"detect": {"slope": -1, "intercept": 0}}, "must not be negative"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, data: Any, message: str) -> None:
    (tmp_path / FILE).write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=f"{FILE}: .*{message}"):
        load_calibration(tmp_path)


def test_what_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{")
    with pytest.raises(CheckpointError, match=r"calibration\.json: is not JSON"):
        load_calibration(tmp_path)
