"""Mini's card: its tables come from scores and from a training's log."""

from __future__ import annotations

import json
from pathlib import Path

from tests.workshop.conftest import Command
from workshop.card import OTHERS, ROWS, card
from workshop.pretrain.recipe import TASKS

from paliglass.checkpoints.hub import locate


def test_scores_and_losses_take_the_tables_places(command: Command, tmp_path: Path) -> None:
    one = {"score": 0.123, "baseline": 0.5, "n": 7}
    scores = {"test": dict.fromkeys(ROWS.values(), one), "style": {"naming": {"score": 0.997}}}
    scores["wordings"] = {"AUROC": {"score": 1.0, "n": 9}}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    losses = dict.fromkeys(("patch_label", *TASKS), 0.5)
    log = [{"step": 10 * i, "seconds": 60.0 * i, **losses} for i in range(1, 19)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    before = (locate("mini") / "README.md").read_text("utf-8")
    (tmp_path / "card.md").write_text(before, "utf-8")

    result = command(card, "scores.json", "--log", "log.jsonl", "--page", "card.md")

    assert result.code == 0, result.err
    after = (tmp_path / "card.md").read_text("utf-8")
    assert "| naming one thing | .12 | – | – | .997 | – | – | – | – | – | .50 | 7 |" in after
    assert "| masks, mean IoU | .12 | – | – | – | – | – | – | – | – | – | 7 |" in after
    assert "| – AUROC, asked in other words | 1.00 | 9 |" in after
    steps = [line.split("|")[1:3] for line in after.splitlines() if "| 0.50 | 0.50 |" in line]
    assert [(int(step), float(minutes)) for step, minutes in steps] == [
        (20 * i, 2.0 * i) for i in range(1, 10)
    ]

    def prose(text: str) -> list[str]:
        return [line for line in text.splitlines() if not line.startswith("|")]

    assert prose(after) == prose(before)
    assert len(after.splitlines()) - len(before.splitlines()) in range(-3, 20)
    assert all(name in after for name in OTHERS)


def test_a_page_without_the_table_is_left_alone(command: Command, tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text(
        json.dumps(
            {"test": {task: {"score": 0.1, "baseline": 0, "n": 1} for task in ROWS.values()}}
        )
    )
    (tmp_path / "card.md").write_text("# another model\n")
    result = command(card, "scores.json", "--page", "card.md")
    assert (result.code, "no table begins with: | | test |" in result.err) == (1, True)
    assert (tmp_path / "card.md").read_text() == "# another model\n"
