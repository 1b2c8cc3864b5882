"""A chat becomes one prompt; what was not read is named."""

from __future__ import annotations

from typing import Any

import pytest
from tests.serving.helpers import Running, chat, noise_address, scene_address

from paliglass.serving.errors import ApiError
from paliglass.serving.prompts import read_chat
from paliglass.tasks.prompts import TASKS


def user(text: str, *urls: str) -> dict[str, Any]:
    return chat(text, *urls)["messages"][0]


def read(*messages: dict[str, Any], ignore_system: bool = False, most: int = 3) -> Any:
    return read_chat(messages, ignore_system, most, "messages")


@pytest.mark.parametrize("task", TASKS)
def test_what_begins_with_a_task_stands_as_it_is(task: str) -> None:
    assert read(user(f"{task} en a dog", "data:1")).prompt == f"{task} en a dog"


@pytest.mark.parametrize("text", ["what is this?", "captions please", "Detect dog", "what? detect"])
def test_anything_else_is_a_question(text: str) -> None:
    assert read(user(text, "data:1")).prompt == f"answer en {text}"


def test_what_stands_before_a_prompt_anyway_is_not_read() -> None:
    assert read(user("<image>detect dog", "data:1")).prompt == "detect dog"
    assert read(user("<image><bos>what?", "data:1")).prompt == "answer en what?"
    with pytest.raises(ApiError, match="has no text"):
        read(user("<image>", "data:1"))


def test_the_last_turns_pictures_or_the_last_there_are() -> None:
    said = {"role": "assistant", "content": "a dog"}
    assert read(user("a", "data:1", "data:2")).pictures == ["data:1", "data:2"]
    found = read(user("a", "data:0"), said, user("b", "data:1"), said, user("c"))
    assert (found.text, found.pictures) == ("c", ["data:1"])
    assert found.not_read == ["earlier turns"]
    assert read(user("a", "data:1"), said, user("b", "data:2")).pictures == ["data:2"]
    assert read(user("a", "data:1")).headers == {}


def test_texts_of_a_turn_are_joined() -> None:
    content = [
        {"type": "text", "text": " detect "},
        {"type": "image_url", "image_url": {"url": "data:1"}},
        {"type": "text", "text": "dog"},
    ]
    assert read({"role": "user", "content": content}).prompt == "detect dog"


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_message_is_refused_unless_it_is_to_be_ignored(role: str) -> None:
    system = {"role": role, "content": "be brief"}
    with pytest.raises(ApiError, match=r"messages\[0\].role.*--ignore-system"):
        read(system, user("a", "data:1"))
    found = read(system, user("a", "data:1"), ignore_system=True)
    assert (found.prompt, found.not_read) == ("answer en a", [f"{role} message"])


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([user("a")], "no picture"),
        ([user("", "data:1")], "no text"),
        ([user("a", "data:1"), {"role": "assistant", "content": "b"}], "end with the user's turn"),
        ([{"role": "assistant", "content": "b"}], "end with the user's turn"),
        ([{"role": "tool", "content": "b"}, user("a", "data:1")], "'tool' is not among"),
        ([{"content": "b"}], "None is not among"),
        ([{"role": "user", "content": 3}], "neither text nor a list"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "'input_audio' is neither"),
        ([{"role": "user", "content": ["a"]}], "None is neither"),
        ([user("a", *["data:1"] * 4)], "at most 3 pictures"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "no address"),
        (
            [{"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": "data:1", "detail": "high"}}]}],
            "detail cannot be honoured",
        ),
        (
            [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}],
            "file_id cannot be honoured",
        ),
    ],
)  # fmt: skip
def test_what_is_no_question_about_a_picture_is_named(messages: Any, match: str) -> None:
    with pytest.raises(ApiError, match=match) as error:
        read(*messages)
    assert str(error.value.param).startswith("messages")


def test_the_answer_says_what_was_not_read(server: Running) -> None:
    body = chat("what is this?")
    body["messages"] = [
        *chat("a", scene_address())["messages"],
        {"role": "assistant", "content": "b"},
        *body["messages"],
    ]
    answer = server.post("/v1/chat/completions", body)
    assert answer.headers["x-paliglass-not-read"] == "earlier turns"
    form = {"type": "json_schema", "json_schema": {"schema": {
        "type": "array", "items": {"type": "object", "properties": {
            "label": {"enum": ["tractor"]}}}}}}  # fmt: skip
    answer = server.post(
        "/v1/chat/completions", chat("find them", noise_address(), response_format=form)
    )
    assert answer.headers["x-paliglass-not-read"] == "text"
