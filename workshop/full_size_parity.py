"""A full-size checkpoint in paliglass and in transformers, each in a process of its own.

    python -m workshop.random_checkpoint paligemma-3b-224 /path/to/folder
    python -m workshop.full_size_parity /path/to/folder

Prints seconds to load and to run, peak memory against the file's size, and how far the outputs
lie apart: ours from transformers' two attention kernels, beside those two from each other.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
import typer
from safetensors.torch import load_file, save_file

from paliglass.checkpoints.folder import read_config
from paliglass.inspect.bench import greedy, peak_memory
from paliglass.inspect.verify import fixed_input
from workshop.commands import run

NEW_TOKENS = 8
Runner = Literal["paliglass", "transformers-eager", "transformers-sdpa"]
RUNNERS: tuple[Runner, ...] = get_args(Runner)


def run_one(runner: Runner, folder: Path, target: Path) -> None:
    """Loads, prefills and decodes in this process; writes logits and prints one JSON object."""
    batch: Any = fixed_input(read_config(folder))
    model: Any
    started = time.perf_counter()
    if runner == "paliglass":
        from paliglass.checkpoints.folder import load_model

        model = load_model(folder, "cpu")
    else:
        from transformers import PaliGemmaForConditionalGeneration

        model = PaliGemmaForConditionalGeneration.from_pretrained(
            folder, dtype="auto", attn_implementation=runner.partition("-")[2]
        ).eval()
        batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
    loaded = time.perf_counter()
    with torch.inference_mode():
        logits = model(**batch).logits
    finished = time.perf_counter()
    if runner == "paliglass":
        tokens = [int(ids) for ids in greedy(model, batch, NEW_TOKENS)]
    else:
        tokens = model.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False)
        tokens = tokens[0, batch["input_ids"].shape[1] :].tolist()
    save_file({"logits": logits.contiguous()}, target)
    report = {
        "load_s": loaded - started,
        "prefill_s": finished - loaded,
        "peak": peak_memory(),
        "tokens": tokens,
    }
    print(json.dumps(report))


def full_size_parity(
    folder: Annotated[Path, typer.Argument(exists=True, help="In transformers' layout.")],
    runner: Annotated[Runner | None, typer.Option(hidden=True)] = None,
    target: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Compare a full-size checkpoint in paliglass and transformers: logits, seconds, memory."""
    if runner is not None and target is not None:
        run_one(runner, folder, target)
        return
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    print(f"file: {size / 1e9:.2f} GB")
    logits = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in RUNNERS:
            place = Path(scratch) / f"{name}.safetensors"
            command = [sys.executable, "-m", "workshop.full_size_parity", str(folder)]
            command += ["--runner", name, "--target", str(place)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            report = json.loads(output.splitlines()[-1])
            logits[name] = load_file(place)["logits"].float()
            print(
                f"{name:20} load {report['load_s']:5.1f} s   "
                f"prefill {report['prefill_s']:5.1f} s   "
                f"peak {report['peak'] / 1e9:5.2f} GB = {report['peak'] / size:.2f} × file   "
                f"tokens {report['tokens']}"
            )
    print(f"largest logit {logits['transformers-eager'].abs().max():.3f}")
    for one, other in (RUNNERS[:2], (RUNNERS[0], RUNNERS[2]), RUNNERS[1:]):
        gap = (logits[one] - logits[other]).abs()
        print(f"{one} − {other}: max {gap.max():.4f}, mean {gap.mean():.5f}")


if __name__ == "__main__":
    run(full_size_parity)
