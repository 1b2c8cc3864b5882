"""`response_format: json_schema` → a task whose answer can only be of that form, and its JSON.

PaliGemma writes no JSON. A schema that asks for what its tasks answer is mapped onto their
grammars, and the result is written as the schema says:

    {"enum": […]}, boolean             one of these
    integer, number                    digits
    string                             any answer
    array of {label, box, score}       detect; the labels are the enum's, or the prompt's

bare, or as the one property of an object; a property `score` beside it is the answer's
probability. Any other schema is refused by the name of what cannot be mapped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from paliglass.model import PaliGemma
from paliglass.serving.errors import ApiError, refused
from paliglass.serving.prompts import Chat, PromptTask
from paliglass.serving.settings import MAX_TEXT
from paliglass.tasks.answering import Task, WordTask
from paliglass.tasks.grammar import ChoiceGrammar, NumberGrammar
from paliglass.tasks.results import Detection

__all__ = ["Structure", "read_format"]

FIELD = "response_format"
NOTES = ("title", "description", "default", "examples", "$schema", "$id")
SCORES = ("score", "confidence", "probability")
BOXES = ("box", "bbox")
EDGES = ("x_min", "y_min", "x_max", "y_max")

Schema = Mapping[str, Any]
Make = Callable[[PaliGemma], Task[Any]]
Value = Callable[[Any], Any]


@dataclass(frozen=True)
class Structure:
    """make: the task. render: its result → JSON. reads_text: whether the prompt's text was used."""

    make: Make
    render: Callable[[Any], str]
    reads_text: bool = True


def read_format(
    given: Mapping[str, Any] | None, chat: Chat, field: str = FIELD
) -> Structure | None:
    """A `response_format`; None for plain text."""
    if given is None or given.get("type") == "text":
        return None
    if given.get("type") != "json_schema":
        raise refused(f"{field}.type", "it may be text or json_schema")
    holder = given.get("json_schema", given)
    schema = holder.get("schema") if isinstance(holder, dict) else None
    if not isinstance(schema, dict):
        raise ApiError(400, f"{field} has no schema", param=field)
    return _Reader(schema, chat, field).structure()


