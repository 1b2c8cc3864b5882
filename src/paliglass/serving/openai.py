"""OpenAI's interface: /v1/chat/completions, /v1/embeddings, /v1/models; see also `responses`."""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from paliglass.generation import Event
from paliglass.model import PaliGemma
from paliglass.processing_paligemma import PaliGemmaProcessor
from paliglass.serving.bodies import ChatBody, EmbeddingsBody, ResponsesBody
from paliglass.serving.calls import Call, Question, Service, Speech
from paliglass.serving.errors import ApiError, refused
from paliglass.serving.http import EventStream, server_event, unless_gone
from paliglass.serving.pictures import is_address
from paliglass.serving.prompts import Chat, PromptTask, read_chat
from paliglass.serving.settings import MAX_TEXT
from paliglass.serving.structured import Structure, read_format
from paliglass.tasks.answering import GenerationOptions, Task

__all__ = [
    "check_model",
    "event_stream",
    "headers_of",
    "new_id",
    "question_of",
    "router",
    "service_of",
    "token_entries",
]

router = APIRouter(prefix="/v1", tags=["OpenAI"])


def service_of(request: Request) -> Service:
    """What the application was made with."""
    found: Service = request.app.state.service
    return found


def check_model(given: str | None, service: Service) -> None:
    """Refuses a request for another model than there is."""
    name = service.settings.name
    if given not in (None, name):
        raise ApiError(
            404, f"there is no model {given!r} here; it is {name!r}", param="model",
            code="model_not_found",
        )  # fmt: skip


@router.get("/models")
async def models(request: Request) -> dict[str, Any]:
    """The model, and the dual encoder of /v1/embeddings."""
    service = service_of(request)
    names = [service.settings.name, service.settings.embedding_name]
    return {"object": "list", "data": [_model(name, service) for name in names if name]}


@router.get("/models/{name:path}")
async def model(name: str, request: Request) -> dict[str, Any]:
    service = service_of(request)
    if name not in (service.settings.name, service.settings.embedding_name):
        check_model(name, service)
    return _model(name, service)


def _model(name: str, service: Service) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": service.started, "owned_by": "paliglass"}


# ---------------------------------------------------------------------------- chat


@router.post("/chat/completions", response_model=None)
async def chat_completions(body: ChatBody, request: Request) -> Response:
    """Answers the last user turn about its pictures; see docs/serving.md for what is read."""
    service = service_of(request)
    check_model(body.model, service)
    settings = service.settings
    chat = read_chat(body.messages, settings.ignore_system, settings.max_pictures, "messages")
    structure = read_format(body.response_format, chat)
    _check_chat(body, chat, structure, settings.max_samples)
    options = {"max_new_tokens": body.limit, "temperature": body.temperature, "seed": body.seed}
    question = question_of(chat, structure, body, **options)
    call = await unless_gone(request, service.call(question))
    headers = headers_of(chat, structure)
    about = {"id": new_id("chatcmpl"), "created": int(time.time()), "model": settings.name}
    if body.stream:
        chunks = _chat_chunks(call, body, structure, service, about)
        return event_stream(chunks, _chat_error, call, service, headers)
    with closing(call):
        return JSONResponse(
            await unless_gone(request, _chat(call, body, structure, service, about)),
            headers=headers,
        )


def _check_chat(body: ChatBody, chat: Chat, structure: Structure | None, max_samples: int) -> None:
    if body.n > max_samples:
        raise ApiError(400, f"n is {body.n}; at most {max_samples} answers", param="n")
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs", param="top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream", param="stream_options")
    if structure is not None:
        for name, given in (("stop", body.stops), ("logprobs", body.logprobs)):
            if given:
                raise refused(name, "the JSON of a response_format is not the model's own tokens")
    if body.top_logprobs and chat.prompt.split(" ")[0] in ("detect", "segment"):
        raise refused("top_logprobs", "boxes are held to a grammar, which leaves few alternatives")


def question_of(
    chat: Chat, structure: Structure | None, body: ChatBody | ResponsesBody, **options: Any
) -> Question[Any]:
    """What a chat asks of the model, and how it is to be answered."""

    def prompt_task(model: PaliGemma) -> Task[Any]:
        return PromptTask(model.processor, chat.prompt)

    stops = body.stops if isinstance(body, ChatBody) else []
    return Question(
        prompt_task if structure is None else structure.make,
        chat.pictures,
        _options(body, **options),
        samples=body.n if isinstance(body, ChatBody) else 1,
        is_streamed=structure is None and (body.stream or bool(stops)),
        num_alternatives=body.top_logprobs,
    )


def _options(body: ChatBody | ResponsesBody, **options: Any) -> GenerationOptions:
    if body.temperature == 0 and (body.top_k is not None):
        raise ApiError(400, "top_k needs a temperature above 0", param="top_k")
    return GenerationOptions(
        top_p=body.top_p,
        top_k=body.top_k,
        allow_special_tokens=body.allow_special_tokens,
        **options,
    )


def headers_of(chat: Chat, structure: Structure | None) -> dict[str, str]:
    """Tells what of a request was not read."""
    if structure is not None and not structure.reads_text:
        chat = chat._replace(not_read=[*chat.not_read, "text"])
    return chat.headers


