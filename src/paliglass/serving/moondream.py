"""Moondream's interface: /v1/caption, query, detect, point, segment.

Boxes and points are shares of the picture's width and height, and each has its label and score
besides. A path is in shares of its box, as an SVG viewer fills it with `fill-rule: evenodd`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from paliglass.model import PaliGemma
from paliglass.serving.bodies import (
    CaptionBody,
    ObjectBody,
    PictureBody,
    QueryBody,
    SegmentBody,
)
from paliglass.serving.calls import Call, Question, Service, Speech
from paliglass.serving.errors import ApiError
from paliglass.serving.http import EventStream, server_event, unless_gone
from paliglass.serving.openai import check_model, service_of
from paliglass.tasks.answering import GenerationOptions, Task
from paliglass.tasks.boxes import Box
from paliglass.tasks.prompts import CaptionStyle, split_labels
from paliglass.tasks.results import Answer, Detection, Found, Segment

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["Moondream"])
STYLES: dict[str, CaptionStyle] = {"short": "cap", "normal": "caption", "long": "describe"}


@router.post("/caption", response_model=None)
async def caption(body: CaptionBody, request: Request) -> Response:
    """The picture in words."""
    return await _words(
        body, request, "caption", lambda m: m.caption_task("en", STYLES[body.length])
    )


@router.post("/query", response_model=None)
async def query(body: QueryBody, request: Request) -> Response:
    """A short answer to a question."""
    return await _words(body, request, "answer", lambda m: m.ask_task(body.question))


@router.post("/detect", response_model=None)
async def detect(body: ObjectBody, request: Request) -> Response:
    """Boxes of all that has the label."""
    found = await _found(body, request)
    return JSONResponse({"objects": [{**_region(found, d), **_sure(d)} for d in found]})


@router.post("/point", response_model=None)
async def point(body: ObjectBody, request: Request) -> Response:
    """The middle of each box."""
    found = await _found(body, request)
    points = []
    for item in found:
        x0, y0, x1, y1 = _shares(found, item.box)
        points.append({"x": (x0 + x1) / 2, "y": (y0 + y1) / 2, **_sure(item)})
    return JSONResponse({"points": points})


@router.post("/segment", response_model=None)
async def segment(body: SegmentBody, request: Request) -> Response:
    """The outline of the surest thing that has the label; `segments` holds all of them."""
    service = service_of(request)
    check_model(body.model, service)
    labels = split_labels(body.object, "segment")
    question: Question[Found[Segment]] = Question(
        lambda m: m.segment_task(labels),
        [body.image_url],
        _options(body),
        num_requests=len(labels),
    )
    call = await unless_gone(request, service.call(question))
    if body.stream:
        stream = _segment_events(call, body, service)
        return EventStream(stream, _error, call.close, service.settings.ping_seconds)
    with closing(call):
        return JSONResponse(await unless_gone(request, _segments(call, body, service)))


async def _words(body: CaptionBody | QueryBody, request: Request, name: str, make: Any) -> Response:
    service = service_of(request)
    check_model(body.model, service)
    question: Question[Answer] = Question(
        make, [body.image_url], _options(body), is_streamed=body.stream
    )
    call = await unless_gone(request, service.call(question))
    if body.stream:
        stream = _word_events(call, name, service)
        return EventStream(stream, _error, call.close, service.settings.ping_seconds)
    with closing(call):
        [answer] = await unless_gone(request, call.results())
    return JSONResponse({name: str(answer), **_told(answer)})


async def _word_events(call: Call[Answer], name: str, service: Service) -> AsyncIterator[bytes]:
    speech = Speech(service.engine.model.processor)
    async for _, events in call.events():
        speech.hear(events)
        piece, _tokens = speech.piece()
        if piece:
            yield server_event({"chunk": piece})
    [answer] = call.made()
    yield server_event({"chunk": "", "completed": True, name: str(answer), **_told(answer)})


async def _found(body: ObjectBody, request: Request) -> Found[Detection]:
    service = service_of(request)
    check_model(body.model, service)

    def make(model: PaliGemma) -> Task[Found[Detection]]:
        return model.detect_task(body.object)

    question: Question[Found[Detection]] = Question(make, [body.image_url], _options(body))
    call = await unless_gone(request, service.call(question))
    with closing(call):
        [found] = await unless_gone(request, call.results())
    del found[body.settings.max_objects or len(found) :]
    return found


async def _segments(
    call: Call[Found[Segment]], body: SegmentBody, service: Service
) -> dict[str, Any]:
    async for _ in call.events():
        pass

    def made() -> dict[str, Any]:
        [found] = call.made()  # the codec decodes masks
        del found[body.settings.max_objects or len(found) :]
        segments = [
            {"path": _path(item), "bbox": _region(found, item), **_sure(item)} for item in found
        ]
        best = max(segments, key=lambda s: float(s["score"]), default={"path": "", "bbox": None})
        return {**best, "segments": segments}

    return await service.pictures.work(made)


async def _segment_events(
    call: Call[Found[Segment]], body: SegmentBody, service: Service
) -> AsyncIterator[bytes]:
    whole = await _segments(call, body, service)
    if whole["bbox"] is not None:
        yield server_event({"type": "bbox", "bbox": whole["bbox"]})
    yield server_event({"type": "final", **whole, "completed": True})


def _options(body: PictureBody) -> GenerationOptions:
    given = body.settings
    return GenerationOptions(
        max_new_tokens=given.max_tokens,
        temperature=given.temperature,
        top_p=given.top_p,
        seed=given.seed,
    )


def _told(answer: Answer) -> dict[str, Any]:
    return {"score": round(answer.score, 4), "finish_reason": answer.finish_reason}


def _sure(item: Detection | Segment) -> dict[str, Any]:
    return {"label": item.label, "score": round(item.score, 4)}


def _shares(found: Found[Any], box: Box) -> Box:
    """Pixels → shares of the picture."""
    width, height = found.width, found.height
    return Box(box.x0 / width, box.y0 / height, box.x1 / width, box.y1 / height)


def _region(found: Found[Any], item: Detection | Segment) -> dict[str, float]:
    x0, y0, x1, y1 = _shares(found, item.box)
    return {"x_min": x0, "y_min": y0, "x_max": x1, "y_max": y1}


def _path(item: Segment) -> str:
    """A mask's outlines in SVG, in shares of its box."""
    x0, y0, x1, y1 = item.box
    width, height = x1 - x0, y1 - y0
    parts = []
    for polygon in item.polygons():
        shares = (((x - x0) / width, (y - y0) / height) for x, y in polygon)
        # Pixels lie in the box where their middles do, so that an edge may stand out.
        points = [f"{min(max(x, 0), 1):.4f} {min(max(y, 0), 1):.4f}" for x, y in shares]
        parts.append(f"M {' L '.join(points)} Z")
    return " ".join(parts)


def _error(error: ApiError) -> bytes:
    return server_event({**error.body, "completed": True})
