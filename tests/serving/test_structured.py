"""Schemas that a task's answers have are mapped onto it; all others are refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.serving.helpers import SCENE

from paliglass.model import PaliGemma
from paliglass.serving.errors import ApiError
from paliglass.serving.prompts import Chat
from paliglass.serving.structured import read_format
from paliglass.tasks.answering import GenerationOptions


def form(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def said(model: PaliGemma, schema: Any, text: str) -> Any:
    structure = read_format(form(schema), Chat(text, ["data:"], []))
    assert structure is not None
    task = structure.make(model)
    picture = model.processor.prepare(str(SCENE))
    [(result, _)] = model.answer([(0, task, [picture])], GenerationOptions())
    return json.loads(structure.render(result))


def one(schema: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"answer": schema},
        "required": ["answer"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("schema", "text", "expected"),
    [
        ({"enum": ["red", "yellow"]}, "what colour is the star?", "yellow"),
        ({"type": "string", "enum": ["red", "yellow"]}, "what colour is the star?", "yellow"),
        ({"const": "red"}, "what colour is the star?", "red"),
        ({"type": "boolean"}, "is there a tractor?", True),
        ({"type": "boolean"}, "is there a zebra?", False),
        ({"type": "integer"}, "how many tractors are there?", 1),
        ({"enum": [1, 2, None]}, "how many tractors are there?", 1),
        ({"type": "string"}, "what colour is the star?", "yellow"),
    ],
)
def test_one_value_bare_or_in_an_object(
    model: PaliGemma, schema: Any, text: str, expected: Any
) -> None:
    assert said(model, schema, text) == expected
    assert said(model, one(schema), text) == {"answer": expected}


def test_a_score_beside_it_is_the_answers_probability(model: PaliGemma) -> None:
    schema = {
        "type": "object",
        "properties": {"answer": {"enum": ["red", "yellow"]}, "confidence": {"type": "number"}},
    }
    found = said(model, schema, "what colour is the star?")
    expected = model.ask(SCENE, "what colour is the star?", choices=["red", "yellow"])
    assert found["confidence"] == pytest.approx(expected.score, abs=1e-4)


def items(**properties: Any) -> dict[str, Any]:
    return {"type": "array", "items": {"type": "object", "properties": properties}}


BOX = {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}
EDGES = {name: {"type": "integer"} for name in ("x_min", "y_min", "x_max", "y_max")}


def test_objects_are_detected(model: PaliGemma) -> None:
    expected = model.detect(SCENE, ["tractor", "doughnut"])
    label = {"type": "string", "enum": ["tractor", "doughnut"]}
    whole = [item.to_dict() for item in expected]
    score = {"type": "number"}
    assert said(model, items(label=label, box=BOX, score=score), "find all") == whole
    found = said(model, one(items(label={"type": "string"}, bbox=BOX)), "detect tractor ; doughnut")
    assert found == {"answer": [{"label": d["label"], "bbox": d["box"]} for d in whole]}
    found = said(model, items(**EDGES), "detect tractor ; doughnut")
    assert found == [dict(zip(EDGES, map(round, d.box), strict=True)) for d in expected]
    inside = items(box={"type": "object", "properties": EDGES})
    assert said(model, inside, "detect tractor ; doughnut") == [{"box": f} for f in found]
    assert said(model, items(label=label), "detect nothing said")[0] == {"label": "tractor"}


def test_definitions_are_followed(model: PaliGemma) -> None:
    schema = {
        "$defs": {"Colour": {"enum": ["red", "yellow"], "title": "Colour"}},
        "type": "object",
        "properties": {"colour": {"$ref": "#/$defs/Colour"}},
    }
    assert said(model, schema, "what colour is the star?") == {"colour": "yellow"}


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}},
         "schema.properties"),
        ({"type": "string", "pattern": "a+"}, "schema.pattern"),
        ({"type": "integer", "minimum": 3}, "schema.minimum"),
        ({"type": "null"}, "schema"),
        ({"anyOf": [{"type": "string"}]}, "schema"),
        ({"type": "array", "items": {"type": "string"}}, "schema.items"),
        ({**items(label={"enum": ["a"]}), "maxItems": 2}, "schema.maxItems"),
        (items(label={"enum": ["a"]}, mass={"type": "number"}), "schema.items.properties.mass"),
        (items(label={"enum": [3]}), "schema.items.properties.label.enum"),
        (items(label={"enum": 3}), "schema.items.properties.label.enum"),
        (items(label={"enum": None}), "schema.items.properties.label.enum"),
        (items(label={"const": None}), "schema.items.properties.label.enum"),
        (items(label={"enum": ["a"]}, box={"type": "array", "minItems": None}),
         "schema.items.properties.box"),
        ({"type": "array", "items": 5}, "schema.items"),
        ({"type": "object", "properties": {"a": {"type": "string"}}, "required": None},
         "schema.required"),
        ({"enum": 5}, "schema.enum"),
        ({"enum": []}, "schema.enum"),
        ({"enum": [f"word {n}" for n in range(10_000)]}, "schema.enum"),
        (items(label={"type": "string"}), "schema.items"),
        (items(label={"enum": ["a"]}, box={"type": "array", "minItems": 5}),
         "schema.items.properties.box"),
        ({"$ref": "#/$defs/Nowhere"}, r"schema.\$ref"),
        ({"$ref": "#"}, r"schema.\$ref"),
        ({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["b"]},
         "schema.required"),
        ({"type": "object", "properties": {"a": 3}}, "schema"),
        ({"type": "object"}, "schema"),
    ],
)  # fmt: skip
def test_what_cannot_be_promised_is_refused_by_name(schema: Any, named: str) -> None:
    with pytest.raises(ApiError, match=rf"^response_format\.{named} cannot be honoured"):
        read_format(form(schema), Chat("what?", ["data:"], []))


def test_formats_of_other_kinds() -> None:
    plain = Chat("what?", ["data:"], [])
    assert read_format(None, plain) is read_format({"type": "text"}, plain) is None
    kind = {"type": "json_schema"}
    for bad in ({"type": "json_object"}, {}, kind, {**kind, "json_schema": 3}):
        with pytest.raises(ApiError):
            read_format(bad, plain)
