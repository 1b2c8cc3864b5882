"""PaliGemma's prompts (arXiv 2407.07726, appendix). The processor adds `<bos>` and the newline."""

from __future__ import annotations

from collections.abc import Sequence

from paliglass.errors import PromptError

READ = "ocr"


def caption_prompt(language: str = "en") -> str:
    """A sentence about the picture, in a language by its ISO code."""
    return f"caption {language}"


def answer_prompt(question: str, language: str = "en") -> str:
    """A short answer to a question."""
    return f"answer {language} {question}"


def detect_prompt(labels: str | Sequence[str]) -> str:
    """Boxes of everything that has one of the labels. Raises PromptError without any label."""
    given = [labels] if isinstance(labels, str) else list(labels)
    parts = [part.strip() for label in given for part in label.split(";")]
    unique = list(dict.fromkeys(part for part in parts if part))
    if not unique:
        raise PromptError("detect needs at least one label, such as: detect PICTURE dog")
    return f"detect {' ; '.join(unique)}"
