"""The requests' bodies. What clients send and this server cannot honour is named, not ignored."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from paliglass.generation import MAX_NEW_TOKENS
from paliglass.serving.settings import MAX_TEXT

__all__ = [
    "CaptionBody",
    "ChatBody",
    "EmbeddingsBody",
    "ObjectBody",
    "PictureBody",
    "QueryBody",
    "ResponsesBody",
    "SegmentBody",
]

NO_TOOLS = "PaliGemma calls no tools"
NO_PENALTY = "tokens are chosen by temperature, top_p and top_k alone"
NOT_STORED = "the server keeps nothing"


class Body(BaseModel):
    """A body whose null fields are as good as left out.

    neutral: fields that are known and not honoured, with the values that ask for nothing, and why.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    neutral: ClassVar[dict[str, tuple[tuple[Any, ...], str]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = {name: value for name, value in data.items() if value is not None}
        for name, (values, why) in cls.neutral.items():
            if name in given:
                if not any(given[name] == v and type(given[name]) is type(v) for v in values):
                    raise PydanticCustomError(
                        "not_honoured", "cannot be honoured: {why}", {"field": name, "why": why}
                    )
                del given[name]
        return given


Temperature = Annotated[float, Field(ge=0, le=2, description="0, the default, is greedy.")]
TopP = Annotated[float, Field(gt=0, le=1)]
TopK = Annotated[int, Field(ge=1, description="Not OpenAI's: sample among the k likeliest.")]
Seed = Annotated[int, Field(ge=0)]
Limit = Annotated[int, Field(ge=1)]
Stop = Annotated[str, Field(min_length=1)]
Words = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
Messages = Annotated[list[dict[str, Any]], Field(min_length=1)]
Special = Annotated[
    bool, Field(description="Not OpenAI's: let <loc0001> and the like in a prompt be tokens.")
]
Label = Annotated[str, Field(description="A label of the client's, which changes nothing.")]


class StreamOptions(Body):
    """How a stream is sent."""

    neutral = {"include_obfuscation": ((False, True), "")}
    include_usage: bool = False


class ChatBody(Body):
    """`POST /v1/chat/completions`."""

    neutral = {
        "tools": (([],), NO_TOOLS),
        "functions": (([],), NO_TOOLS),
        "tool_choice": (("none", "auto"), NO_TOOLS),
        "function_call": (("none", "auto"), NO_TOOLS),
        "parallel_tool_calls": ((True, False), NO_TOOLS),
        "frequency_penalty": ((0, 0.0), NO_PENALTY),
        "presence_penalty": ((0, 0.0), NO_PENALTY),
        "logit_bias": (({},), NO_PENALTY),
        "store": ((False,), NOT_STORED),
        "metadata": (({},), NOT_STORED),
        "modalities": ((["text"],), "answers are text"),
        "audio": ((), "answers are text"),
        "prediction": ((), "answers are not predicted"),
        "reasoning_effort": (("none",), "PaliGemma answers at once"),
        "verbosity": (("medium",), "PaliGemma answers as long as it was trained to"),
        "service_tier": (("auto", "default"), "there is one"),
        "web_search_options": ((), "PaliGemma searches nothing"),
        "prompt_cache_retention": ((), "prompts are kept while there is room"),
    }

    messages: Messages
    model: str | None = None
    max_tokens: Limit | None = None
    max_completion_tokens: Limit | None = None
    temperature: Temperature = 0.0
    top_p: TopP | None = None
    top_k: TopK | None = None
    seed: Seed | None = None
    n: Annotated[int, Field(ge=1)] = 1
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    response_format: dict[str, Any] | None = None
    allow_special_tokens: Special = False
    user: Label | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None

    @property
    def limit(self) -> int:
        return self.max_completion_tokens or self.max_tokens or MAX_NEW_TOKENS

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class TextFormat(Body):
    """`text` of a response."""

    neutral = {"verbosity": (("medium",), "PaliGemma answers as long as it was trained to")}
    format: dict[str, Any] | None = None


class ResponsesBody(Body):
    """`POST /v1/responses`."""

    neutral = {
        "tools": (([],), NO_TOOLS),
        "tool_choice": (("none", "auto"), NO_TOOLS),
        "parallel_tool_calls": ((True, False), NO_TOOLS),
        "max_tool_calls": ((), NO_TOOLS),
        "store": ((False,), NOT_STORED),
        "background": ((False,), NOT_STORED),
        "previous_response_id": ((), NOT_STORED),
        "conversation": ((), NOT_STORED),
        "prompt": ((), NOT_STORED),
        "reasoning": (({},), "PaliGemma answers at once"),
        "service_tier": (("auto", "default"), "there is one"),
        "truncation": (("disabled",), "a prompt that is too long is refused"),
        "prompt_cache_retention": ((), "prompts are kept while there is room"),
    }

    input: str | Messages
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: Limit | None = None
    temperature: Temperature = 0.0
    top_p: TopP | None = None
    top_k: TopK | None = None
    seed: Seed | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    include: list[Literal["message.output_text.logprobs"]] = Field(default_factory=list)
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    text: TextFormat | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    allow_special_tokens: Special = False
    user: Label | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None


class Sampled(Body):
    """Moondream's `settings`."""

    temperature: Temperature = 0.0
    top_p: TopP | None = None
    max_tokens: Limit = MAX_NEW_TOKENS
    max_objects: Limit | None = None
    seed: Seed | None = None


class PictureBody(Body):
    """What all of Moondream's requests have."""

    image_url: str
    model: str | None = None
    settings: Sampled = Field(default_factory=Sampled)


class CaptionBody(PictureBody):
    """`POST /v1/caption`: short, normal and long are PaliGemma's cap, caption and describe."""

    length: Literal["short", "normal", "long"] = "normal"
    stream: bool = False


class QueryBody(PictureBody):
    """`POST /v1/query`."""

    neutral = {
        "reasoning": ((False,), "PaliGemma answers at once"),
        "spatial_refs": (([],), "PaliGemma is pointed at nothing"),
    }
    question: Words
    stream: bool = False


class ObjectBody(PictureBody):
    """`POST /v1/detect` and `/v1/point`. object: a label, or several with `;` between them."""

    neutral = {
        "stream": ((False,), "boxes come at once"),
        "spatial_refs": (([],), "PaliGemma is pointed at nothing"),
    }
    object: Words


class SegmentBody(PictureBody):
    """`POST /v1/segment`."""

    neutral = {"spatial_refs": (([],), "PaliGemma is pointed at nothing")}
    object: Words
    stream: bool = False


class EmbeddingsBody(Body):
    """`POST /v1/embeddings`. input: texts, and pictures as data: addresses."""

    neutral = {"dimensions": ((), "a vector is as long as the model made it")}
    input: str | Annotated[list[str], Field(min_length=1, max_length=256)]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    user: Label | None = None