class _Reader:
    def __init__(self, schema: Schema, chat: Chat, field: str) -> None:
        self.root, self.chat, self.field = schema, chat, field

    def structure(self) -> Structure:
        schema = self._resolved(self.root, "schema")
        if schema.get("type") != "object":
            make, value, reads_text = self._value(schema, "schema")
            return Structure(make, lambda result: _json(value(result)), reads_text)
        properties = self._properties(schema, "schema")
        answers = [name for name in properties if name not in SCORES]
        if len(answers) != 1:
            raise refused(
                f"{self.field}.schema.properties",
                "one of them is the answer, and beside it there may be a score",
            )
        [name] = answers
        make, value, reads_text = self._value(properties[name], f"schema.properties.{name}")

        def render(result: Any) -> str:
            found = {}
            for key in properties:
                is_score = key in SCORES
                found[key] = round(_score_of(result), 4) if is_score else value(result)
            return _json(found)

        return Structure(make, render, reads_text)

    def _value(self, schema: Schema, place: str) -> tuple[Make, Value, bool]:
        """(task, result → value, whether the prompt's text is used)."""
        schema = self._resolved(schema, place)
        if "const" in schema:
            schema = {
                **{k: v for k, v in schema.items() if k != "const"},
                "enum": [schema["const"]],
            }
        kind = schema.get("type")
        prompt = self.chat.prompt
        if "enum" in schema:
            self._only(schema, place, "type", "enum")
            values = self._listed(schema["enum"], place)
            texts = {v if isinstance(v, str) else _json(v): v for v in values}
            return self._choice(texts)
        if kind == "boolean":
            self._only(schema, place, "type")
            return self._choice({"yes": True, "no": False})
        if kind in ("integer", "number"):
            self._only(schema, place, "type")
            return lambda m: WordTask(m.processor, prompt, NumberGrammar(m.processor)), int, True
        if kind == "string":
            self._only(schema, place, "type")
            return lambda m: PromptTask(m.processor, prompt), str, True
        if kind == "array":
            return self._objects(schema, place)
        raise refused(f"{self.field}.{place}", f"a value of type {kind!r} is no answer to a task")

    def _listed(self, values: Any, place: str) -> list[Any]:
        """An enum's values. Raises ApiError."""
        if not isinstance(values, list) or not values:
            raise refused(f"{self.field}.{place}.enum", "it is a list of values")
        if sum(len(_json(value)) for value in values) > MAX_TEXT:
            raise refused(f"{self.field}.{place}.enum", f"it has more than {MAX_TEXT:,} characters")
        return values

    def _choice(self, texts: Mapping[str, Any]) -> tuple[Make, Value, bool]:
        def make(model: PaliGemma) -> Task[Any]:
            grammar = ChoiceGrammar(model.processor, list(texts))
            return WordTask(model.processor, self.chat.prompt, grammar)

        return make, lambda result: texts[str(result)], True

    def _objects(self, schema: Schema, place: str) -> tuple[Make, Value, bool]:
        self._only(schema, place, "type", "items")
        place = f"{place}.items"
        item = self._resolved(schema.get("items") or {}, place)
        if item.get("type") != "object":
            raise refused(
                f"{self.field}.{place}", "the items are objects with label, box and score"
            )
        properties = self._properties(item, place)
        writers: dict[str, Value] = {}
        labels: list[str] | None = None
        for name, found in properties.items():
            part = f"{place}.properties.{name}"
            found = self._resolved(found, part)
            if name in ("label", "name", "class"):
                self._only(found, part, "type", "enum", "const")
                if "enum" in found or "const" in found:
                    given = found["enum"] if "enum" in found else [found["const"]]
                    labels = self._listed(given, part)
                    if not all(isinstance(label, str) and label.strip() for label in labels):
                        raise refused(f"{self.field}.{part}.enum", "labels are words")
                writers[name] = lambda d: d.label
            elif name in BOXES:
                writers[name] = self._box(found, part)
            elif name in EDGES:
                self._only(found, part, "type")
                writers[name] = self._edge(found, EDGES.index(name))
            elif name in SCORES:
                self._only(found, part, "type")
                writers[name] = lambda d: round(d.score, 4)
            else:
                raise refused(
                    f"{self.field}.{part}", "what is found has a label, a box and a score"
                )
        task, _, text = self.chat.prompt.partition(" ")
        asked = text if task == "detect" else None
        if labels is None and asked is None:
            raise refused(
                f"{self.field}.{place}",
                "give the labels as an enum, or begin the prompt with detect",
            )
        names = (asked if labels is None else labels) or ""

        def make(model: PaliGemma) -> Task[Any]:
            return model.detect_task(names)

        def value(found: list[Detection]) -> list[dict[str, Any]]:
            return [{name: write(d) for name, write in writers.items()} for d in found]

        return make, value, labels is None

    def _box(self, schema: Schema, place: str) -> Value:
        if schema.get("type") == "object":
            edges = self._properties(schema, place)
            if tuple(edges) != EDGES:
                raise refused(f"{self.field}.{place}", f"a box is {', '.join(EDGES)}")
            writers = {name: self._edge(found, i) for i, (name, found) in enumerate(edges.items())}
            return lambda d: {name: write(d) for name, write in writers.items()}
        self._only(schema, place, "type", "items", "minItems", "maxItems")
        bounds = schema.get("minItems", 4), schema.get("maxItems", 4)
        are_numbers = all(isinstance(bound, int | float) for bound in bounds)
        if schema.get("type") != "array" or not (are_numbers and bounds[0] <= 4 <= bounds[1]):
            raise refused(f"{self.field}.{place}", "a box is an array of four numbers")
        number = self._resolved(schema.get("items") or {"type": "number"}, f"{place}.items")
        writers_in_order = [self._edge(number, i) for i in range(4)]
        return lambda d: [write(d) for write in writers_in_order]

    def _edge(self, schema: Schema, index: int) -> Value:
        digits = None if schema.get("type") == "integer" else 2
        return lambda d: round(d.box[index], digits)

    def _properties(self, schema: Schema, place: str) -> Mapping[str, Schema]:
        self._only(schema, place, "type", "properties", "required", "additionalProperties")
        properties = schema.get("properties")
        if not isinstance(properties, dict) or not all(
            isinstance(found, dict) for found in properties.values()
        ):
            raise refused(f"{self.field}.{place}", "an object needs its properties")
        required = schema.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise refused(f"{self.field}.{place}.required", "it is a list of names")
        missing = set(required) - set(properties)
        if missing:
            raise refused(f"{self.field}.{place}.required", f"{min(missing)} is no property")
        return properties

    def _resolved(self, schema: Schema, place: str) -> Schema:
        """Follows references into the schema's own definitions."""
        if not isinstance(schema, dict):
            raise refused(f"{self.field}.{place}", "it is no schema")
        for _ in range(10):
            reference = schema.get("$ref")
            if reference is None:
                return schema
            found: Any = self.root
            for part in str(reference).removeprefix("#/").split("/"):
                found = found.get(part) if isinstance(found, dict) else None
            if not isinstance(found, dict):
                raise refused(f"{self.field}.{place}.$ref", "it leads to nothing")
            schema = found
        raise refused(f"{self.field}.{place}.$ref", "it leads in a circle")

    def _only(self, schema: Schema, place: str, *known: str) -> None:
        """Refuses a keyword that would not be kept to."""
        for name in schema:
            if name not in (*known, *NOTES, "$defs", "definitions"):
                raise refused(f"{self.field}.{place}.{name}", "it cannot be promised")


def _score_of(result: Any) -> float:
    """Of an answer; of what was found, the least sure."""
    if isinstance(result, list):
        return min((item.score for item in result), default=1.0)
    return float(result.score)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
