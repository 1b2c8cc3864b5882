"""Makes scores mean what they say: fits a model's calibration.json on the picture world.

    python -m workshop.calibrate MODEL --scenes 300 --diagram reliability.svg

Answers are right when they are the true text, boxes when label and place (IoU ≥ .5) are those of
a true one, segments when their masks are (IoU ≥ .5). Each task gets its own Platt scaling; the
calibration errors that are printed are those on scenes that the scaling was not fitted on.
"""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from paliglass.checkpoints.assembly import DtypeName
from paliglass.checkpoints.hub import locate
from paliglass.cli.tables import print_table
from paliglass.errors import PaliglassError
from paliglass.evaluation.cases import Question
from paliglass.evaluation.judge import answer
from paliglass.evaluation.objects import intersection_over_union, mask_iou, masks_of, pair_off
from paliglass.files import write_whole
from paliglass.model import PaliGemma, load
from paliglass.modeling_mask_codec import MaskCodec
from paliglass.tasks.boxes import ParsedBox, parse_boxes
from paliglass.tasks.confidence import FILE, CalibratedTask, Calibration, Platt, logit
from workshop.commands import CACHE, Threads, WorldCache, run
from workshop.world import World

BINS = 10
FEWEST = 20  # answers of a task, and of these 3 right and 3 wrong: with less there is no telling
OBJECTS = ("detect", "segment")


class Judged:
    """Raw scores of a task's answers, whether each was right, and the scene it is about."""

    def __init__(self) -> None:
        self.raw: list[float] = []
        self.right: list[bool] = []
        self.scene: list[int] = []

    def add(self, raw: float, right: bool, scene: int) -> None:
        self.raw.append(raw)
        self.right.append(right)
        self.scene.append(scene)

    def part(self, odd: bool) -> Judged:
        """The answers about every other scene."""
        part = Judged()
        for raw, right, scene in zip(self.raw, self.right, self.scene, strict=True):
            if scene % 2 == odd:
                part.add(raw, right, scene)
        return part

    @property
    def can_be_fitted(self) -> bool:
        rights = sum(self.right)
        return len(self.raw) >= FEWEST and 3 <= rights <= len(self.raw) - 3


def judge(
    model: PaliGemma, world: World, scenes: int, prompts: int = 8, *, free: bool = False
) -> dict[CalibratedTask, Judged]:
    """Answers every prompt about scenes 0 … `scenes` − 1; raw scores, right or wrong, by task."""
    judged: dict[CalibratedTask, Judged] = defaultdict(Judged)
    questions = []
    for index in range(scenes):
        scene, examples = world.sample(index, prompts=prompts)
        questions += [
            Question(scene.image, e.prefix, (e.suffix,), (index, e.task)) for e in examples
        ]
    for case in answer(model, questions, free=free, max_new_tokens=128):
        [truth], (index, task) = case.question.references, case.question.about
        if task not in OBJECTS:
            judged[task].add(case.score, case.prediction == truth, index)
            continue
        codec = model.mask_codec if task == "segment" else None
        found = [parsed for parsed, _ in case.objects]
        fits = overlaps(found, parse_boxes(truth), codec, world.size)
        for (_, raw), right in zip(case.objects, matched(fits), strict=True):
            judged[task].add(raw, right, index)
    return dict(judged)


def overlaps(
    found: Sequence[ParsedBox], true: Sequence[ParsedBox], codec: MaskCodec | None, side: int = 128
) -> NDArray[np.float64]:
    """IoU of every found with every true object, N × M; 0 for another label.

    Of their boxes, or, with a codec, of their masks in a square of that many pixels.
    """
    if codec is not None:
        masks, references = (masks_of(objects, codec, side, side) for objects in (found, true))
    fits = np.zeros((len(found), len(true)))
    for i, a in enumerate(found):
        for j, b in enumerate(true):
            if a.label != b.label:
                continue
            fits[i, j] = (
                intersection_over_union(a.box, b.box)
                if codec is None
                else mask_iou(masks[i], references[j])
            )
    return fits


