"""On Ray each picture has its row once, though a worker was killed on the way, and the driver."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.scale.conftest import PART_SIZE, png

from paliglass.scale.annotator import Annotator
from paliglass.scale.output import Output
from paliglass.scale.rows import to_table
from paliglass.scale.sources import entries

COUNT = 24
ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None,
        reason="Ray is not installed: pip install 'paliglass[ray]'",
    ),
]


class Run(NamedTuple):
    """A run that was killed and resumed. done: rows of the killed one; told: by the resumed one."""

    pictures: Path
    out: Path
    done: int
    told: dict[str, str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("ray")
    pictures, out, mark = folder / "pictures", folder / "o", folder / "mark"
    pictures.mkdir()
    for number in range(COUNT):
        data = png(number) if number != 2 else b"no picture"
        (pictures / f"{number:02}.png").write_bytes(data)
    command = [sys.executable, "-m", "tests.scale.ray_run", str(pictures), str(out)]
    places = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    setting = {"cwd": ROOT, "env": {**os.environ, "PYTHONPATH": places}}
    driver = subprocess.Popen([*command, "2", str(mark)], **setting)
    while len(list((out / "checkpoint").glob("*[0-9].parquet"))) < 3:
        assert driver.poll() is None, "the run ended before it could be killed"
        time.sleep(0.1)
    driver.kill()
    driver.wait()
    assert mark.exists()  # the worker was killed, and the run went on
    with Output(str(out), {}, resume=True) as output:
        done = len(output.done())
    subprocess.run([*command, "0", str(mark)], check=True, **setting)
    return Run(pictures, out, done, json.loads((folder / "o.json").read_text()))


def test_each_picture_has_its_row_once(finished: Run) -> None:
    assert 2 * PART_SIZE <= finished.done < COUNT
    with Output(str(finished.out), {}, resume=True) as output:
        assert output.check() == (COUNT, 1, f"{finished.pictures / '02.png'}: is not a picture")


def test_rows_are_those_of_one_machine(finished: Run, annotator: Annotator) -> None:
    with Output(str(finished.out), {}, resume=True) as output:
        rows = {row["id"]: row for row in output.rows()}
    square = annotator.job.square()
    opened = [square.open(entry) for entry in entries([str(finished.pictures)])]
    for expected in to_table(annotator.annotate(opened)).to_pylist():
        row = rows[expected["id"]]
        assert row["error"] == expected["error"]
        assert (row["width"], row["height"]) == (expected["width"], expected["height"])
        for mine, theirs in zip(row["objects"] or (), expected["objects"] or (), strict=True):
            assert (mine["label"], mine["box"]) == (theirs["label"], theirs["box"])
            assert mine["score"] == pytest.approx(theirs["score"], abs=1e-5)
    assert sum(bool(row["objects"]) for row in rows.values()) > COUNT // 2


def test_a_finished_run_has_nothing_left_to_do(finished: Run) -> None:
    assert finished.told["nothing left"] == "done"


def test_too_few_slots_are_told_before_the_start(finished: Run) -> None:
    assert "CPU slots free and this needs 1003" in finished.told["slots"]


def test_a_model_that_cannot_be_loaded_is_one_line(finished: Run) -> None:
    assert "no.safetensors" in finished.told["model"]
    assert "\n" not in finished.told["model"]
