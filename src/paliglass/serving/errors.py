"""Errors as OpenAI's clients read them: one line that names the field, no path, no traceback."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from paliglass.errors import CheckpointError, PaliglassError, PictureError, PromptError
from paliglass.formats.records import explain_validation
from paliglass.serving.jobs import BusyError, LateError, NotReadyError, log

__all__ = ["ApiError", "as_api_error", "refused"]


class ApiError(Exception):
    """What is answered instead of a result. param: the field that is at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
        kinds[429] = "rate_limit_error"
        fallback = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": self.message,
                "type": kinds.get(self.status, fallback),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


def refused(param: str, why: str) -> ApiError:
    """A field that cannot be honoured: it is named, not ignored."""
    return ApiError(400, f"{param} cannot be honoured: {why}", param=param, code="unsupported")


def as_api_error(error: Exception) -> ApiError:
    """Whatever was raised, as it is told; what nobody foresaw goes to the log alone."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return _from_validation(error)
    message = " ".join(str(error).split())
    if isinstance(error, BusyError):
        wait = {"Retry-After": str(error.retry_after)}
        return ApiError(429, message, code="queue_full", headers=wait)
    if isinstance(error, NotReadyError):
        return ApiError(503, message, code="not_ready", headers={"Retry-After": "5"})
    if isinstance(error, LateError):
        return ApiError(504, message, code="timeout")
    if isinstance(error, PictureError):
        return ApiError(400, message, param="image", code="invalid_image")
    if isinstance(error, PromptError):
        return ApiError(400, message, code="invalid_prompt")
    if isinstance(error, CheckpointError):
        # Its messages name files; the one that requests can meet is a missing mask codec.
        return ApiError(400, "this model has no mask codec: segment is not possible")
    if isinstance(error, PaliglassError):
        return ApiError(500, message, code="model_failed")
    log(error)
    return ApiError(500, "an error that nobody foresaw; the server's log has it", code="internal")


def _from_validation(error: RequestValidationError) -> ApiError:
    first, *rest = error.errors()
    others = []
    if first["loc"][2:3] in (("str",), ("constrained-str",)):  # of a field of text or of a list
        either = [first, *(some for some in rest if some["loc"][:2] == first["loc"][:2])]
        first = max(either, key=lambda some: len(some["loc"]))  # what is wrong inside the list
        others = either[1:] if first is either[0] else []
        first = {**first, "loc": (*first["loc"][:2], *first["loc"][3:])}
    context = first.get("ctx") or {}
    place = ".".join(str(part) for part in first["loc"][1:])
    if "field" in context:
        place = f"{place}.{context['field']}" if place else str(context["field"])
        return ApiError(400, f"{place} {first['msg']}", param=place, code="unsupported")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"there is no field {place}", param=place, code="unknown_parameter")
    if first["type"] == "json_invalid":  # its place is the letter's number
        return ApiError(400, f"the body is not JSON ({context['error']}, at character {place})")
    if first["type"] == "missing":
        what = f"{place} is missing" if place else "the request has no body"
        return ApiError(400, what, param=place or None)
    message = (
        explain_validation(first, place or "the body", others=others) or f"{place}: {first['msg']}"
    )
    return ApiError(400, message[:500], param=place or None)
