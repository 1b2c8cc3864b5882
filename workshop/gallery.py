"""A page of what a model really says about scenes it has never seen: docs/gallery.md.

    python -m workshop.gallery --model mini

Nothing is picked: of the world's test scenes, in their order, each task shows the first that have
something to ask it about. The last section does pick: the first answers that are wrong.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image

from paliglass.cli.options import MODEL_HELP
from paliglass.errors import PaliglassError
from paliglass.evaluation.objects import match_boxes
from paliglass.model import PaliGemma, load
from paliglass.tasks.boxes import encode_box
from paliglass.tasks.results import Found
from workshop.commands import CACHE, WorldCache, run
from workshop.world import World

ROOT = Path(__file__).parents[1]
SIDE = 320  # of a picture on the page, in pixels
COLUMNS = 3
SCENE = 512  # pixels of a scene's side, for people; the model scales it down to its own
TASKS = {
    "caption": "Captions",
    "answer": "Questions",
    "detect": "Boxes",
    "segment": "Masks",
    "ocr": "Reading",
}
COMMANDS = {"answer": "ask", "ocr": "read"}  # where they are not called as the prompt begins
CREDIT = (
    "Stickers: [Noto Emoji](https://github.com/googlefonts/noto-emoji) (© Google, Apache-2.0), "
    "[Twemoji](https://github.com/jdecked/twemoji) (© Twitter and contributors, CC-BY-4.0), "
    "[Fluent Emoji](https://github.com/microsoft/fluentui-emoji) (© Microsoft, MIT), "
    "[FxEmojis](https://github.com/mozilla/fxemoji) (© Mozilla, Apache-2.0), scaled, turned and "
    "composed; handwritten digits: MNIST; fonts and versions: [ATTRIBUTION.md](../ATTRIBUTION.md)."
)


@dataclass(frozen=True)
class Shown:
    """A scene, what was asked about it, what the model said and what is right."""

    index: int
    task: str
    prompt: str
    truth: str
    picture: Image.Image
    result: Any

    @property
    def text(self) -> str:
        """The answer as the model would write it."""
        if not isinstance(self.result, Found):
            return str(self.result)
        size = self.result.width, self.result.height
        return " ; ".join(f"{encode_box(i.box, *size)} {i.label}" for i in self.result)

    @property
    def right(self) -> bool:
        """The same words; for things, the same labels with boxes of IoU ≥ .5, none missing."""
        if isinstance(self.result, Found):
            return match_boxes(self.text, self.truth).f1 == 1
        return self.text == self.truth

    @property
    def command(self) -> str:
        word, _, rest = self.prompt.partition(" ")
        rest = "" if word in ("caption", "ocr") else rest.removeprefix("en ")
        return " ".join(
            ["paliglass", COMMANDS.get(word, word), f"scene-{self.index}.png"]
            + ([shlex.quote(rest)] if rest else [])
        )

    def says(self) -> str:
        """The result in words, with scores."""
        if isinstance(self.result, Found):
            found = (f"{item.label} {item.score:.2f}" for item in self.result)
            return ", ".join(found) or "nothing found"
        score = getattr(self.result, "score", None)
        return f"“{self.result}”" + ("" if score is None else f" {score:.2f}")

    def expects(self) -> str:
        """What is right, in words."""
        if isinstance(self.result, Found):
            labels = [part.rpartition(">")[2].strip() for part in self.truth.split(" ; ") if part]
            return ", ".join(labels) or "nothing"
        return f"“{self.truth}”"

    def drawn(self) -> Image.Image:
        """The scene, with what was found."""
        return self.result.draw(self.picture) if isinstance(self.result, Found) else self.picture


def answer(model: PaliGemma, prompt: str, picture: Image.Image) -> Any:
    """What the model's own method for the task gives."""
    task, _, rest = prompt.partition(" ")
    if task in ("detect", "segment"):
        found = getattr(model, task)(picture, rest)
        return Found(found, *picture.size)
    return model.generate(picture, prompt, max_new_tokens=64)


