"""Fine-tuning beside transformers' Trainer: rows per second and peak memory, in turn in one run.

    python -m workshop.finetune_speed --steps 30 --rounds 3

The same model, rows, batch size, optimizer (AdamW), precision and number of threads; every weight
learns. Each measurement is a process of its own, so that its peak memory is its own too.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import mkdtemp
from typing import Annotated, Any, Literal, get_args

import typer

from workshop.commands import Threads, run

Side = Literal["ours", "transformers"]


@dataclass(frozen=True)
class Work:
    """What both sides do."""

    model: Annotated[str, typer.Option(help="mini, a folder, or a hub id.")] = "mini"
    data: Annotated[Path, typer.Option(help="As for `paliglass train finetune`.")] = Path(
        "runs/transfer/data/train.jsonl"
    )
    steps: Annotated[int, typer.Option(min=1, help="That are measured.")] = 30
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in a step.")] = 16
    precision: Annotated[Literal["fp32", "bf16"], typer.Option()] = "bf16"


def ours(work: Work) -> float:
    """Seconds per step, the first two left out."""
    from itertools import islice

    from paliglass import load
    from paliglass.data.reading import open_examples
    from paliglass.data.rows import batches
    from paliglass.training.finetune import step_rows
    from paliglass.training.finetuner import Finetuner
    from paliglass.training.processes import make_accelerator
    from paliglass.training.recipes import FinetuneRecipe

    base = load(work.model, dtype="float32", fast=False)
    recipe = FinetuneRecipe(
        steps=work.steps + 2, batch_size=work.batch_size, precision=work.precision
    )
    trainer = Finetuner(base.model, recipe, make_accelerator(work.precision))
    examples = open_examples(work.data)
    data = batches(examples, base.processor, step_rows(trainer, len(examples)))
    for batch, _ in islice(data, 2):
        trainer.train_step([batch])
    start = time.perf_counter()
    for batch, _ in data:
        trainer.train_step([batch])
    return (time.perf_counter() - start) / work.steps


def transformers(work: Work) -> float:
    """The same of its Trainer, with a collator around its own processor."""
    import torch
    from transformers import (
        PaliGemmaForConditionalGeneration,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    from paliglass import load
    from paliglass.checkpoints.hub import locate
    from paliglass.data.reading import open_examples

    processor = load(work.model).processor  # as exact as theirs, and not slower
    model = PaliGemmaForConditionalGeneration.from_pretrained(
        locate(work.model), dtype=torch.float32, attn_implementation="eager"
    )
    examples = open_examples(work.data)

    def collate(rows: list[Any]) -> dict[str, torch.Tensor]:
        batch = processor(
            [row.prefix for row in rows],
            [list(row.images) for row in rows],
            [row.suffix for row in rows],
        )
        return dict(batch)

    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]  # transformers has no types here
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    settings = TrainingArguments(
        output_dir=mkdtemp(),
        max_steps=work.steps + 2,
        per_device_train_batch_size=work.batch_size,
        bf16=work.precision == "bf16",
        use_cpu=True,
        learning_rate=2e-5,
        lr_scheduler_type="cosine",
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        dataloader_num_workers=0,
        disable_tqdm=True,
    )
    Trainer(
        model=model,
        args=settings,
        train_dataset=examples,
        data_collator=collate,
        callbacks=[Clock()],
    ).train()
    return (times[-1] - times[1]) / work.steps


def finetune_speed(
    work: Work,
    rounds: Annotated[int, typer.Option(min=1, help="Of both in turn.")] = 3,
    threads: Threads = 1,
    side: Annotated[Side | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure fine-tuning beside transformers' Trainer: rows a second and peak memory, in turn."""
    if side is not None:
        import torch

        torch.set_num_threads(threads)
        seconds = {"ours": ours, "transformers": transformers}[side](work)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "peak": peak}))
        return
    found: dict[str, list[dict[str, float]]] = {side: [] for side in get_args(Side)}
    for _ in range(rounds):
        for name, runs in found.items():
            command = [sys.executable, "-m", "workshop.finetune_speed", *sys.argv[1:]]
            done = subprocess.run(
                [*command, "--side", name], check=True, stdout=subprocess.PIPE, text=True
            )
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    print("| | rows/s | peak memory |\n|---|---:|---:|")
    rates, peaks = {}, {}
    for name, runs in found.items():
        rates[name] = work.batch_size / median(run["seconds"] for run in runs)
        peaks[name] = median(run["peak"] for run in runs)
        print(f"| {name} | {rates[name]:.1f} | {peaks[name] / 1e6:.0f} MB |")
    speed = rates["ours"] / rates["transformers"]
    print(f"| ratio | {speed:.2f} | {peaks['ours'] / peaks['transformers']:.2f} |")


if __name__ == "__main__":
    run(finetune_speed)
