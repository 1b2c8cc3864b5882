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

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from paliglass.errors import PromptError
from paliglass.tasks.boxes import Box, clip_box, encode_box

__all__ = [
    "READ",
    "SPECIAL_WORD",
    "TASKS",
    "CaptionStyle",
    "answer_prompt",
    "as_prompt",
    "caption_prompt",
    "detect_prompt",
    "label_key",
    "one_label",
    "question_prompt",
    "region_prompt",
    "require_texts",
    "same_label",
    "segment_prompt",
    "split_labels",
    "without_placeholders",
]

READ = "ocr"
TASKS = ("caption", "cap", "describe", "ocr", "answer", "question", "detect", "segment")
"""First words of PaliGemma's prompts."""
SPECIAL_WORD = re.compile(r"<(?:loc\d{4}|seg\d{3}|image|bos|eos|pad)>")
"""What a label must not hold: it would be read as what it stands for elsewhere."""
CaptionStyle = Literal["cap", "caption", "describe"]
CAPTION_STYLES: tuple[CaptionStyle, ...] = ("cap", "caption", "describe")

# ISO 639-1, all of it. Of ISO 639-2 and 639-3 those that captions in many languages have (arXiv
# 2205.12522), with other large ones; and the withdrawn codes that WebLI (arXiv 2209.06794) uses.
_LANGUAGES = frozenset(
    """
    aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da
    de dv dz ee el en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz
    ia id ie ig ii ik io is it iu ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln
    lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi
    pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su sv sw ta te tg th ti
    tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu

    ast bho ceb ckb cmn dsb fil fur gsw haw hmn hsb ilo kab lij lus mai mni mul nah nan nds new pam
    prs pap quc quz sah sat scn sco sdh shn swc szl tet tpi tzm vec war wuu yue zgh
    in iw ji jw mo sh
    """.split()
)


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
    return f"answer {_language(language)} {without_placeholders(question)}"


def as_prompt(text: str) -> str:
    """The text itself where it begins with one of `TASKS`, else a question: `answer en …`.

    Without the placeholders before it; see `without_placeholders`.
    """
    text = without_placeholders(text)
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
    given = require_texts(labels, "a label")
    parts = [one_label(part) for label in given for part in label.split(";")]
    unique = list(dict.fromkeys(part for part in parts if part))
    if not unique:
        raise PromptError(f"{task} needs at least one label, such as: {task} PICTURE dog")
    return unique


def without_placeholders(prompt: str) -> str:
    """A prompt without blanks at its ends, and without the `<image>` and `<bos>` before it and the
    newline behind it, which the processor puts there.

    Prompts written for transformers have them; here they would be letters, which change the answer.
    """
    return re.sub(r"^(?:\s*<(?:image|bos)>)+", "", prompt).strip()


def require_texts(value: str | Iterable[str], what: str) -> list[str]:
    """A text, or several, as a list. Raises PromptError that says `what` is none."""
    # Of bytes the parts would be numbers, of a mapping its keys.
    is_one = isinstance(value, str | bytes | bytearray | memoryview | Mapping)
    texts: list[Any] = [value] if is_one or not isinstance(value, Iterable) else list(value)
    for text in texts:
        if not isinstance(text, str):
            raise PromptError(f"{what} is {text!r}; it must be a text")
    return texts


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
    """The code, if it is one: a model answers to nonsense too, and nobody would notice.

    Such as `en`, `fil` or `zh-Hans`, whose first part counts.
    """
    match = re.fullmatch(r"([a-z]{2,3})(-[A-Za-z0-9]{2,8})*", str(code))
    if match is None or match[1] not in _LANGUAGES:
        raise PromptError(f"{code!r} is no language code; give one like en, de or zh (ISO 639)")
    return code
