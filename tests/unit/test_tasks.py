"""The answers' grammar: boxes in and out."""

from __future__ import annotations

import json

from paliglass.tasks.boxes import Box
from paliglass.tasks.results import Detection


def test_results_are_plain_json() -> None:
    found = Detection("dog", Box(1.23456, 0, 10, 20), 0.987654)
    text = json.dumps(found.to_dict())
    assert json.loads(text) == {"label": "dog", "box": [1.23, 0, 10, 20], "score": 0.9877}
