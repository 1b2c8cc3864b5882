"""PaliGemma's prompts (arXiv 2407.07726, section 3.2.5 and appendix).

    cap {lang}                       a raw, short caption, as the web writes them
    caption {lang}                   a sentence, as in COCO
    describe {lang}                  a longer description
    caption <loc>×4                  what is in a box
    ocr                              the text, in reading order
    answer {lang} {question}         a short answer
    question {lang} {answer}         a question that has this answer
    detect {thing} ; {thing}         boxes
    segment {thing} ; {thing}        boxes and masks

The processor adds `<bos>` and the newline. Mix checkpoints know caption, answer, detect and
segment; the pre-trained ones all of them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Literal

from paliglass.errors import PromptError
from paliglass.tasks.boxes import Box, clip_box, encode_box
from paliglass.tasks.languages import is_language

READ = "ocr"
TASKS = ("caption", "cap", "describe", "ocr", "answer", "question", "detect", "segment")
"""First words of PaliGemma's prompts."""
CaptionStyle = Literal["cap", "caption", "describe"]
CAPTION_STYLES: tuple[CaptionStyle, ...] = ("cap", "caption", "describe")


def caption_prompt(language: str = "en", style: CaptionStyle = "caption") -> str:
    """Words about the picture: "cap" is short, "caption" a sentence, "describe" more than that."""
    if style not in CAPTION_STYLES:
        raise PromptError(f"{style!r} is no style of caption; choose {', '.join(CAPTION_STYLES)}")
    return f"{style} {_language(language)}"


def region_prompt(box: Box, width: int, height: int) -> str:
    """What is in a box, in pixels of a width × height picture: `caption <loc>×4`.

    Nothing in it is a user's text, so it is safe, and needed, to let its special tokens through:
    `allow_special_tokens=True`. Raises PromptError for a box without area in the picture.
    """
    part = clip_box(box, width, height)
    if part is None:
        raise PromptError(
            f"the box {', '.join(f'{edge:g}' for edge in box)} has no area in a picture of "
            f"{width} × {height} pixels; give x0, y0, x1, y1 with x0 < x1 and y0 < y1"
        )
    return f"caption {encode_box(part, width, height)}"


def answer_prompt(question: str, language: str = "en") -> str:
    """A short answer to a question."""
    return f"answer {_language(language)} {question}"


def as_prompt(text: str) -> str:
    """The text itself where it begins with one of `TASKS`, else a question: `answer en …`."""
    first, *_ = text.split(maxsplit=1) or [""]
    return text if first in TASKS else answer_prompt(text)


def question_prompt(answer: str, language: str = "en") -> str:
    """A question about the picture that has this answer."""
    return f"question {_language(language)} {answer}"


def detect_prompt(labels: str | Sequence[str]) -> str:
    """Boxes of everything that has one of the labels. Raises PromptError without any label."""
    return f"detect {' ; '.join(split_labels(labels, 'detect'))}"


def segment_prompt(labels: str | Sequence[str]) -> str:
    """Boxes and masks of everything that has one of the labels; raises as `detect_prompt`."""
    return f"segment {' ; '.join(split_labels(labels, 'segment'))}"


def split_labels(labels: str | Sequence[str], task: str = "detect") -> list[str]:
    """Labels, each once, of a list or of a text with semicolons between them."""
    given = [labels] if isinstance(labels, str) else list(labels)
    parts = [one_label(part) for label in given for part in label.split(";")]
    unique = list(dict.fromkeys(part for part in parts if part))
    if not unique:
        raise PromptError(f"{task} needs at least one label, such as: {task} PICTURE dog")
    return unique


def one_label(name: str) -> str:
    """A label as prompts and answers have it: one blank between words, none at the ends."""
    return " ".join(name.split())


def same_label(a: str, b: str) -> bool:
    """Whether two labels name the same: capitals, blanks and how accents are written aside."""
    return label_key(a) == label_key(b)


def label_key(name: str) -> str:
    """Equal for labels that name the same; see `same_label`."""
    return unicodedata.normalize("NFC", one_label(name)).casefold()


def _language(code: str) -> str:
    if not is_language(code):
        raise PromptError(f"{code!r} is no language code; give one like en, de or zh (ISO 639)")
    return code
