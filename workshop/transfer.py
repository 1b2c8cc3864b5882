"""A real transfer on two CPU cores: mini learns a drawing style that it has never seen.

    python -m workshop.transfer --out runs/transfer

Scenes drawn by two vendors that mini's training left out (OpenMoji, EmojiOne) are written as PNG
files and JSON lines, some to learn from and others to test on. Then `paliglass train finetune` is
run twice, with LoRA adapters and with every weight, and each model answers the test's prompts.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from paliglass import load
from paliglass.checkpoints.folder import read_config
from paliglass.checkpoints.hub import locate
from paliglass.data.example import Example
from paliglass.data.reading import open_examples
from paliglass.evaluation.judge import answer, to_questions
from paliglass.evaluation.metrics import overall
from paliglass.evaluation.texts import exact
from paliglass.files import write_whole
from workshop.commands import CACHE, WorldCache, run
from workshop.world import World

RUNS = {
    "lora": ["--lora", "16", "--train", "all", "--learning-rate", "3e-3"],
    "full": ["--train", "all", "--learning-rate", "3e-4"],
}
TASKS = {"answer": "answers", "caption": "captions", "detect": "detection F1"}


def write_examples(world: World, start: int, scenes: int, prompts: int, path: Path) -> None:
    """Scenes as pictures and JSON lines; the tasks of TASKS only."""
    lines = []
    path.parent.mkdir(parents=True, exist_ok=True)
    for index in range(start, start + scenes):
        scene, examples = world.sample(index, prompts=prompts)
        name = f"{path.stem}_{index}.png"
        Image.fromarray(scene.image).save(path.parent / name)
        lines += [
            json.dumps({"image": name, "prefix": e.prefix, "suffix": e.suffix})
            for e in examples
            if e.prefix.split()[0] in TASKS
        ]
    write_whole(path, "\n".join(lines) + "\n")


def score(model: str, adapter: Path | None, examples: list[Example]) -> dict[str, float]:
    """Each task's score of a model on examples."""
    questions = to_questions(examples)
    cases = answer(load(model, adapter=adapter, dtype="float32"), questions, free=True)
    found = {}
    for task, title in TASKS.items():
        some = [case for case in cases if case.question.task == task]
        rights = [exact(case.prediction, case.question.references) for case in some]
        is_text = task != "detect"
        found[title] = sum(rights) / len(rights) if is_text else overall(some, None)
    return found


def transfer(
    out: Annotated[Path, typer.Option(file_okay=False, help="Gets data and runs.")] = Path(
        "runs/transfer"
    ),
    scenes: Annotated[int, typer.Option(min=1, help="To learn from.")] = 1200,
    held_out: Annotated[int, typer.Option(min=1, help="Scenes to test on.")] = 150,
    steps: Annotated[int, typer.Option(min=1, help="Of 16 rows.")] = 400,
    world_cache: WorldCache = CACHE,
) -> None:
    """Teach mini a drawing style that it has never seen, and measure what came of it."""
    train, test = (out / "data" / name for name in ("train.jsonl", "test.jsonl"))
    if not test.exists():
        size = read_config(locate("mini")).vision_config.image_size
        world = World(world_cache, "style", 3, size)
        write_examples(world, 0, scenes, 4, train)
        write_examples(world, scenes, held_out, 4, test)
    examples = open_examples(test)
    rows = {"mini as it is": (score("mini", None, examples), 0.0)}
    for name, flags in RUNS.items():
        folder = out / name
        start = time.monotonic()
        if not (folder / "model").exists() and not (folder / "adapter").exists():
            command = [sys.executable, "-m", "paliglass", "train", "finetune", "--model", "mini"]
            command += ["--data", str(train), "--out", str(folder), "--steps", str(steps)]
            subprocess.run([*command, "--batch-size", "16", "--resume", *flags], check=True)
        minutes = (time.monotonic() - start) / 60
        model, adapter = (
            ("mini", folder / "adapter") if name == "lora" else (str(folder / "model"), None)
        )
        rows[name] = score(model, adapter, examples), minutes
    print(f"{len(examples)} held-out prompts\n")
    print("| | " + " | ".join(TASKS.values()) + " | minutes |")
    print("|---|" + "---:|" * (len(TASKS) + 1))
    for name, (scores, minutes) in rows.items():
        cells = [f"{value:.2f}" for value in scores.values()]
        print(f"| {name} | {' | '.join(cells)} | {minutes:.1f} |")


if __name__ == "__main__":
    run(transfer)
