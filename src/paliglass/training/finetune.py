"""Fine-tuning: a model that exists learns a task from pictures, prefixes and suffixes.

- which rows a step sees follows from its number alone, and checkpoints hold all else: a resumed run
  has the very losses of an unbroken one
- on the way the model answers prompts that were held out: the best weights seen are kept, and the
  run may end when they get no better
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from paliglass.checkpoints import save_folder
from paliglass.data.checks import contact_sheet
from paliglass.data.examples import Example
from paliglass.errors import PictureError
from paliglass.evaluation.cases import OBJECT_TASKS
from paliglass.evaluation.examples import ANSWERS, CAPTIONS, to_questions
from paliglass.evaluation.objects import Matches, match_boxes
from paliglass.evaluation.texts import cider, exact, vqa_accuracy
from paliglass.model import CODEC, PaliGemma
from paliglass.pictures import load_picture
from paliglass.processing_paligemma import PaliGemmaProcessor
from paliglass.training.finetuner import Batch, Finetuner
from paliglass.training.lora import save_lora
from paliglass.training.order import batch_indices
from paliglass.training.runs import (
    Screen,
    check_same,
    cut_log,
    largest,
    stop_signals,
    stopped_early,
)
from paliglass.training.sharding import gather, gathered, gathered_model, restore


class _Rows(Dataset[tuple[Example, Tensor, str]]):
    """Example `index` with its pixels. A broken picture gives way to the next whole one."""

    def __init__(self, examples: Sequence[Example], processor: PaliGemmaProcessor) -> None:
        self.examples, self.processor = examples, processor

    def __getitem__(self, index: int) -> tuple[Example, Tensor, str]:
        broken = ""
        for offset in range(len(self.examples)):
            example = self.examples[(index + offset) % len(self.examples)]
            try:
                return example, self.processor.pixels(example.image), broken
            except PictureError as error:
                broken = broken or f"{example.where}: {error}"
        raise PictureError(f"not one of the {len(self.examples)} pictures can be read: {broken}")

    def collate(self, rows: list[tuple[Example, Tensor, str]]) -> tuple[Batch, list[str]]:
        """Rows → a batch, and what was wrong."""
        batch = self.processor.words(
            [example.prefix for example, _, _ in rows],
            [1] * len(rows),
            [example.suffix for example, _, _ in rows],
            allow_special_tokens=True,
        )
        batch["pixel_values"] = torch.stack([pixels for _, pixels, _ in rows])
        return batch, [broken for _, _, broken in rows if broken]


def batches(
    examples: Sequence[Example],
    processor: PaliGemmaProcessor,
    order: Iterator[list[int]],
    workers: int = 0,
) -> Iterator[tuple[Batch, list[str]]]:
    """Batches of the rows that `order` names, prepared by worker processes, and complaints."""
    dataset = _Rows(examples, processor)
    yield from DataLoader(
        dataset,
        batch_sampler=order,
        collate_fn=dataset.collate,
        num_workers=workers,
    )


def shares(trainer: Finetuner, count: int) -> Iterator[list[int]]:
    """Which rows each batch of this process holds, from the trainer's step on."""
    recipe, accelerator = trainer.recipe, trainer.accelerator
    for step in batch_indices(count, recipe.batch_size, recipe.seed, trainer.step, recipe.steps):
        for part in range(recipe.accumulate):
            first = (part * accelerator.num_processes + accelerator.process_index) * trainer.rows
            yield step[first : first + trainer.rows]


@dataclass
class Validation:
    """How a run is judged on the way.

    examples: held out. every: steps between looks. patience: looks without a better score before
    the run ends; 0: none. answers: how many are answered in full, for score and samples.
    """

    examples: Sequence[Example]
    every: int
    patience: int = 0
    answers: int = 64


