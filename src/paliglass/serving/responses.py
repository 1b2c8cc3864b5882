"""OpenAI's newer interface: /v1/responses."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from paliglass.generation import Event
from paliglass.serving.bodies import ResponsesBody
from paliglass.serving.calls import Call, Service, Speech
from paliglass.serving.errors import ApiError, refused
from paliglass.serving.http import server_event, unless_gone
from paliglass.serving.openai import (
    check_model,
    event_stream,
    headers_of,
    new_id,
    question_of,
    service_of,
    token_entries,
)
from paliglass.serving.prompts import read_chat
from paliglass.serving.structured import Structure, read_format

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["OpenAI"])


@router.post("/responses", response_model=None)
async def responses(body: ResponsesBody, request: Request) -> Response:
    """The same in the form of OpenAI's newer interface; nothing is stored."""
    service = service_of(request)
    check_model(body.model, service)
    settings = service.settings
    if body.instructions is not None and not settings.ignore_system:
        raise refused(
            "instructions",
            "PaliGemma takes none; leave them out, or start the server with --ignore-system",
        )
    turns = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    for i, item in enumerate(turns):
        if item.get("type", "message") != "message":
            raise refused(f"input[{i}].type", f"{item['type']!r} is no message")
    chat = read_chat(turns, settings.ignore_system, settings.max_pictures, "input")
    if body.instructions is not None:
        chat = chat._replace(not_read=["instructions", *chat.not_read])
    form = None if body.text is None else body.text.format
    structure = read_format(form, chat, "text.format")
    if body.top_logprobs and not body.include:
        raise ApiError(
            400, "top_logprobs needs include: message.output_text.logprobs", param="top_logprobs"
        )
    if structure is not None and body.include:
        raise refused("include", "the JSON of a format is not the model's own tokens")
    if body.top_logprobs and chat.prompt.split(" ")[0] in ("detect", "segment"):
        raise refused("top_logprobs", "boxes are held to a grammar, which leaves few alternatives")
    options: dict[str, Any] = {"temperature": body.temperature, "seed": body.seed}
    if body.max_output_tokens is not None:
        options["max_new_tokens"] = body.max_output_tokens
    call = await unless_gone(request, service.call(question_of(chat, structure, body, **options)))
    answer = _Response(call, body, structure, service)
    headers = headers_of(chat, structure)
    if body.stream:
        return event_stream(answer.events(), answer.error, call, service, headers)
    with closing(call):
        return JSONResponse(await unless_gone(request, answer.whole()), headers=headers)


class _Response:
    """A response as it comes into being."""

    def __init__(
        self,
        call: Call[Any],
        body: ResponsesBody,
        structure: Structure | None,
        service: Service,
    ) -> None:
        self.call, self.body, self.structure, self.service = call, body, structure, service
        self.processor = service.engine.model.processor
        self.id, self.message_id = new_id("resp"), new_id("msg")
        self.created = int(time.time())
        self.text, self.tokens, self.reason = "", list[Event](), "stop"
        self._number = -1

    def _logprobs(self, events: Sequence[Event]) -> list[dict[str, Any]]:
        return token_entries(self.processor, events) if self.body.include else []

    def _part(self) -> dict[str, Any]:
        return {
            "type": "output_text",
            "text": self.text,
            "annotations": [],
            "logprobs": self._logprobs(self.tokens),
        }

    def _message(self, status: str) -> dict[str, Any]:
        content = [] if status == "in_progress" else [self._part()]
        return {
            "type": "message", "id": self.message_id, "status": status, "role": "assistant",
            "content": content,
        }  # fmt: skip

    def _object(self, status: str) -> dict[str, Any]:
        body, is_over = self.body, status != "in_progress"
        prompt, completion = self.call.prompt_tokens, self.call.completion_tokens
        usage = {
            "input_tokens": prompt,
            "output_tokens": completion,
            "total_tokens": prompt + completion,
        }
        details = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": details,
            "instructions": None,
            "max_output_tokens": body.max_output_tokens,
            "model": self.service.settings.name,
            "output": [self._message(status)] if is_over else [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": body.temperature,
            "text": {"format": (body.text and body.text.format) or {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": usage if is_over else None,
            "metadata": body.metadata,
        }

    @property
    def status(self) -> str:
        return "completed" if self.reason == "stop" else "incomplete"

    async def _pieces(self) -> AsyncIterator[tuple[str, list[Event]]]:
        """The text's pieces; afterwards `text`, `tokens` and `reason` hold the whole."""
        if self.structure is None:
            speech = Speech(self.processor)
            async for _, events in self.call.events():
                speech.hear(events)
                piece, tokens = speech.piece()
                if piece:
                    yield piece, tokens
            self.text, self.reason = speech.text, speech.finish_reason or "stop"
            self.tokens = [event for event, _ in speech.tokens]
        else:
            [result] = await self.call.results()
            self.text, self.reason = self.structure.render(result), result.finish_reason
            yield self.text, []

    async def whole(self) -> dict[str, Any]:
        async for _ in self._pieces():
            pass
        return self._object(self.status)

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        return server_event(
            {"type": f"response.{kind}", "sequence_number": self._number, **fields},
            f"response.{kind}",
        )

    async def events(self) -> AsyncIterator[bytes]:
        place = {"item_id": self.message_id, "output_index": 0, "content_index": 0}
        empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        started = self._object("in_progress")
        yield self._event("created", response=started)
        yield self._event("in_progress", response=started)
        item = self._message("in_progress")
        yield self._event("output_item.added", output_index=0, item=item)
        yield self._event("content_part.added", **place, part=empty)
        async for piece, tokens in self._pieces():
            logprobs = self._logprobs(tokens)
            yield self._event("output_text.delta", **place, delta=piece, logprobs=logprobs)
        part = self._part()
        yield self._event("output_text.done", **place, text=self.text, logprobs=part["logprobs"])
        yield self._event("content_part.done", **place, part=part)
        yield self._event("output_item.done", output_index=0, item=self._message(self.status))
        yield self._event(self.status, response=self._object(self.status))

    def error(self, error: ApiError) -> bytes:
        fields = error.body["error"]
        return self._event("error", **fields).replace(b"response.error", b"error")
