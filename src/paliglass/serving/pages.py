"""The two pages: the interface, and the lab or a few words. Nothing is loaded from elsewhere."""

from __future__ import annotations

import gzip
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from jinja2 import Environment

from paliglass.checkpoints.hub import locate

__all__ = ["Index", "docs", "index"]

_HEAD = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
:root { color-scheme: light dark } code { font-size: .95em }
table { border-collapse: collapse; display: block; overflow-x: auto }
td, th { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0 }
h2 { margin-top: 2rem; font-size: 1.1rem }
</style>
"""

_DOCS = """<h1>paliglass</h1>
<p>The same as <a href="openapi.json">OpenAPI</a>.</p>
{% for path in paths %}
<h2><code>{{ path.method }} {{ path.path }}</code></h2><p>{{ path.text }}</p>
{% if path.fields %}<table><tr><th>field<th>type<th>default<th></tr>
{% for f in path.fields %}
<tr><td><code>{{ f.name }}</code><td>{{ f.type }}<td>{{ f.default }}<td>{{ f.text }}</tr>
{% endfor %}</table>{% endif %}
{% endfor %}
"""

_INDEX = """<h1>paliglass</h1>
<p>This server answers about pictures with <code>{{ name }}</code>. It speaks OpenAI's interface
(<code>/v1/chat/completions</code>, <code>/v1/responses</code>) and Moondream's
(<code>/v1/caption</code>, <code>query</code>, <code>detect</code>, <code>point</code>,
<code>segment</code>): <a href="docs">all of it</a>. <a href="health">health</a>.</p>
"""

_environment = Environment(autoescape=True, trim_blocks=True)


def docs(openapi: dict[str, Any]) -> str:
    """The interface, from its OpenAPI description, as a page."""
    schemas = openapi.get("components", {}).get("schemas", {})
    paths = []
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            paths.append(
                {
                    "path": path,
                    "method": method.upper(),
                    "text": operation.get("description", ""),
                    "fields": _fields(body.get("schema", {}), schemas),
                }
            )
    page = _environment.from_string(_HEAD + _DOCS)
    return page.render(title="paliglass: the interface", paths=paths)


def _fields(schema: dict[str, Any], schemas: dict[str, Any]) -> list[dict[str, str]]:
    found = schemas.get(schema.get("$ref", "").rpartition("/")[2], schema)
    required = found.get("required", [])
    return [
        {
            "name": name,
            "type": _type(field),
            "default": "required" if name in required else str(field.get("default", "")),
            "text": field.get("description", ""),
        }
        for name, field in found.get("properties", {}).items()
    ]


def _type(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(t for part in field["anyOf"] if (t := _type(part)) != "null")
    if "enum" in field:
        return ", ".join(map(str, field["enum"]))
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    return str(field.get("type") or field.get("$ref", "").rpartition("/")[2])


class Index(NamedTuple):
    """A page, in gzip too, and what it fetches, by its address under lab/."""

    page: bytes
    zipped: bytes
    pieces: dict[str, bytes]


@lru_cache(maxsize=1)
def index(name: str) -> Index:
    """The lab's page, where there is a lab; else where to go.

    Of whatever model, the lab is mini's, in the reader's browser, and says so: a lab on the served
    model keeps gigabytes a reader and goes past the queue, and its weights are not ours to send.
    """
    if find_spec("paliglass.lab") is not None:
        build = import_module("paliglass.lab.build").build_pieces
        page, parts = build(locate("mini"), locate("mini-dual"), served=name, folder="lab/")
        pieces = {part.source(): part.packed for part in parts}
    else:
        page = _environment.from_string(_HEAD + _INDEX).render(title=name, name=name)
        pieces = {}
    return Index(page.encode(), gzip.compress(page.encode()), pieces)