def score_answers(examples: Sequence[Example], said: Sequence[str]) -> float:
    """0 … 1: the mean over the tasks that there are, each by its own metric.

    F1 at IoU .5 over the boxes of `detect` and `segment`, a tenth of CIDEr for captions, VQA
    accuracy for answers, the share right of the rest.
    """
    boxes: list[Matches] = []
    texts: dict[str, list[tuple[str, tuple[str, ...]]]] = defaultdict(list)
    for example, answer in zip(examples, said, strict=True):
        task = example.prefix.partition(" ")[0]
        if task in OBJECT_TASKS:
            boxes.append(match_boxes(answer, example.suffix))
        else:
            kind = "caption" if task in CAPTIONS else "answer" if task in ANSWERS else "other"
            texts[kind].append((answer, example.answers or (example.suffix,)))
    scores = [sum(boxes, Matches()).f1] if boxes else []
    for kind, pairs in texts.items():
        if kind == "caption":
            found = [value / 10 for value in cider(*map(list, zip(*pairs, strict=True)))]
        else:
            found = [(vqa_accuracy if kind == "answer" else exact)(*pair) for pair in pairs]
        scores.append(sum(found) / len(found))
    return sum(scores) / len(scores)


def _asked(validation: Validation) -> list[Example]:
    """What is answered in full: each prompt about a picture once, and no broken pictures."""
    asked = []
    for question in to_questions(validation.examples):
        with suppress(PictureError):
            load_picture(question.picture)
            path = Path(str(question.picture))
            right = question.answers
            asked.append(Example(path, question.prefix, right[0], "", right))
        if len(asked) == validation.answers:
            break
    return asked


def fingerprint(examples: Sequence[Example]) -> str:
    """Tells data sets apart by their prompts, answers and pictures' names, wherever they lie."""
    lines = (f"{e.image.name}\t{e.prefix}\t{e.suffix}\n" for e in examples)
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode())
    return f"{len(examples)} examples, {digest.hexdigest()[:8]}"


def train(
    trainer: Finetuner,
    processor: PaliGemmaProcessor,
    examples: Sequence[Example],
    out: Path,
    *,
    validation: Validation | None = None,
    workers: int = 0,
    log_every: int = 10,
    checkpoint_seconds: float = 120.0,
    past: dict[str, Any] | None = None,
) -> None:
    """Trains to the end, with lines of `log.jsonl` and `samples.jsonl`, and checkpoints.

    With a validation set the best weights seen are kept, and are what the model has at the end.
    Ctrl-C ends it after the step at hand, with a checkpoint.
    """
    accelerator, recipe = trainer.accelerator, trainer.recipe
    main = accelerator.is_main_process
    about = {"data": fingerprint(examples)}
    if past:
        check_same(out / "checkpoint", {"data": past.get("data")}, about)
    state: dict[str, Any] = {"best": [-1.0, 0.0], "waited": 0, **(past or {}), **about}
    if main:
        if not past:  # of a run that came to no checkpoint
            (out / "best.safetensors").unlink(missing_ok=True)
        for name in ("log.jsonl", "samples.jsonl"):
            cut_log(out / name, trainer.step)
    data = batches(examples, processor, shares(trainer, len(examples)), workers)
    saved = logged = time.monotonic()
    losses: list[float] = []
    complaints: dict[str, None] = {}
    with stop_signals() as stop, Screen(trainer.progress, quiet=not main) as screen:
        while trainer.step < recipe.steps:
            group = list(islice(data, recipe.accumulate))
            losses.append(trainer.train_step([batch for batch, _ in group]))
            for message in (m for _, broken in group for m in broken if m not in complaints):
                complaints[message] = None
                screen.say(f"skipped: {message}")
            done, now = trainer.step == recipe.steps, time.monotonic()
            if trainer.step % log_every == 0 or done:
                line = {
                    "step": trainer.step,
                    "loss": sum(losses) / len(losses),
                    "rate": trainer.rate,
                    "rows_per_second": round(
                        len(losses) * recipe.batch_size / max(now - logged, 1e-9), 2
                    ),
                }
                if main:
                    _append(out / "log.jsonl", line)
                text = f"step {trainer.step}  loss {line['loss']:.3f}"
                screen.show(trainer.progress, f"{text}  {line['rows_per_second']:.1f} rows/s")
                losses, logged = [], now
            if validation is not None and (trainer.step % validation.every == 0 or done):
                _look(trainer, processor, validation, state, out, screen)
                logged = time.monotonic()
            tired = bool(validation and 0 < validation.patience <= state["waited"])
            late = now - saved >= checkpoint_seconds
            due, stopped = largest(accelerator, late, bool(stop))
            if due or stopped or done or tired:
                trainer.save(out / "checkpoint", state)
                saved = time.monotonic()
            if tired:
                screen.say(f"step {trainer.step}: no better for {state['waited']} looks, the end")
                break
            if stopped and not done:
                raise stopped_early(out / "checkpoint", trainer.step)
    if (out / "best.safetensors").exists():
        restore(trainer.learning, out / "best.safetensors")


