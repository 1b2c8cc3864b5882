"""What a model learns from and is judged by: pictures with a prefix (prompt) and suffix (answer).

Every reader in this package yields `Example`s and puts what it finds wrong into `Findings`, each
with its file and line. All of them pass through `tidy`, so that training, its validation and
`paliglass eval` see the same texts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from paliglass.errors import PaliglassError, PromptError, printable
from paliglass.tasks.boxes import encode_box, parse_boxes
from paliglass.tasks.prompts import (
    TASKS,
    label_key,
    one_label,
    split_labels,
    without_placeholders,
)

__all__ = [
    "OBJECT_TASKS",
    "SPECIAL_TOKENS_IN_PREFIX",
    "WORD_TASKS",
    "Example",
    "Finding",
    "Findings",
    "Severity",
    "tidy",
]

SPECIAL_TOKENS_IN_PREFIX = True
"""Whether `<loc0001>` in a prefix is the token: so it is in training, validation and evaluation."""

OBJECT_TASKS = ("detect", "segment")
WORD_TASKS = ("caption", "cap", "describe", "answer", "question")  # whose answer is never empty

# What an answer never shows: they end it, or are left out when it is decoded.
_UNSPOKEN = re.compile(r"<(?:image|bos|eos|pad)>")
_BEHIND = ("<eos>", "<pad>")
_FLORENCE_TASK = re.compile(r"<[A-Z]+(?:_[A-Z]+)*>")
_FLORENCE_BOX = re.compile(r"<loc_\d+>")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Example:
    """Pictures, what is asked about them, and what is right.

    images: the files, mostly one. where: file and line (or entry) that it came from, for messages.
    answers: all right answers, for metrics; `suffix` is the one to train on. ignored: objects in
    the form of a suffix that count neither way, neither as there nor as absent: crowds, and what
    cannot be written.
    """

    images: tuple[Path, ...]
    prefix: str
    suffix: str
    where: str
    answers: tuple[str, ...] = ()
    ignored: str = ""

    @property
    def task(self) -> str:
        """The prompt's first word: "caption", "answer", "detect" …"""
        return self.prefix.partition(" ")[0]

    @property
    def asked(self) -> tuple[tuple[str, ...], str]:
        """Pictures and prompt; equal for examples that ask the same, however both are spelled."""
        images = tuple(os.path.abspath(image) for image in self.images)
        return images, label_key(self.prefix) if self.task in OBJECT_TASKS else self.prefix

    @property
    def is_empty(self) -> bool:
        """Whether an answer in words is missing."""
        return not self.suffix and self.task in WORD_TASKS

    @property
    def is_partial(self) -> bool:
        """Whether nothing is left to say of what is there: it would teach that nothing is."""
        return not self.suffix and bool(self.ignored)


Severity = Literal["wrong", "left out", "odd"]


@dataclass(frozen=True)
class Finding:
    """What is the matter at a place.

    severity: "wrong": it cannot be read as it was meant, and a run refuses the data; "left out": a
    run goes on without it, and says how many; "odd": nothing but worth a look.
    """

    where: str
    problem: str
    severity: Severity


class Findings(list[Finding]):
    """What readers find."""

    def wrong(self, where: str, problem: str) -> None:
        self.append(Finding(where, problem, "wrong"))

    def left_out(self, where: str, problem: str) -> None:
        self.append(Finding(where, problem, "left out"))

    def odd(self, where: str, problem: str) -> None:
        self.append(Finding(where, problem, "odd"))

    @contextmanager
    def at(self, where: str) -> Iterator[None]:
        """Takes a PaliglassError of the block as what is wrong there."""
        try:
            yield
        except PaliglassError as error:
            self.wrong(where, str(error).removeprefix(printable(f"{where}: ")))

    @property
    def first(self) -> str:
        """The first of them behind an error that they led to."""
        return f"; {self[0].where}: {self[0].problem}" if self else ""

    def of(self, severity: Severity) -> list[Finding]:
        return [finding for finding in self if finding.severity == severity]


def tidy(examples: Iterable[Example], findings: Findings) -> Iterator[Example]:
    """Examples as they are learned and judged; those that cannot be are left out.

    - blanks at the ends of prefix and suffix go, as do `<image>` and `<bos>` before a prefix and
      `<eos>` behind a suffix, which the processor puts there by itself
    - other special words, Florence-2's form and boxes that cannot be read are wrong
    - boxes too thin for location tokens are ignored
    - labels have one blank between words, and ` ; ` between them, as in a prompt
    """
    for example in examples:
        tidied = None
        with findings.at(example.where):
            tidied = _tidy(example, findings)
        if tidied is not None:
            yield tidied