def matched(fits: NDArray[np.float64], threshold: float = 0.5) -> list[bool]:
    """Which of N found objects have a true one of their own: the best pair is matched first."""
    pairs = pair_off(((fit, *place) for place, fit in np.ndenumerate(fits)), threshold)
    claims = {claim for claim, _ in pairs.values()}
    return [i in claims for i in range(len(fits))]


def fit(raw: Sequence[float], right: Sequence[bool]) -> Platt:
    """The likeliest scaling (Platt 1999, with his smoothed targets, which keep it finite)."""
    x = np.array([logit(score) for score in raw])
    is_right = np.array(right)
    rights, wrongs = is_right.sum(), (~is_right).sum()
    target = np.where(is_right, (rights + 1) / (rights + 2), 1 / (wrongs + 2))
    design = np.stack((x, np.ones_like(x)), axis=1)
    weights = np.array([1.0, 0.0])
    for _ in range(100):  # Newton's method; the loss is convex
        p = 1 / (1 + np.exp(-np.clip(design @ weights, -40, 40)))
        gradient = design.T @ (p - target)
        curvature = design.T @ (design * (p * (1 - p))[:, None]) + 1e-6 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        weights = weights - step * min(1.0, 2 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-9:
            break
    if weights[0] < 0:  # scores that say the contrary say nothing: the share of the right remains
        return Platt(0.0, float(np.log((rights + 1) / (wrongs + 1))))
    return Platt(round(float(weights[0]), 6), round(float(weights[1]), 6))


def reliability(scores: Sequence[float], right: Sequence[bool]) -> list[tuple[float, float, int]]:
    """For each tenth of [0, 1] that has scores: their mean, the share of the right, how many."""
    places = np.minimum((np.asarray(scores) * BINS).astype(int), BINS - 1)
    rows = []
    for place in np.unique(places):
        inside = places == place
        mean, share = np.asarray(scores)[inside].mean(), np.asarray(right)[inside].mean()
        rows.append((float(mean), float(share), int(inside.sum())))
    return rows


def calibration_error(scores: Sequence[float], right: Sequence[bool]) -> float:
    """Expected calibration error (arXiv 1706.04599): mean gap of score and share, by tenths."""
    rows = reliability(scores, right)
    gaps = sum(abs(mean - share) * count for mean, share, count in rows)
    return gaps / max(sum(count for *_, count in rows), 1)


_STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #22242a } .small { font-size: 12px }
  .soft { fill: #6c6f78 } .line { stroke: #6c6f78; fill: none }
  .raw { fill: #d9822b } .calibrated { fill: #2f6fb7 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e8e6e1 } .soft { fill: #9a9ca5 } .line { stroke: #9a9ca5 }
    .raw { fill: #eda04f } .calibrated { fill: #6aa9ee }
  }
"""


def draw_diagram(panels: dict[str, tuple[Sequence[float], Sequence[float], Sequence[bool]]]) -> str:
    """Reliability before and after, an SVG: for each task (raw, calibrated, right).

    Two panels a row, 344 pixels wide, so that a phone shows it whole; light or dark as the page.
    """
    side, columns = 130, 2
    height = 216 * -(-len(panels) // columns)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 344 {height}" width="344">',
        f"<style>{_STYLE}</style>",
    ]
    for i, (task, (raw, calibrated, right)) in enumerate(panels.items()):
        left, top = 30 + 172 * (i % columns), 28 + 216 * (i // columns)
        end, floor = left + side, top + side
        parts += [
            f'<text x="{left}" y="{top - 10}" font-weight="650">{html.escape(task)}</text>',
            f'<text class="soft small" x="{end}" y="{top - 10}" text-anchor="end">'
            f"n = {len(right)}</text>",
            f'<path class="line" d="M{left} {top}V{floor}H{end}"/>',
            f'<path class="line" stroke-dasharray="3 4" d="M{left} {floor}L{end} {top}"/>',
            f'<text class="soft small" x="{left - 6}" y="{top + 8}" text-anchor="end">1</text>',
            f'<text class="soft small" x="{left - 6}" y="{floor}" text-anchor="end">0</text>',
            f'<text class="soft small" transform="translate({left - 8} {top + side / 2}) '
            'rotate(-90)" text-anchor="middle">right</text>',
            f'<text class="soft small" x="{end}" y="{floor + 14}" text-anchor="end">score 1</text>',
        ]
        for j, (name, scores) in enumerate((("raw", raw), ("calibrated", calibrated))):
            for mean, share, count in reliability(scores, right):
                radius = 2 + 8 * (count / len(right)) ** 0.5
                parts.append(
                    f'<circle class="{name}" fill-opacity="0.75" cx="{left + mean * side:.1f}" '
                    f'cy="{top + (1 - share) * side:.1f}" r="{radius:.1f}"/>'
                )
            error = calibration_error(scores, right)
            parts.append(
                f'<text class="{name} small" x="{left}" y="{floor + 30 + 15 * j}">{name}: error '
                f"{error:.3f}</text>"
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


def fit_all(judged: dict[CalibratedTask, Judged]) -> tuple[Calibration, dict[str, Any]]:
    """A scaling for each task that can have one, and the panels of `draw_diagram`.

    A panel has the answers about one half of the scenes, scaled as fitted on the other half. The
    calibration itself is fitted on all.
    """
    scalings: dict[str, Platt] = {}
    panels: dict[str, Any] = {}
    for task, answers in judged.items():
        halves = answers.part(odd=False), answers.part(odd=True)
        if not all(half.can_be_fitted for half in halves):
            continue
        scaling = fit(halves[0].raw, halves[0].right)
        panels[task] = halves[1].raw, [scaling(raw) for raw in halves[1].raw], halves[1].right
        scalings[task] = fit(answers.raw, answers.right)
    return Calibration(**scalings), panels


def calibrate(
    model: Annotated[str, typer.Argument(help="As for paliglass.load; its folder gets the file.")],
    scenes: Annotated[int, typer.Option(min=1, help="Of the split.")] = 300,
    prompts: Annotated[int, typer.Option(min=1, help="About each scene.")] = 8,
    split: Annotated[Literal["validation", "train", "test"], typer.Option()] = "validation",
    seed: Annotated[int, typer.Option(help="Models are trained on the world of seed 0.")] = 1,
    out: Annotated[
        Path | None, typer.Option(dir_okay=False, help=f"In place of MODEL/{FILE}.")
    ] = None,
    diagram: Annotated[
        Path | None, typer.Option(dir_okay=False, help="An SVG of the reliability to draw.")
    ] = None,
    dtype: Annotated[DtypeName, typer.Option(help="What to convert the weights to.")] = "float32",
    threads: Threads = 2,
    world_cache: WorldCache = CACHE,
) -> None:
    """Fit a model's calibration.json: what its scores must be scaled by to mean what they say."""
    torch.set_num_threads(threads)
    loaded = load(model, device="cpu", dtype=dtype)
    size = loaded.model.config.vision_config.image_size
    world = World(world_cache, split, seed, size, codec=loaded.mask_codec)
    judged = judge(loaded, world, scenes, prompts)
    calibration, panels = fit_all(judged)
    if not panels:
        raise PaliglassError("too few answers, or all of them right or wrong: give more --scenes")
    rows = []
    for task, (raw, calibrated, right) in panels.items():
        errors = (f"{calibration_error(scores, right):.3f}" for scores in (raw, calibrated))
        rows.append([task, str(len(right)), f"{np.mean(right):.3f}", *errors])
    head = ["task", "answers", "right", "error, raw", "error, calibrated"]
    print_table(head, rows, title="held out")
    for task in sorted(judged.keys() - panels.keys()):
        print(f"{task}: too few answers to calibrate; its scores stay raw")
    if out is None:
        place = locate(model)
        out = (place if place.is_dir() else place.parent) / FILE
    calibration.save(out)
    print(f"wrote {out}")
    if diagram is not None:
        write_whole(diagram, draw_diagram(panels))
        print(f"wrote {diagram}")


if __name__ == "__main__":
    run(calibrate)