def _look(
    trainer: Finetuner,
    processor: PaliGemmaProcessor,
    validation: Validation,
    state: dict[str, Any],
    out: Path,
    screen: Screen,
) -> None:
    """Loss and answers on what was held out; keeps the weights if they are the best so far."""
    rows = trainer.rows
    count = len(validation.examples)
    order = (list(range(i, min(i + rows, count))) for i in range(0, count, rows))
    loss = trainer.mean_loss(b for b, _ in batches(validation.examples, processor, order))
    asked = _asked(validation)
    trainer.model.eval()
    with trainer.accelerator.autocast(), gathered(trainer.loss):
        said = PaliGemma(trainer.model, processor).generate(
            [example.image for example in asked],
            [example.prefix for example in asked],
            allow_special_tokens=True,
            max_new_tokens=128,
        )
    trainer.model.train()
    score = score_answers(asked, said) if asked else 0.0
    better = [score, -loss] > state["best"]  # of equal scores, the lower loss
    state["waited"] = 0 if better else state["waited"] + 1
    learned = gather(trainer.learning, trainer.accelerator) if better else {}
    if trainer.accelerator.is_main_process:
        _append(out / "log.jsonl", {"step": trainer.step, "held_out_loss": loss, "score": score})
        for example, answer in list(zip(asked, said, strict=True))[:4]:
            sample = {"image": str(example.image), "prefix": example.prefix}
            sample |= {"suffix": example.suffix, "said": str(answer)}
            _append(out / "samples.jsonl", {"step": trainer.step, **sample})
        if asked:
            said_of = zip(asked[:8], said, strict=False)
            (out / "samples").mkdir(exist_ok=True)
            contact_sheet(
                [replace(example, suffix=str(answer)) for example, answer in said_of]
            ).save(out / "samples" / f"{trainer.step:06}.png")
        if better:
            unfinished = out / ".best.safetensors.tmp"
            save_file(learned, unfinished)
            unfinished.replace(out / "best.safetensors")
    if better:
        state["best"] = [score, -loss]
    first = f"{asked[0].prefix} → {said[0]}" if asked else ""
    screen.say(f"step {trainer.step}: held-out loss {loss:.3f}, score {score:.3f}; {first}")


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        print(json.dumps(line, ensure_ascii=False), file=file)


def save_result(
    trainer: Finetuner, base: PaliGemma, folder: Path, name: str, dtype: torch.dtype
) -> None:
    """The adapters in peft's format, or the whole model as a folder, in `dtype`.

    A folder keeps the base's mask codec; its scores' calibration was another model's. name: of the
    base. To be called by every process: what is sharded is gathered. The first one writes.
    """
    if trainer.recipe.lora_rank:
        state = gather(dict(trainer.model.named_parameters()), trainer.accelerator)
        if trainer.accelerator.is_main_process:
            save_lora(trainer.model, state, folder, name)
        return
    model = gathered_model(trainer.model, trainer.accelerator, name, dtype)
    if model is not None:
        save_folder(model, folder, base.processor)
        if base.mask_codec is not None:
            base.mask_codec.save(folder / CODEC)