def ask_all(model: PaliGemma, world: World, scenes: int, can_segment: bool) -> Iterator[Shown]:
    """One prompt of each task about each scene, where there is one whose answer says something."""
    for index in range(scenes):
        scene, examples = world.sample(index, prompts=8)
        picture = Image.fromarray(scene.image)
        first = {e.prefix.split(" ", 1)[0]: e for e in reversed(examples) if e.suffix}
        for task, example in sorted(first.items()):
            yield Shown(
                *(index, task, example.prefix, example.suffix, picture),
                answer(model, example.prefix, picture),
            )
        if can_segment and "segment" not in first and "detect" in first:
            prompt = first["detect"].prefix.replace("detect", "segment", 1)
            result = answer(model, prompt, picture)
            yield Shown(index, "segment", prompt, first["detect"].suffix, picture, result)


def table(shown: list[Shown], folder: Path) -> list[str]:
    """A row of pictures, and below each the command, the answer and whether it is right."""
    lines: list[str] = []
    for start in range(0, len(shown), COLUMNS):
        row = shown[start : start + COLUMNS]
        pictures, words = [], []
        for item in row:
            name = f"{item.task}-{item.index}.png"
            small = item.drawn().quantize(128)
            small.save(folder / name, optimize=True)
            pictures.append(f'<img src="gallery/{name}" width="{SIDE}">')
            verdict = "✓" if item.right else f"✗ right: {item.expects()}"
            words.append(f"`{item.command}`<br>{item.says()}<br>{verdict}".replace("|", "\\|"))
        lines += [f"| {' | '.join(pictures)} |", f"|{'---|' * len(row)}"]
        lines += [f"| {' | '.join(words)} |", ""]
    return lines


def gallery(
    model: Annotated[str, typer.Option("--model", "-m", help=MODEL_HELP)] = "mini",
    scenes: Annotated[int, typer.Option(min=1, help="How many are asked about.")] = 60,
    each: Annotated[int, typer.Option(min=1, help="Pictures of each task.")] = COLUMNS,
    seed: Annotated[int, typer.Option(help="Models are trained on the world of seed 0.")] = 1,
    docs: Annotated[
        Path, typer.Option(file_okay=False, help="Gets gallery.md and gallery/.")
    ] = ROOT / "docs",
    world_cache: WorldCache = CACHE,
) -> None:
    """Write the page of what a model says about scenes it has never seen, and its pictures."""
    torch.set_num_threads(1)
    loaded = load(model, device="cpu", dtype="float32")
    # "test" has the training families' stickers, which may be shown; the held-out ones may not.
    world = World(world_cache, "test", seed, SCENE)
    try:
        answer(loaded, "segment dog", Image.new("RGB", (64, 64)))
        can_segment = True
    except (AttributeError, PaliglassError) as error:
        can_segment = False
        print(f"no masks: {error}")

    folder = docs / "gallery"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    asked = list(ask_all(loaded, world, scenes, can_segment))
    lines = [
        f"# What {model} says",
        "",
        "Scenes of the picture world that it was not trained on, in their order: the first of each "
        "task, right or wrong. A number behind an answer is its score. ✓ means the same words, or "
        "the same things with boxes that overlap by half (IoU ≥ .5).",
        "",
        "Made by `python -m workshop.gallery"
        + ("" if model == "mini" else f" --model {model}")
        + "`; scene numbers are those of "
        + f"`World(split='test', seed={seed}, size={SCENE})`.",
        "",
    ]
    used: set[tuple[str, int]] = set()
    for task, title in TASKS.items():
        of_task = [item for item in asked if item.task == task]
        if not of_task:
            continue
        rights = sum(item.right for item in of_task)
        lines += [f"## {title}", "", f"{rights} of {len(of_task)} right in these scenes.", ""]
        lines += table(of_task[:each], folder)
        used.update((task, item.index) for item in of_task[:each])
    wrong = [item for item in asked if not item.right and (item.task, item.index) not in used]
    failures = [item for task in TASKS for item in [w for w in wrong if w.task == task][:2]]
    if failures:
        lines += ["## What goes wrong", "", "The next wrong answers of each task.", ""]
        lines += table(failures, folder)
    lines += ["---", "", CREDIT, ""]
    (docs / "gallery.md").write_text("\n".join(lines), encoding="utf-8")
    sizes = sum(path.stat().st_size for path in folder.glob("*.png"))
    print(f"{docs / 'gallery.md'}: {len(list(folder.glob('*.png')))} pictures, {sizes} bytes")


if __name__ == "__main__":
    run(gallery)
