"""Fine-tuning beside transformers' Trainer: rows per second and peak memory, in turn in one run.

    python -m workshop.finetune_speed --steps 30 --rounds 3

The same model, rows, batch size, optimizer (AdamW), precision and number of threads; every weight
learns. Each measurement is a process of its own, so that its peak memory is its own too.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import mkdtemp
from typing import Any

SIDES = ("ours", "transformers")


def ours(options: argparse.Namespace) -> float:
    """Seconds per step, the first two left out."""
    from itertools import islice

    from paliglass import load
    from paliglass.data.examples import open_examples
    from paliglass.training.finetune import batches, shares
    from paliglass.training.finetuner import Finetuner, FinetuneRecipe
    from paliglass.training.runs import make_accelerator

    base = load(options.model, dtype="float32", fast=False)
    recipe = FinetuneRecipe(
        steps=options.steps + 2, batch_size=options.batch_size, precision=options.precision
    )
    trainer = Finetuner(base.model, recipe, make_accelerator(options.precision))
    examples = open_examples(options.data)
    data = batches(examples, base.processor, shares(trainer, len(examples)))
    for batch, _ in islice(data, 2):
        trainer.train_step([batch])
    start = time.perf_counter()
    for batch, _ in data:
        trainer.train_step([batch])
    return (time.perf_counter() - start) / options.steps


def transformers(options: argparse.Namespace) -> float:
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
    from paliglass.data.examples import open_examples

    processor = load(options.model).processor  # as exact as theirs, and not slower
    model = PaliGemmaForConditionalGeneration.from_pretrained(
        locate(options.model), dtype=torch.float32, attn_implementation="eager"
    )
    examples = open_examples(options.data)

    def collate(rows: list[Any]) -> dict[str, torch.Tensor]:
        batch = processor(
            [row.prefix for row in rows],
            [row.image for row in rows],
            [row.suffix for row in rows],
        )
        return dict(batch)

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    settings = TrainingArguments(
        output_dir=mkdtemp(),
        max_steps=options.steps + 2,
        per_device_train_batch_size=options.batch_size,
        bf16=options.precision == "bf16",
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
    return (times[-1] - times[1]) / options.steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--data", type=Path, default=Path("runs/transfer/data/train.jsonl"))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        import torch

        torch.set_num_threads(options.threads)
        seconds = {"ours": ours, "transformers": transformers}[options.side](options)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "peak": peak}))
        return
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(options.rounds):
        for side in SIDES:
            command = [sys.executable, "-m", "workshop.finetune_speed", *sys.argv[1:]]
            run = subprocess.run(
                [*command, "--side", side], check=True, stdout=subprocess.PIPE, text=True
            )
            found[side].append(json.loads(run.stdout.splitlines()[-1]))
    print("| | rows/s | peak memory |\n|---|---:|---:|")
    rates, peaks = {}, {}
    for side, runs in found.items():
        rates[side] = options.batch_size / median(run["seconds"] for run in runs)
        peaks[side] = median(run["peak"] for run in runs)
        print(f"| {side} | {rates[side]:.1f} | {peaks[side] / 1e6:.0f} MB |")
    speed = rates["ours"] / rates["transformers"]
    print(f"| ratio | {speed:.2f} | {peaks['ours'] / peaks['transformers']:.2f} |")


if __name__ == "__main__":
    main()