def _tidy(example: Example, findings: Findings) -> Example:
    texts = {"prefix": example.prefix, "suffix": example.suffix}
    tidied = {name: _bare(text) for name, text in texts.items()}
    for name, text in texts.items():
        if text != tidied[name] != "":
            findings.odd(
                example.where,
                f"the {name} has blanks, line breaks or <image>, <bos>, <eos> at its ends, which "
                "are left out",
            )
    answers = tuple(filter(None, map(_bare, example.answers)))
    example = replace(example, prefix=tidied["prefix"], suffix=tidied["suffix"], answers=answers)
    if match := _FLORENCE_TASK.match(example.prefix):
        raise PaliglassError(_foreign("prefix", match[0]))
    _refuse("prefix", example.prefix)
    if example.task.lower() in ("", *TASKS) and example.task not in TASKS:
        what = f"begins with {example.task!r}; tasks are written small" if example.task else "empty"
        findings.odd(example.where, f"the prefix {'' if example.task else 'is '}{what}")
    for text in (example.suffix, *answers):
        _refuse("suffix", text)
    if example.task in OBJECT_TASKS:
        return _tidy_objects(example, findings)
    if example.is_empty:
        findings.left_out(example.where, "the suffix is empty")
    return example


def _bare(text: str) -> str:
    """A text without blanks at its ends, and without the special words that stand there anyway."""
    text = without_placeholders(text).strip()
    while text.endswith(_BEHIND):
        text = text[: -len(_BEHIND[0])].rstrip()
    return text


def _refuse(name: str, text: str) -> None:
    """Raises PaliglassError for a text that cannot be learned as it stands."""
    if match := _UNSPOKEN.search(text):
        raise PaliglassError(
            f"the {name} holds {match[0]}, which no answer shows; take it out of the text"
        )
    if match := _FLORENCE_BOX.search(text):
        raise PaliglassError(_foreign(name, match[0]))
    if _SURROGATE.search(text):
        raise PaliglassError(f"the {name} holds half a character (a lone surrogate); take it out")


def _foreign(name: str, token: str) -> str:
    return (
        f"the {name} holds {token}, Florence-2's form; export the data for PaliGemma, as "
        "`detect dog` with `<loc0256><loc0000><loc0512><loc0300> dog`"
    )


def _tidy_objects(example: Example, findings: Findings) -> Example:
    """A `detect` or `segment` whose suffix is parts that can be read and written."""
    where = example.where
    try:
        asked = split_labels(example.prefix.removeprefix(example.task), example.task)
    except PromptError:
        raise PaliglassError(
            f"the prefix {example.prefix!r} names nothing; write `{example.task} dog`"
        ) from None
    prefix = f"{example.task} {' ; '.join(asked)}"
    if prefix != example.prefix:
        findings.odd(where, f"the prefix is read as {prefix!r}, as a model is asked")
    if example.answers[1:]:
        findings.odd(where, "the suffix is a list; what its answers say is taken together")
    kept, ignored = [], [example.ignored] if example.ignored else []
    texts = example.answers or (example.suffix,)
    for part in (part.strip() for text in texts for part in text.split(";")):
        if not part:
            continue
        found = parse_boxes(part, thin=True)
        if len(found) != 1 or (found[0].start, found[0].end) != (0, len(part)):
            raise PaliglassError(
                f"{part[:80]!r} is no box: it is <locY0><locX0><locY1><locX1> label, four digits, "
                "Y1 > Y0 and X1 > X0, with ; between boxes"
            )
        [thing] = found
        fault = None
        if not (thing.box.x0 < thing.box.x1 and thing.box.y0 < thing.box.y1):
            fault = "has no area"
        elif example.task == "segment" and thing.codes is None:
            fault = "has no mask: 16 <seg> tokens"
        codes = thing.codes or ()
        if example.task == "detect" and codes:
            findings.odd(where, f"{part[:80]!r} has a mask, which no answer to detect has")
            codes = ()
        if fault is None:
            tokens = encode_box(thing.box, 1, 1) + "".join(f"<seg{code:03}>" for code in codes)
            kept.append(f"{tokens} {one_label(thing.label)}".rstrip())
        else:
            findings.left_out(where, f"{part[:80]!r} {fault}")
            ignored.append(f"{encode_box(thing.box, 1, 1, outward=True)} {thing.label}")
    # No answer has the same thing twice.
    suffix, left = (" ; ".join(dict.fromkeys(parts)) for parts in (kept, ignored))
    return replace(example, prefix=prefix, suffix=suffix, answers=(), ignored=left)
