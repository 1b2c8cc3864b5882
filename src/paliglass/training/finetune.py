"""Fine-tuning: a model that exists learns a task from pictures, prefixes and suffixes.

- which rows a step sees follows from its number alone, and checkpoints hold all else: a resumed run
  has the very losses of an unbroken one
- on the way the model answers prompts that were held out: the best weights seen are kept, and the
  run may end when they get no better
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from paliglass.checkpoints import save_folder
from paliglass.checkpoints.mask_codec import CODEC, save_mask_codec
from paliglass.data.checks import contact_sheet
from paliglass.data.example import Example
from paliglass.data.reading import trainable
from paliglass.data.rows import batches
from paliglass.evaluation.cases import Case
from paliglass.evaluation.judge import answer, remarks, to_questions
from paliglass.evaluation.metrics import overall
from paliglass.files import replacing
from paliglass.model import PaliGemma
from paliglass.modeling_mask_codec import MaskCodec
from paliglass.processing_paligemma import PaliGemmaProcessor
from paliglass.tensors import save_file
from paliglass.training import loop
from paliglass.training.finetuner import Finetuner
from paliglass.training.loop import ProgressBar
from paliglass.training.lora import save_lora
from paliglass.training.order import batch_indices, share_of
from paliglass.training.runs import Run, append
from paliglass.training.sharding import gather, gathered, gathered_model, restore

__all__ = ["Validation", "fingerprint", "save_result", "step_rows", "train"]


@dataclass
class Validation:
    """How a run is judged on the way.

    examples: held out. every: steps between looks. patience: looks without a better score before
    the run ends; 0: none. answers: how many are answered in full, for score and samples. codec: for
    the masks of `segment`, whose score is that of their boxes without it.
    """

    examples: Sequence[Example]
    every: int
    patience: int = 0
    answers: int = 64
    codec: MaskCodec | None = None


def fingerprint(examples: Sequence[Example]) -> str:
    """Tells data sets apart by their prompts, answers and pictures' names, wherever they lie."""
    lines = (f"{' '.join(i.name for i in e.images)}\t{e.prefix}\t{e.suffix}\n" for e in examples)
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
    examples = trainable(validation.examples)
    count = len(examples)
    order = (list(range(i, min(i + rows, count))) for i in range(0, count, rows))
    loss = trainer.mean_loss(b for b, _ in batches(examples, processor, order))
    questions = to_questions(validation.examples)
    trainer.model.eval()
    with trainer.accelerator.autocast(), gathered(trainer.loss):
        cases = answer(
            PaliGemma(trainer.model, processor, validation.codec),
            questions[: validation.answers],
            among=questions,
            batch_size=8,
            complain=lambda message: None,  # told by `remarks`; broken pictures by the run's check
        )
    trainer.model.train()
    score = overall(cases, validation.codec)
    cut, failed = sum(case.is_cut for case in cases), sum(bool(case.failure) for case in cases)
    better = [score, -loss] > state["best"]  # of equal scores, the lower loss
    state["waited"] = 0 if better else state["waited"] + 1
    learned = gather(trainer.learning, trainer.accelerator) if better else {}
    if trainer.accelerator.is_main_process:
        line = {"step": trainer.step, "held_out_loss": loss, "score": score}
        append(out / "log.jsonl", {**line, "answers": len(cases), "cut": cut, "failed": failed})
        for case in cases[:4]:
            sample = {"image": str(case.question.pictures[0]), "prefix": case.question.prefix}
            sample |= {"suffix": case.question.references[0], "prediction": case.prediction}
            append(out / "samples.jsonl", {"step": trainer.step, **sample})
        if cases:
            (out / "samples").mkdir(exist_ok=True)
            with replacing(out / "samples" / f"{trainer.step:06}.png") as unfinished:
                contact_sheet([_shown(case) for case in cases[:8]]).save(unfinished, format="PNG")
        if better:
            save_file(learned, out / "best.safetensors")
    if better:
        state["best"] = [score, -loss]
    first = f"{cases[0].question.prefix} → {cases[0].prediction}" if cases else ""
    notes = "".join(f" ({remark})" for remark in remarks(cases))
    screen.say(f"step {trainer.step}: held-out loss {loss:.3f}, score {score:.3f}{notes}; {first}")


def _shown(case: Case) -> Example:
    """A case as an example whose suffix is the prediction."""
    images = tuple(Path(str(picture)) for picture in case.question.pictures)
    return Example(images, case.question.prefix, case.prediction, case.question.where)


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
            save_mask_codec(base.mask_codec, folder / CODEC)
