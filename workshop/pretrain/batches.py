"""From scenes to tensors: what a worker process prepares, and how prompts share a picture.

While most of the training lasts, several prompts about a picture stand in one row behind it::

    picture picture | <bos> what \\n a dog <eos> | <bos> how many \\n two <eos>

Each prompt sees the picture and itself, never its neighbours; the picture sees only itself, so one
pass through the decoder serves them all (a third of the work of a row each). What does not fit
into `ROW` tokens stands in another row behind the same picture: rows of unlike length would be
mostly padding, and attention's work grows with their square. PaliGemma's own prefix-LM lets the
picture see the prompt too, which needs a row for each prompt; training ends in that form, the one
that inference uses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from paliglass.layers.losses import IGNORE
from paliglass.processing_paligemma import PaliGemmaProcessor
from paliglass.training.order import batch_indices, share_of
from workshop.pretrain.recipe import TASKS, PretrainRecipe
from workshop.world.concepts import CHARACTERS

KEPT = 400  # batches that are learned from again
ROW = 160  # tokens of prompts in a row: of 96 … 1000 the quickest on the world's own scenes
CELLS = (2, 4)  # rows and columns in a patch, for its characters: two of a line's fit in


@dataclass
class PromptRow:
    """One prompt with its answer: `ids` of both, the first `prefix` of them given."""

    ids: list[int]
    prefix: int
    task: int


@dataclass
class TextBatch:
    """What the decoder gets behind the picture's P tokens.

    ids, labels, tasks: B × T (labels already shifted: IGNORE or the *next* id); positions, segments
    and ranks of all P + T tokens: B × (P + T); pictures: B, which picture each row is about. A
    segment is 0 for what all may see, −1 for padding; a rank is 0 in a prefix, then 1, 2, 3 …
    """

    ids: Tensor
    labels: Tensor
    tasks: Tensor
    positions: Tensor
    segments: Tensor
    ranks: Tensor
    pictures: Tensor

    @property
    def mask(self) -> Tensor:
        """Who may see whom: B × 1 × (P + T) × (P + T), made where the rest lies."""
        seg, rank = self.segments, self.ranks
        same = (seg[:, :, None] == seg[:, None, :]) | (seg[:, None, :] == 0)
        return (same & (rank[:, None, :] <= rank[:, :, None]))[:, None]

    def to(self, device: torch.device) -> TextBatch:
        """The same on another device."""
        return replace(self, **{name: tensor.to(device) for name, tensor in vars(self).items()})


@dataclass
class SceneBatch:
    """S scenes: pixels uint8 S × H × W × 3; patch labels S × P; boxes S × P × 4 in [0, 1].

    characters: S × P × cells, 0 for none, else 1 + the place in `CHARACTERS`; packed: all prompts,
    several in a row; single: every other one in a row of its own. None without prompts.
    """

    pixels: Tensor
    patch_labels: Tensor
    patch_boxes: Tensor
    characters: Tensor
    packed: TextBatch | None
    single: TextBatch | None

    def to(self, device: torch.device) -> SceneBatch:
        """The same on another device."""
        on = {name: part.to(device) for name, part in vars(self).items() if part is not None}
        return replace(self, **on)


class SceneDataset(Dataset[tuple[Any, list[PromptRow]]]):
    """Scene `index` of a world with its encoded prompts, if any; every index is a new scene."""

    def __init__(self, world: Any, processor: PaliGemmaProcessor, prompts: int, grid: int) -> None:
        self.world, self.processor = world, processor
        self.prompts, self.grid = prompts, grid
        self.spelled = np.array([_character(name) for name in world.patch_classes])

    def __getitem__(self, index: int) -> tuple[Any, list[PromptRow]]:
        if not self.prompts:
            return self.world.scene(index), []
        scene, examples = self.world.sample(index, prompts=self.prompts)
        rows = []
        for example in examples:
            prefix = self.processor.encode_prefix(example.prefix, num_pictures=0)
            suffix = self.processor.encode_suffix(example.suffix)
            task = TASKS.index(example.task)
            rows.append(PromptRow(prefix + suffix, len(prefix), task))
        return scene, rows

    def collate(self, samples: list[tuple[Any, list[PromptRow]]]) -> SceneBatch:
        """The DataLoader's collate function."""
        scenes = [scene for scene, _ in samples]
        labels = [torch.as_tensor(scene.patch_labels(self.grid)).flatten() for scene in scenes]
        rows = [rows for _, rows in samples]
        packed = single = None
        if self.prompts:  # laid out here, as the process that learns has no time to
            packed = text_batch(rows, self.grid**2, packed=True)
            every_other = [of_scene[i % 2 :: 2] for i, of_scene in enumerate(rows)]
            single = text_batch(every_other, self.grid**2, packed=False)
        return SceneBatch(
            torch.from_numpy(np.stack([scene.image for scene in scenes])),
            torch.stack(labels),
            torch.stack([patch_boxes(scene, self.grid) for scene in scenes]),
            torch.stack([self._characters(scene) for scene in scenes]),
            packed,
            single,
        )

    def _characters(self, scene: Any) -> Tensor:
        rows, columns = CELLS
        labels = scene.patch_labels(rows * self.grid, columns * self.grid)
        cells = self.spelled[labels].reshape(self.grid, rows, self.grid, columns)
        return torch.from_numpy(cells.swapaxes(1, 2).reshape(self.grid**2, -1))


