"""trace: what a model did on the way to one answer, as an HTML page."""

from __future__ import annotations

import json as json_text
import sys
from pathlib import Path
from typing import Annotated

import typer

from paliglass.cli.app import command
from paliglass.cli.messages import counted, harmless, waiting
from paliglass.cli.options import (
    JsonObject,
    LoadOptions,
    MaxNewTokensOption,
    Overwrite,
    refuse_existing_file,
)
from paliglass.cli.pictures import open_picture

__all__ = ["trace"]


@command
def trace(
    picture: Annotated[str, typer.Argument(help="A file, or - for standard input.")],
    *,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What to ask.")] = "caption en",
    out: Annotated[Path, typer.Option("--out", "-o", dir_okay=False, help="The page.")] = Path(
        "trace.html"
    ),
    overwrite: Overwrite = False,
    max_new_tokens: MaxNewTokensOption = 64,
    candidates: Annotated[int, typer.Option(min=1, help="Words to show for each step.")] = 5,
    json: JsonObject = False,
    load: LoadOptions,
) -> None:
    """See where a model looked for each word: paliglass trace PICTURE --out trace.html.

    The page shows the patches, the attention of each layer and head, the answer forming from layer
    to layer, the mask, the cache, and what else might have been said. It needs nothing but itself.
    """
    refuse_existing_file(out, overwrite)
    image = open_picture(picture)
    with waiting(f"loading {load.model}"):
        model = load.load()
    from paliglass.formats.export import write_files
    from paliglass.inspect.trace_page import to_html, trace_answer

    with waiting("answering"):
        answer = trace_answer(model, image, prompt, load.model, max_new_tokens)
    write_files(out.parent, {out.name: to_html(answer, candidates)})
    if json:
        steps = [
            {
                "word": word,
                "candidates": [[answer.spell(c.id), round(c.probability, 4)] for c in top],
            }
            for word, top in zip(answer.words, answer.row.top(candidates), strict=False)
        ]
        print(json_text.dumps({"answer": answer.text, "page": str(out), "steps": steps}))
    else:
        print(harmless(answer.text) if sys.stdout.isatty() else answer.text)
        words, tokens = counted(len(answer.words), "word"), counted(len(answer.row), "token")
        print(f"{out}: {words}, {tokens}")
