"""`python -m workshop.peers`: speed and memory beside transformers, llama.cpp, OpenVINO."""

from __future__ import annotations

import json as json_text
import os
import platform
from pathlib import Path
from typing import Annotated

import typer

from paliglass.checkpoints.hub import locate
from paliglass.cli.bench import number, tell
from paliglass.cli.options import MODEL_HELP
from paliglass.cli.tables import print_table
from paliglass.errors import PaliglassError
from paliglass.files import write_whole
from paliglass.inspect.bench import machine_limits
from workshop.commands import run
from workshop.peers.chart import to_svg
from workshop.peers.compare import (
    ENGINES,
    compare,
    python_between_tokens,
    ratios,
    saved_loads,
    shares,
    start_up,
)

HEADS = {
    "load_s": "load, s",
    "first_token_s": "first token, s",
    "tokens_per_s": "tokens/s",
    "batch_tokens_per_s": "tokens/s, batch of 8",
    "answer_s": "whole answer, s",
    "memory_gb": "peak memory, GB",
    "first_token_share": "first token, of the limit",
    "token_share": "a token, of the limit",
}


def peers(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)] = "mini",
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help=f"One of {', '.join(map(repr, ENGINES))}; all by default, the peers' where they "
            "are installed."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Of all engines in turn.")] = 3,
    tokens: Annotated[int, typer.Option(min=2, help="Of an answer.")] = 20,
    threads: Annotated[
        int, typer.Option(min=1, help="Of each engine; all cores by default.")
    ] = os.cpu_count() or 1,
    busy: Annotated[
        int, typer.Option(min=0, help="Busy loops beside the rounds, as on a shared machine.")
    ] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown tables.")] = False,
    chart: Annotated[
        Path | None, typer.Option(dir_okay=False, help="An SVG of the figures to write.")
    ] = None,
) -> None:
    """Measure speed and memory beside transformers, llama.cpp and OpenVINO, in turn in one run.

    Every engine answers about one picture of noise, greedily, in a process of its own. Figures are
    medians. Ratios have targets, which are those of the 3B model at 224 pixels on a processor with
    AVX-512 VNNI and no AMX. The limits, of which shares are told, are what the machine itself was
    measured to read from memory (a token) and to multiply (the first token).
    """
    unknown = [name for name in engine or () if name not in ENGINES]
    if unknown:
        raise typer.BadParameter(f"--engine {unknown[0]!r} is none of {', '.join(ENGINES)}")
    folder = locate(model)
    tell("measuring the machine")
    limits = machine_limits(threads)
    found, missing = compare(folder, engine or ENGINES, rounds, tokens, threads, tell, busy)
    if not found:
        tell("")
        reasons = "; ".join(f"{name}: {why}" for name, why in missing.items())
        raise PaliglassError(f"no engine ran ({reasons})")
    reached = shares(found, folder, limits)
    figures = ratios(found, reached)
    if not engine:
        tell("loading what is quantized already")
        figures |= saved_loads(folder, threads)
    tell("starting cold")
    figures |= {**python_between_tokens(), **start_up()}
    engines = {name: measured.to_dict() | reached[name] for name, measured in found.items()}
    tell("")
    if chart is not None:
        write_whole(chart, to_svg(f"{folder.name}, {threads} CPU threads", found))
    if json:
        result = {
            "model": model,
            "threads": threads,
            "busy": busy,
            "processor": processor(),
            "machine": limits,
            "engines": engines,
            "ratios": {name: ratio.to_dict() for name, ratio in figures.items()},
            "missing": missing,
        }
        print(json_text.dumps(result, ensure_ascii=False))
        return
    rows = [["", *HEADS.values()]]
    for name, values in engines.items():
        rows.append([name, *(number(values[key]) if key in values else "" for key in HEADS)])
    _print(rows, markdown)
    rows = [["", "measured", "target", "met"]]
    for name, ratio in figures.items():
        told = ratio.to_dict()
        unit = "" if ratio.unit == "×" else f" {ratio.unit}"
        met = "yes" if ratio.met else "no"
        rows.append([name, f"{ratio.value:.2f}{unit}", f"{told['target']}{unit}", met])
    _print(rows, markdown)
    print(f"{processor()}, {threads} threads, {busy} busy loops beside the rounds")
    print("this machine: " + ", ".join(f"{k.replace('_', ' ')} {v:g}" for k, v in limits.items()))
    for name, why in missing.items():
        print(f"{name}: left out ({why})")


def processor() -> str:
    """Its name, as the system tells it."""
    about = Path("/proc/cpuinfo")
    if not about.is_file():
        return platform.processor() or platform.machine()
    lines = dict(line.split(":", 1) for line in about.read_text().splitlines() if ":" in line)
    found = {key.strip(): value.strip() for key, value in lines.items()}
    name = found.get("model name", platform.machine())
    # Machines in clouds leave a name's number out.
    kind = [f"{key} {found[key]}" for key in ("cpu family", "model") if key in found]
    return f"{name} ({', '.join(kind)})" if kind else name


def _print(rows: list[list[str]], markdown: bool) -> None:
    if markdown:
        rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
        print("\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n")
        return
    print_table(rows[0], rows[1:])


if __name__ == "__main__":
    run(peers)
