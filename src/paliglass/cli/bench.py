"""bench: how fast and how large a model is on this machine."""

from __future__ import annotations

import json as json_text
import os
import sys
from typing import Annotated

import typer

from paliglass.cli.app import command
from paliglass.cli.messages import level
from paliglass.cli.options import MODEL_HELP
from paliglass.cli.tables import print_table

__all__ = ["bench", "number", "tell"]

ROWS = {
    "load_s": "load, s",
    "first_token_s": "first token, s",
    "first_token_share": "  of the machine's limit",
    "tokens_per_s": "tokens/s",
    "token_share": "  of the machine's limit",
    "answer_s": "an answer of {tokens} tokens, s",
    "batch_tokens_per_s": "batch of 8, tokens/s",
    "memory_gb": "peak memory, GB",
}


@command
def bench(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)] = "mini",
    rounds: Annotated[int, typer.Option(min=1, help="Answers that are measured.")] = 3,
    tokens: Annotated[int, typer.Option(min=2, help="Of an answer.")] = 20,
    threads: Annotated[
        int, typer.Option(min=1, help="Of the processor; all cores by default.")
    ] = os.cpu_count() or 1,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a model's speed and memory on this machine's processor: as stored, in int8 and int4.

    Each answers about one picture of noise, greedily, in a process of its own; all in turn. int4 is
    left out where it cannot be had (`paliglass info` says why).
    Figures are medians. The limits are what the machine itself was measured to read from memory (a
    token reads the decoder once) and to multiply (the first token).
    """
    from paliglass.checkpoints.hub import locate
    from paliglass.errors import PaliglassError
    from paliglass.inspect import bench as measuring

    folder = locate(model)
    if not folder.is_dir():
        raise PaliglassError(f"{folder}: bench takes a folder; `paliglass convert` makes one")
    tell("measuring the machine")
    limits = measuring.machine_limits(threads)
    found = measuring.bench(folder, rounds, tokens, threads, tell)
    tell("")
    figures = {
        name: measured.to_dict()
        | measuring.limit_shares(
            measured,
            folder,
            limits,
            measuring.weight_bytes(name, folder),
            measuring.rate_of(name, limits),
        )
        for name, measured in found.items()
    }
    if json:
        result = {"model": model, "threads": threads, "machine": limits, "engines": figures}
        print(json_text.dumps(result, ensure_ascii=False))
        return
    rows = []
    for key, row in ROWS.items():
        cells = [number(values[key]) if key in values else "" for values in figures.values()]
        rows.append([row.format(tokens=tokens), *cells])
    print_table(["", *figures], rows, title=f"{model}, {threads} CPU threads")
    rates = ", ".join(
        f"{limits[key]:.0f} ({name})"
        for name in ("fp32", "bf16", "int8")
        if (key := f"{name}_gop_per_s") in limits
    )
    read = f"{limits['read_gb_per_s']:g}"
    print(f"This machine reads {read} GB/s and multiplies, in Gop/s, {rates}.")


def number(value: float) -> str:
    """Three digits, more where they stand before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def tell(what: str) -> None:
    """What is going on, at a terminal."""
    if sys.stderr.isatty() and level() != "quiet":
        print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)