async def _chat(
    call: Call[Any],
    body: ChatBody,
    structure: Structure | None,
    service: Service,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    processor = service.engine.model.processor
    choices = []
    if structure is None:
        speeches = [Speech(processor, body.stops) for _ in call.completions]
        async for i, events in call.events():
            speeches[i].hear(events)
            if speeches[i].finish_reason is not None:
                call.end(i)
        for i, speech in enumerate(speeches):
            events = [event for event, _ in speech.tokens]
            logprobs = {"content": token_entries(processor, events), "refusal": None}
            choices.append(
                _choice(i, speech.text, speech.finish_reason, logprobs if body.logprobs else None)
            )
    else:
        for i, result in enumerate(await call.results()):
            reason = result.finish_reason
            choices.append(_choice(i, structure.render(result), reason, None))
    return {
        **about,
        "object": "chat.completion",
        "choices": choices,
        "usage": _chat_usage(call),
    }


def _choice(i: int, text: str, reason: str | None, logprobs: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {"index": i, "message": message, "logprobs": logprobs, "finish_reason": reason}


def _chat_usage(call: Call[Any]) -> dict[str, int]:
    prompt, completion = call.prompt_tokens, call.completion_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


async def _chat_chunks(
    call: Call[Any],
    body: ChatBody,
    structure: Structure | None,
    service: Service,
    about: Mapping[str, Any],
) -> AsyncIterator[bytes]:
    processor = service.engine.model.processor
    with_usage = body.stream_options is not None and body.stream_options.include_usage

    def chunk(
        i: int, delta: dict[str, Any], reason: str | None = None, tokens: Any = None
    ) -> bytes:
        logprobs = (
            {"content": token_entries(processor, tokens), "refusal": None} if tokens else None
        )
        choice = {"index": i, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        usage = {"usage": None} if with_usage else {}
        return server_event(
            {**about, "object": "chat.completion.chunk", "choices": [choice], **usage}
        )

    for i in range(body.n):
        yield chunk(i, {"role": "assistant", "content": ""})
    if structure is None:
        speeches = [Speech(processor, body.stops) for _ in call.completions]
        async for i, events in call.events():
            speech = speeches[i]
            speech.hear(events)
            piece, tokens = speech.piece()
            tokens = tokens if body.logprobs else []
            if piece or tokens:
                yield chunk(i, {"content": piece}, tokens=tokens)
            if speech.finish_reason is not None:
                call.end(i)
                yield chunk(i, {}, speech.finish_reason)
    else:
        for i, result in enumerate(await call.results()):
            yield chunk(i, {"content": structure.render(result)})
            yield chunk(i, {}, result.finish_reason)
    if with_usage:
        usage = _chat_usage(call)
        yield server_event(
            {**about, "object": "chat.completion.chunk", "choices": [], "usage": usage}
        )
    yield server_event("[DONE]")


def _chat_error(error: ApiError) -> bytes:
    return server_event(error.body)


def token_entries(processor: PaliGemmaProcessor, events: Sequence[Event]) -> list[dict[str, Any]]:
    """OpenAI's list of tokens with their log-probabilities, nats."""

    def entry(token: int, log_prob: float) -> dict[str, Any]:
        text = processor.tokenizer.decode([token], skip_special_tokens=False)
        data = list(text.encode("utf-8"))
        if processor.is_byte(token):
            data = [int(str(processor.tokenizer.id_to_token(token))[3:-1], 16)]
        return {"token": text, "logprob": log_prob, "bytes": data}

    return [
        {
            **entry(event.token, event.log_prob),
            "top_logprobs": [entry(token, log_prob) for token, log_prob in event.alternatives],
        }
        for event in events
    ]


def event_stream(
    parts: AsyncIterator[bytes],
    on_error: Callable[[ApiError], bytes],
    call: Call[Any],
    service: Service,
    headers: Mapping[str, str],
) -> EventStream:
    """An answer's parts as they come; `on_error` writes what ends them early."""
    return EventStream(parts, on_error, call.close, service.settings.ping_seconds, headers)


def new_id(kind: str) -> str:
    """Of an answer: `chatcmpl-…`, `resp-…`."""
    return f"{kind}-{uuid.uuid4().hex}"


# ---------------------------------------------------------------------- embeddings


@router.post("/embeddings", response_model=None)
async def embeddings(body: EmbeddingsBody, request: Request) -> Response:
    """Vectors of texts and pictures from the dual encoder, of unit length."""
    service = service_of(request)
    name = service.settings.embedding_name
    if service.dual is None or name is None:
        raise ApiError(404, "there is no dual encoder here; start with --embedding-model")
    if body.model not in (None, name):
        raise ApiError(
            404, f"there is no model {body.model!r} here; embeddings are {name!r}'s",
            param="model", code="model_not_found",
        )  # fmt: skip
    inputs = [body.input] if isinstance(body.input, str) else body.input
    if not all(text.strip() for text in inputs):
        raise ApiError(400, "input holds an empty text", param="input")
    if sum(len(text) for text in inputs if not is_address(text)) > MAX_TEXT:
        raise ApiError(400, f"input has more than {MAX_TEXT:,} characters of text", param="input")
    vectors, tokens = await unless_gone(request, service.dual.embed(inputs, service.pictures))
    data = [
        {"object": "embedding", "index": i, "embedding": _vector(row, body.encoding_format)}
        for i, row in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": data, "model": name, "usage": usage})


def _vector(row: np.ndarray[Any, np.dtype[np.float32]], form: str) -> str | list[float]:
    if form == "float":
        return [float(number) for number in row]
    return base64.b64encode(row.astype("<f4").tobytes()).decode("ascii")
