"""What a small model knows, and what is said of the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paliglass.errors import CheckpointError
from paliglass.tasks.things import FILE, Things, load_things

THINGS = Things({"doughnut": ["donut", "doughnuts", "donuts"], "star": ["stars"], "koala": []})


@pytest.mark.parametrize("label", ["star", "Stars", "a  donut", "the yellow star", "KOALA"])
def test_any_word_for_a_thing_is_known_however_it_is_written(label: str) -> None:
    assert THINGS.knows(label)
    assert THINGS.complaint(["wombat", label], "mini") is None


@pytest.mark.parametrize("label", ["wombat", "starfish", "star chart", "", "a"])
def test_what_is_in_no_list_is_unknown(label: str) -> None:
    assert not THINGS.knows(label)


def test_a_complaint_names_what_is_spelled_alike() -> None:
    told = THINGS.complaint(["dougnut", "wombat"], "mini")
    assert told == (
        'mini does not know "dougnut", "wombat" (near: doughnut; its 3 things: '
        "paliglass info mini --things)"
    )
    assert "near" not in (THINGS.complaint(["wombat"], "mini") or "")


@pytest.mark.parametrize("text", ["[]", '{"dog": "puppy"}', '{"dog": [1]}', '{"dog": null}'])
def test_a_list_of_another_form_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(CheckpointError, match=FILE):
        load_things(tmp_path)


def test_a_folder_need_not_have_a_list(tmp_path: Path) -> None:
    assert load_things(tmp_path) is None
    (tmp_path / FILE).write_text(json.dumps(THINGS.words))
    assert load_things(tmp_path) == THINGS
