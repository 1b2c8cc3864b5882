"""What a long run over a folder does to memory, speed and results, and what a kill costs.

    python -m workshop.long_run --pictures 500

One `paliglass caption DIR --out OUT` in a process of its own, watched from outside (Linux: /proc).
Another is killed by SIGKILL half-way and resumed. Exit status 1 where memory grows by more than 5 %
after the first tenth, where the last fifth takes more than 10 % more time a picture than the first,
or where the killed run's results are not those of the unbroken one. The processor's time is
compared, the clock's is told beside it: other work on the machine slows that.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from itertools import accumulate
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from PIL import Image, ImageDraw

from workshop.commands import run

FORMATS = ("jpg", "png", "webp", "gif")
GROWTH = 0.05
SLOWDOWN = 0.10
TICKS = os.sysconf("SC_CLK_TCK")


class Sample(NamedTuple):
    """A look at a run: seconds on the clock and of the processor, memory in MB, pictures done."""

    clock: float
    processor: float
    rss: float
    done: int


def draw(rng: random.Random) -> Image.Image:
    """Ellipses and boxes on a field of blurred colours; no two alike."""
    size = width, height = rng.randint(200, 1600), rng.randint(200, 1200)
    field = Image.frombytes("RGB", (6, 4), rng.randbytes(72)).resize(size)
    canvas = ImageDraw.Draw(field)
    for _ in range(rng.randint(1, 5)):
        x, y, side = rng.randrange(width), rng.randrange(height), rng.randint(30, 300)
        shape = rng.choice((canvas.ellipse, canvas.rectangle))
        shape((x, y, x + side, y + side), fill=tuple(rng.randbytes(3)))
    return field


def watch(
    pictures: Path, out: Path, kill_at: int | None = None, resume: bool = False
) -> list[Sample]:
    """Runs `caption` to its end, or until SIGKILL: samples from its first answer on."""
    command = [sys.executable, "-m", "paliglass", "caption", str(pictures)]
    command += ["--model", "mini", "--out", str(out)] + ["--resume"] * resume
    samples = []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            time.sleep(0.02)
            lines = out / "results.jsonl"
            done = lines.read_bytes().count(b"\n") if lines.exists() else 0
            if done and (sample := look(process.pid, done)):
                samples.append(sample)
            if kill_at is not None and done >= kill_at:
                process.kill()
                return samples
    if process.returncode:
        sys.exit(f"caption ended with exit status {process.returncode}")
    return samples


def look(process: int, done: int) -> Sample | None:
    """None for a process that has just ended."""
    status = Path(f"/proc/{process}/status").read_text()
    memory = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")]
    if not memory:
        return None
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])  # of its own and of the system for it
    return Sample(time.perf_counter(), ticks / TICKS, int(memory[0]) / 1024, done)


def rates(samples: list[Sample], low: float, high: float) -> tuple[float, float]:
    """Pictures a second of the clock, and of the processor, between two shares of the way."""
    total = samples[-1].done
    first, last = (next(s for s in samples if s.done >= share * total) for share in (low, high))
    count = last.done - first.done
    return count / (last.clock - first.clock), count / (last.processor - first.processor)


def answers(out: Path) -> list[tuple[str, str]]:
    """(file, answer) of each line."""
    lines = (out / "results.jsonl").read_text(encoding="utf-8").splitlines()
    return [(record["file"], record["answer"]) for record in map(json.loads, lines)]


def long_run(
    pictures: Annotated[int, typer.Option(min=100, help="In the folder, drawn for this.")] = 500,
) -> None:
    """Watch a long run over a folder: memory, speed, and what a kill costs."""
    count = pictures
    with tempfile.TemporaryDirectory() as scratch:
        folder, whole, broken = (Path(scratch, name) for name in ("pictures", "whole", "broken"))
        folder.mkdir()
        rng = random.Random(0)
        names = [f"{i:05}.{FORMATS[i % len(FORMATS)]}" for i in range(count)]
        for name in names:
            draw(rng).save(folder / name)

        samples = watch(folder, whole)
        peaks = list(accumulate((sample.rss for sample in samples), max))
        tenth, half, end = (
            next(p for p, s in zip(peaks, samples, strict=True) if s.done >= share * count)
            for share in (0.1, 0.5, 1)
        )
        (first, first_cpu), (last, last_cpu) = rates(samples, 0, 0.2), rates(samples, 0.8, 1)
        growth, slowdown = end / tenth - 1, first_cpu / last_cpu - 1
        print(f"| {count} pictures | 10 % | 50 % | 100 % | growth |\n|---|---:|---:|---:|---:|")
        print(
            f"| most memory so far, MB | {tenth:.0f} | {half:.0f} | {end:.0f} | {growth:+.1%} |\n"
        )
        print(
            "| pictures per second | first fifth | last fifth | slower by |\n|---|---:|---:|---:|"
        )
        print(f"| of the clock | {first:.2f} | {last:.2f} | {first / last - 1:+.1%} |")
        print(f"| of the processor | {first_cpu:.2f} | {last_cpu:.2f} | {slowdown:+.1%} |\n")

        watch(folder, broken, kill_at=count // 2)
        killed = len(answers(broken))
        watch(folder, broken, resume=True)
        in_order = [file for file, _ in answers(whole)] == [str(folder / n) for n in names]
        claims = {
            f"memory grows by at most {GROWTH:.0%} after the first tenth": growth <= GROWTH,
            f"the last fifth is at most {SLOWDOWN:.0%} slower": slowdown <= SLOWDOWN,
            "every picture is answered once, in order": in_order,
            f"killed after {killed} and resumed: the same": killed < count
            and answers(whole) == answers(broken),
        }
    for claim, holds in claims.items():
        print(f"{'holds' if holds else 'FAILS'}: {claim}")
    raise typer.Exit(not all(claims.values()))


if __name__ == "__main__":
    run(long_run)
