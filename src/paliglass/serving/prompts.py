"""A chat → PaliGemma's prompt: the last user turn, and the pictures it is about.

PaliGemma does not converse. Of a chat it is given the last user turn's text, as it stands where it
begins with one of PaliGemma's tasks, else as `answer en …`; and that turn's pictures, or, if it has
none, those of the last turn that has. What was not read is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from paliglass.generation import Completion, Request
from paliglass.pictures import PreparedPicture
from paliglass.processing_paligemma import PaliGemmaProcessor
from paliglass.serving.errors import ApiError, refused
from paliglass.serving.settings import MAX_TEXT
from paliglass.tasks.answering import GenerationOptions, Task
from paliglass.tasks.confidence import raw_score
from paliglass.tasks.grammar import ObjectGrammar
from paliglass.tasks.prompts import as_prompt, split_labels, without_placeholders
from paliglass.tasks.results import Answer

__all__ = ["Chat", "PromptTask", "read_chat"]


class Chat(NamedTuple):
    """What is asked. text: the user's own; not_read: what of the chat was left out."""

    text: str
    pictures: list[str]
    not_read: list[str]

    @property
    def prompt(self) -> str:
        return as_prompt(self.text)

    @property
    def headers(self) -> dict[str, str]:
        return {"X-Paliglass-Not-Read": ", ".join(self.not_read)} if self.not_read else {}


def read_chat(
    messages: Sequence[Mapping[str, Any]], ignore_system: bool, max_pictures: int, field: str
) -> Chat:
    """Reads OpenAI's messages. field: what holds them, for errors to name."""
    not_read: list[str] = []
    turns: list[tuple[int, Mapping[str, Any]]] = []
    for i, message in enumerate(messages):
        role = message.get("role")
        if role in ("system", "developer"):
            if not ignore_system:
                raise refused(
                    f"{field}[{i}].role",
                    f"PaliGemma takes no {role} message; leave it out, or start the server with "
                    "--ignore-system",
                )
            not_read.append(f"{role} message")
        elif role == "user":
            turns.append((i, message))
        elif role != "assistant":
            raise refused(f"{field}[{i}].role", f"{role!r} is not among system, user, assistant")
    if not turns or messages[-1].get("role") != "user":
        raise ApiError(400, f"{field} must end with the user's turn", param=field)
    if len(messages) - len(not_read) > 1:
        not_read.append("earlier turns")
    *earlier, (last, turn) = turns
    text, pictures = _read_parts(turn.get("content"), f"{field}[{last}].content")
    for i, before in reversed(earlier):
        if pictures:
            break
        _, pictures = _read_parts(before.get("content"), f"{field}[{i}].content")
    if not without_placeholders(text):
        raise ApiError(400, "the user's turn has no text", param=f"{field}[{last}].content")
    if len(text) > MAX_TEXT:
        why = f"the user's turn has {len(text):,} characters; at most {MAX_TEXT:,} are read"
        raise ApiError(400, why, param=f"{field}[{last}].content")
    if not pictures:
        raise ApiError(
            400,
            "there is no picture; PaliGemma answers about one: add it as an image part",
            param=f"{field}[{last}].content",
        )
    if len(pictures) > max_pictures:
        raise ApiError(400, f"at most {max_pictures} pictures", param=f"{field}[{last}].content")
    return Chat(text, pictures, list(dict.fromkeys(not_read)))


def _read_parts(content: Any, field: str) -> tuple[str, list[str]]:
    """A turn's text and its pictures' addresses; parts of both of OpenAI's interfaces."""
    if isinstance(content, str):
        return content.strip(), []
    if not isinstance(content, list):
        raise ApiError(400, f"{field} is neither text nor a list of parts", param=field)
    texts, pictures = [], []
    for i, part in enumerate(content):
        place = f"{field}[{i}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "input_text") and isinstance(part.get("text"), str):
            texts.append(part["text"].strip())
        elif kind in ("image_url", "input_image"):
            pictures.append(_address(part, place))
        else:
            raise refused(place, f"a part of type {kind!r} is neither text nor a picture")
    return " ".join(filter(None, texts)), pictures


def _address(part: dict[str, Any], place: str) -> str:
    image = part.get("image_url")
    holder = image if isinstance(image, dict) else {**part, "url": image}
    if part.get("file_id") is not None:
        raise refused(f"{place}.file_id", "the server keeps no files")
    if holder.get("detail") not in (None, "auto"):
        raise refused(f"{place}.detail", "a model has one size of pictures; leave it at auto")
    if not isinstance(holder.get("url"), str):
        raise ApiError(400, f"{place} has no address", param=place)
    return str(holder["url"])


class PromptTask(Task[Answer]):
    """A prompt as it stands; one that begins with detect or segment is held to its grammar."""

    def __init__(self, processor: PaliGemmaProcessor, prompt: str) -> None:
        self.processor, self.prompt = processor, prompt
        task, _, labels = prompt.partition(" ")
        self.grammar = None
        if task in ("detect", "segment"):
            names = split_labels(labels, task)
            self.grammar = ObjectGrammar(processor, names, masks=task == "segment")

    def requests(
        self, pictures: Sequence[PreparedPicture], options: GenerationOptions, number: int
    ) -> list[Request]:
        constraint = None if self.grammar is None else self.grammar.start()
        return [options.request(self.prompt, pictures, number, constraint)]

    def result(
        self, pictures: Sequence[PreparedPicture], completions: Sequence[Completion]
    ) -> Answer:
        [done] = completions
        score = raw_score([*done.log_probs, done.end_log_prob])
        return Answer(self.processor.decode(done.ids), score, done.finish_reason)
