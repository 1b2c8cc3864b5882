"""Fine-tuning: a model that exists learns a task from pictures, prefixes and suffixes.

- which rows a step sees follows from its number alone, and checkpoints hold all else: a resumed run
  has the very losses of an unbroken one
- on the way the model answers prompts that were held out: the best weights seen are kept, and the
  run may end when they get no better
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
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
from paliglass.tensors import save_file
from paliglass.training import loop
from paliglass.training.finetuner import Batch, Finetuner
from paliglass.training.loop import ProgressBar
from paliglass.training.lora import save_lora
from paliglass.training.order import batch_indices, share_of
from paliglass.training.runs import Run, append
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
    run: Run,
    *,
    validation: Validation | None = None,
    workers: int = 0,
    log_every: int = 10,
    checkpoint_seconds: float = 120.0,
) -> None:
    """Trains to the end, with lines of `log.jsonl` and `samples.jsonl`, and checkpoints.

    With a validation set the best weights seen are kept, and are what the model has at the end.
    Ctrl-C ends it after the step at hand, with a checkpoint.
    """

    def validate(bar: ProgressBar) -> bool:
        assert validation is not None
        _look(trainer, processor, validation, trainer.validation, run.out, bar)
        waited = trainer.validation["waited"]
        if not 0 < validation.patience <= waited:
            return False
        bar.say(f"step {trainer.step}: no better for {waited} looks, the end")
        return True

    loop.train(
        trainer,
        batches(examples, processor, step_rows(trainer, len(examples)), workers),
        run,
        log_every=log_every,
        checkpoint_seconds=checkpoint_seconds,
        validate=validate if validation else None,
        validate_every=validation.every if validation else 1,
    )
    if (run.out / "best.safetensors").exists():
        restore(trainer.learning, run.out / "best.safetensors")


def step_rows(trainer: Finetuner, count: int) -> Iterator[list[int]]:
    """Which of `count` examples each batch of this process holds, from the trainer's step on."""
    recipe, accelerator = trainer.recipe, trainer.accelerator
    order = batch_indices(count, recipe.batch_size, recipe.seed, trainer.step, recipe.steps)
    return share_of(
        order, accelerator.process_index, accelerator.num_processes, parts=recipe.accumulate
    )


def _look(
    trainer: Finetuner,
    processor: PaliGemmaProcessor,
    validation: Validation,
    state: dict[str, Any],
    out: Path,
    screen: ProgressBar,
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
        append(out / "log.jsonl", {"step": trainer.step, "held_out_loss": loss, "score": score})
        for example, answer in list(zip(asked, said, strict=True))[:4]:
            sample = {"image": str(example.image), "prefix": example.prefix}
            sample |= {"suffix": example.suffix, "said": str(answer)}
            append(out / "samples.jsonl", {"step": trainer.step, **sample})
        if asked:
            said_of = zip(asked[:8], said, strict=False)
            (out / "samples").mkdir(exist_ok=True)
            contact_sheet(
                [replace(example, suffix=str(answer)) for example, answer in said_of]
            ).save(out / "samples" / f"{trainer.step:06}.png")
        if better:
            save_file(learned, out / "best.safetensors")
    if better:
        state["best"] = [score, -loss]
    first = f"{asked[0].prefix} → {said[0]}" if asked else ""
    screen.say(f"step {trainer.step}: held-out loss {loss:.3f}, score {score:.3f}; {first}")


def save_result(
    trainer: Finetuner, base: PaliGemma, folder: Path, name: str, dtype: torch.dtype
) -> None:
    """The adapters in peft's format, or the whole model as a folder, in `dtype`.

    A folder keeps the base's mask codec; its scores' calibration was another model's. name: of the
    base. To be called by every process: what is sharded is gathered. The first one writes.
    """
    if trainer.recipe.lora:
        state = gather(dict(trainer.model.named_parameters()), trainer.accelerator)
        if trainer.accelerator.is_main_process:
            save_lora(trainer.model, state, folder, name)
        return
    model = gathered_model(trainer.model, trainer.accelerator, name, dtype)
    if model is not None:
        save_folder(model, folder, base.processor)
        if base.mask_codec is not None:
            base.mask_codec.save(folder / CODEC)
