"""`python -m workshop.card`: the tables of mini's card, from scores and a training's log."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from paliglass.checkpoints.hub import locate
from paliglass.errors import PaliglassError
from paliglass.files import write_whole
from workshop.commands import run
from workshop.pretrain.recipe import TASKS

SPLITS = "test wordings phrasings style composition plain photos blank shuffled".split()
ROWS = {
    "naming one thing": "naming",
    "answers, exact": "answer",
    "– is there …?": "answer: presence",
    "– how many": "answer: count",
    "– what colour": "answer: colour",
    "– where": "answer: where",
    "– what is in the picture, on the left …": "answer: what",
    "– which animal, which food …": "answer: which kind",
    "– not to be known from a picture": "answer: off world",
    "captions, F1 of things": "caption",
    "detection, F1 at IoU .5": "detect",
    "masks, IoU over the codec's": "segment",
    "masks, mean IoU": "segment IoU",
    "character error rate": "character errors",
}
OTHERS = {
    "reading one text, exact: a word in capitals": ("reading", "WORD"),
    "– a word in small or mixed letters": ("reading", "word"),
    "– random letters and digits": ("reading", "string"),
    "character error rate of these": ("reading", "character errors"),
    "– of lines of several words": ("lines", "character errors"),
    "– of documents": ("documents", "character errors"),
    "how many words are written": ("test", "answer: words"),
    "the colour of the letters": ("test", "answer: text colour"),
    "handwritten digits": ("digits", "answer: digit"),
    "documents: answers, exact": ("documents", "answer"),
    "– how many bars": ("documents", "answer: fact: bars"),
    "– destination": ("documents", "answer: fact: destination"),
    "– age": ("documents", "answer: fact: age"),
    "– seat": ("documents", "answer: fact: seat"),
    "– date": ("documents", "answer: fact: date"),
    "– total": ("documents", "answer: fact: total"),
    "– shop": ("documents", "answer: fact: shop"),
    "– name": ("documents", "answer: fact: name"),
    "– what an item costs": ("documents", "answer: fact: price of"),
    "– the highest bar": ("documents", "answer: fact: highest"),
    "– what colour a bar has": ("documents", "answer: fact: colour of"),
    "– what the page does not bear": ("documents", "answer: no fact"),
    "answerable against not: AUROC of the score": ("unknown", "AUROC"),
    "– its calibration error": ("unknown", "calibration error"),
    "– AUROC, asked in other words": ("wordings", "AUROC"),
    "– calibration error, in other words": ("wordings", "calibration error"),
    "– AUROC, in another's words": ("phrasings", "AUROC"),
    "– calibration error, in another's words": ("phrasings", "calibration error"),
}

Scores = Mapping[str, Mapping[str, Mapping[str, Any]]]


def card(
    scores: Annotated[
        Path, typer.Argument(exists=True, help="What `workshop.score --json` printed.")
    ],
    log: Annotated[
        Path | None, typer.Option(exists=True, help="A run's log.jsonl, for the table of losses.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(exists=True, help="The card to write into. [mini's]")
    ] = None,
) -> None:
    """Put scores, and the losses of a training, into a card's tables."""
    page = page or locate("mini") / "README.md"
    found: Scores = json.loads(scores.read_text("utf-8"))
    text = with_table(page.read_text("utf-8"), scores_table(found))
    text = with_table(text, others_table(found))
    if log is not None:
        lines = log.read_text("utf-8").splitlines()
        text = with_table(text, losses_table([json.loads(line) for line in lines]))
    write_whole(page, text)


def with_table(text: str, table: Sequence[str]) -> str:
    """A page with this table in place of the one that has the same head.

    Raises PaliglassError where it has none.
    """
    lines = text.splitlines()
    if table[0] not in lines:
        raise PaliglassError(f"no table begins with: {table[0]}")
    first = last = lines.index(table[0])
    while last < len(lines) and lines[last].startswith("|"):
        last += 1
    return "\n".join((*lines[:first], *table, *lines[last:])) + "\n"


def scores_table(scores: Scores) -> list[str]:
    """A row for each task, a column for each split; the last two are of the test split."""
    table = [_row("", *SPLITS, "one answer", "n"), "|---" * (len(SPLITS) + 3) + "|"]
    for name, task in ROWS.items():
        of_test = scores["test"][task]
        guess = None if task == "segment IoU" else of_test["baseline"]
        shares = [_share(scores.get(split, {}).get(task, {}).get("score")) for split in SPLITS]
        table.append(_row(name, *shares, _share(guess), str(of_test["n"])))
    return table


def others_table(scores: Scores) -> list[str]:
    """Reading, documents and what cannot be answered: a row for each."""
    table = [_row("", "", "n"), "|---|---:|---:|"]
    for name, (split, task) in OTHERS.items():
        found = scores.get(split, {}).get(task, {})
        table.append(_row(name, _share(found.get("score")), str(found.get("n", "–"))))
    return table


def losses_table(log: Sequence[Mapping[str, Any]], rows: int = 9) -> list[str]:
    """Losses at some of a log's steps, evenly apart, the last one among them."""
    names = ("patch_label", *TASKS)
    heads = (name.replace("_", " ") for name in names)
    table = [_row("step", "minutes", *heads), "|---" * (len(names) + 2) + "|"]
    for i in range(1, rows + 1):
        at = log[len(log) * i // rows - 1]
        losses = (f"{at[name]:.2f}" for name in names)
        table.append(_row(str(at["step"]), f"{at['seconds'] / 60:.1f}", *losses))
    return table


def _share(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.{3 if 0.995 <= value < 1 else 2}f}".removeprefix("0")


def _row(*cells: str) -> str:
    return "".join(f"| {cell} " if cell else "| " for cell in cells) + "|"


if __name__ == "__main__":
    run(card)