def _character(patch_class: str) -> int:
    """1 + the place in `CHARACTERS` of what a patch class spells, 0 for other things."""
    kind, _, name = patch_class.partition(" ")
    return 1 + CHARACTERS.index(name) if kind == "character" else 0


def batches(
    world: Any,
    processor: PaliGemmaProcessor,
    recipe: PretrainRecipe,
    grid: int,
    first_step: int,
    workers: int,
    process: int = 0,
    processes: int = 1,
    device: torch.device | str = "cpu",
) -> Iterator[SceneBatch]:
    """Batches from `first_step` on, prepared by worker processes.

    Scene i of a run is always the same one. Of several processes each takes its part of a step's.
    grid: patches along a side.
    """
    prompts = recipe.prompts if recipe.vision_warmup < 1 else 0  # nobody would read them
    dataset = SceneDataset(world, processor, prompts, grid)
    first = first_step // recipe.repeats
    last = None if recipe.steps is None else -(-recipe.steps // recipe.repeats)
    order = batch_indices(None, recipe.scenes, recipe.seed, first, last)
    loader = DataLoader(
        dataset,
        batch_sampler=share_of(order, process, processes),
        collate_fn=dataset.collate,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )
    fresh = (batch.to(torch.device(device)) for batch in loader)
    yield from fresh if recipe.repeats == 1 else repeated(fresh, recipe.repeats, recipe.seed, first)


def repeated(
    fresh: Iterable[SceneBatch], times: int, seed: int, first: int
) -> Iterator[SceneBatch]:
    """After each new batch `times` − 1 of the last `KEPT`, drawn by (seed, its number).

    For a GPU that learns faster than processors make scenes. A resumed run has nothing kept yet.
    """
    kept: deque[SceneBatch] = deque(maxlen=KEPT)
    for number, batch in enumerate(fresh, first):
        kept.append(batch)
        yield batch
        for index in np.random.default_rng((seed, number)).integers(len(kept), size=times - 1):
            yield kept[index]


def patch_boxes(scene: Any, grid: int) -> Tensor:
    """For each patch the box (x0, y0, x1, y1 in [0, 1]) of the smallest object at its centre.

    P × 4, NaN where there is none.
    """
    height, width = scene.image.shape[:2]
    boxes = torch.full((grid, grid, 4), torch.nan)
    centres = (torch.arange(grid) + 0.5) / grid

    def area(thing: Any) -> float:
        x0, y0, x1, y1 = thing.box
        return float((x1 - x0) * (y1 - y0))

    for thing in sorted(scene.objects, key=area, reverse=True):
        x0, y0, x1, y1 = (float(v) for v in thing.box)
        box = torch.tensor([x0 / width, y0 / height, x1 / width, y1 / height])
        inside_x = (centres >= box[0]) & (centres <= box[2])
        inside_y = (centres >= box[1]) & (centres <= box[3])
        boxes[inside_y[:, None] & inside_x] = box
    return boxes.flatten(0, 1)


def text_batch(scenes: list[list[PromptRow]], num_patches: int, packed: bool) -> TextBatch:
    """Lays prompts out: several in a row (`packed`), or a row for each with the full prefix-LM."""
    shared = [filled(rows) if packed else [[row] for row in rows] for rows in scenes]
    groups = [group for of_scene in shared for group in of_scene]
    pictures = [i for i, of_scene in enumerate(shared) for _ in of_scene]
    length = max(sum(len(row.ids) for row in group) for group in groups)
    total = num_patches + length
    ids, labels, tasks = np.zeros((3, len(groups), length), dtype=np.int64)
    labels[:] = IGNORE
    positions = np.ones((len(groups), total), dtype=np.int64)
    positions[:, :num_patches] = np.arange(1, num_patches + 1)
    segments = np.full((len(groups), total), -1, dtype=np.int64)
    segments[:, :num_patches] = 0
    ranks = np.zeros((len(groups), total), dtype=np.int64)
    for b, group in enumerate(groups):
        start = 0
        for s, row in enumerate(group, 1):
            end, suffix = start + len(row.ids), start + row.prefix
            ids[b, start:end] = row.ids
            labels[b, suffix - 1 : end - 1] = row.ids[row.prefix :]
            tasks[b, start:end] = row.task
            place = slice(num_patches + start, num_patches + end)
            positions[b, place] = np.arange(num_patches + 1, num_patches + 1 + len(row.ids))
            segments[b, place] = s if packed else 0
            ranks[b, place] = np.maximum(np.arange(len(row.ids)) - row.prefix + 1, 0)
            start = end
    return TextBatch(
        torch.from_numpy(ids),
        torch.from_numpy(labels),
        torch.from_numpy(tasks),
        torch.from_numpy(positions),
        torch.from_numpy(segments),
        torch.from_numpy(ranks),
        torch.tensor(pictures),
    )


def filled(rows: Sequence[PromptRow]) -> list[list[PromptRow]]:
    """Prompts in groups of at most `ROW` tokens; the longest first, each where it first fits."""
    groups: list[list[PromptRow]] = []
    room: list[int] = []
    for row in sorted(rows, key=lambda row: len(row.ids), reverse=True):
        size = len(row.ids)
        at = next((i for i, left in enumerate(room) if size <= left), len(groups))
        if at == len(groups):
            groups.append([])
            room.append(max(ROW, size))
        groups[at].append(row)
        room[at] -= size
    return groups
