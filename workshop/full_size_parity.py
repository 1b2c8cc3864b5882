"""A full-size checkpoint in paliglass and in transformers, each in a process of its own.

    python workshop/random_checkpoint.py paligemma-3b-224 /path/to/folder
    python workshop/full_size_parity.py /path/to/folder

Prints seconds to load and to run, peak memory against the file's size, and how far the outputs
lie apart: ours from transformers' two attention kernels, beside those two from each other.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from paliglass.checkpoints.folder import read_config
from paliglass.inspect.verify import fixed_input
from workshop.greedy import greedy

NEW_TOKENS = 8
RUNNERS = ("paliglass", "transformers-eager", "transformers-sdpa")


def peak_memory() -> int:
    """Bytes this process ever held, mapped files included (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def run(runner: str, folder: Path, target: Path) -> None:
    """Loads, prefills and decodes in this process; writes logits and prints one JSON object."""
    batch = fixed_input(read_config(folder))
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


def main() -> None:
    parser = argparse.ArgumentParser(description="Parity and memory at full size.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--run", nargs=2, metavar=("RUNNER", "TARGET"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run(arguments.run[0], arguments.folder, Path(arguments.run[1]))
        return
    size = sum(file.stat().st_size for file in arguments.folder.glob("*.safetensors"))
    print(f"file: {size / 1e9:.2f} GB")
    logits = {}
    with tempfile.TemporaryDirectory() as scratch:
        for runner in RUNNERS:
            target = Path(scratch) / f"{runner}.safetensors"
            command = [
                sys.executable,
                __file__,
                str(arguments.folder),
                "--run",
                runner,
                str(target),
            ]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            report = json.loads(output.splitlines()[-1])
            logits[runner] = load_file(target)["logits"].float()
            print(
                f"{runner:20} load {report['load_s']:5.1f} s   "
                f"prefill {report['prefill_s']:5.1f} s   "
                f"peak {report['peak'] / 1e9:5.2f} GB = {report['peak'] / size:.2f} × file   "
                f"tokens {report['tokens']}"
            )
    print(f"largest logit {logits['transformers-eager'].abs().max():.3f}")
    for one, other in (RUNNERS[:2], (RUNNERS[0], RUNNERS[2]), RUNNERS[1:]):
        gap = (logits[one] - logits[other]).abs()
        print(f"{one} − {other}: max {gap.max():.4f}, mean {gap.mean():.5f}")


if __name__ == "__main__":
    main()
