"""The processes of a run, seen through accelerate: how they start, agree and end."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from paliglass.errors import PaliglassError, not_installed
from paliglass.training.recipes import Precision

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Logs", "fast_precision", "finish", "is_first_process", "largest", "make_accelerator"]

Logs = Literal["jsonl", "tensorboard"]


def fast_precision() -> Precision:
    """What this machine computes fast in.

    A processor without instructions for bfloat16 takes several times as long with it.
    """
    import torch

    from paliglass.fast import multiplies_bfloat16

    has_bf16 = torch.accelerator.is_available() or multiplies_bfloat16()
    return "bf16" if has_bf16 else "fp32"


def make_accelerator(
    precision: Precision | None = None, out: Path | None = None, logs: Logs = "jsonl"
) -> Accelerator:
    """Accelerate's view of this process: device, precision, and the others if there are any.

    precision: with "bf16" autocast is on. out, logs: where and whether "tensorboard" is to write.

    Raises PaliglassError where accelerate, or tensorboard if it is to log, is not installed.
    """
    import torch

    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise PaliglassError(not_installed("accelerate")) from error
    if logs == "tensorboard":
        try:
            import tensorboard  # noqa: F401
        except ImportError as error:
            raise PaliglassError(f"--logs: {not_installed('tensorboard')}") from error
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # else it overlooks torchrun's other processes
        mixed_precision="bf16" if precision == "bf16" else "no",
        log_with="tensorboard" if logs == "tensorboard" else None,
        project_dir=out,
    )
    if logs == "tensorboard":
        accelerator.init_trackers("tensorboard")
    return accelerator


def is_first_process() -> bool:
    """Whether this is the process that writes, told before there is an accelerator."""
    return os.environ.get("RANK", "0") == "0"


def largest(accelerator: Accelerator, *values: float) -> list[float]:
    """Of each value the largest of all processes: they must leave their loop at one step."""
    if accelerator.num_processes == 1:
        return list(values)
    import torch
    from torch import distributed as dist

    state = torch.tensor(values, dtype=torch.float64, device=accelerator.device)
    dist.all_reduce(state, dist.ReduceOp.MAX)
    found: list[float] = state.tolist()
    return found


def finish(accelerator: Accelerator) -> None:
    """Ends a run in all processes together; of several, each exits without Python's clean-up.

    One that left while the first still writes its result has been seen to keep the first from
    ending. And what FSDP2 keeps of a process group outlives its end: Gloo's threads would still
    drop tensors while the interpreter goes down, which aborts the process now and then.
    """
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if accelerator.num_processes > 1:
        for worker in multiprocessing.active_children():  # nothing else will end them
            worker.terminate()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
