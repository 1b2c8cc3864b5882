"""The group of commands, and what they share."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from paliglass.cli.app import app

train = typer.Typer(no_args_is_help=True)
app.add_typer(train, name="train", help="Train a model; see `paliglass train COMMAND --help`.")


class Precision(StrEnum):
    """What forward and backward compute in; the weights are float32."""

    FP32 = "fp32"
    BF16 = "bf16"


OutOption = Annotated[Path, typer.Option(file_okay=False, help="The run's folder.")]
PrecisionOption = Annotated[
    Precision | None,
    typer.Option(
        help="What is computed in; bf16 is faster where the processor has it, and slower where it "
        "has not. [what the processor has; with --resume the run's own]"
    ),
]
ShardOption = Annotated[
    bool,
    typer.Option(
        "--shard", help="Spread weights, gradients and optimizer over the processes (FSDP2)."
    ),
]
WorldCacheOption = Annotated[
    Path | None, typer.Option(file_okay=False, help="The world's artwork. [.cache/world]")
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in --out, if there is one.")
]
LogEveryOption = Annotated[int, typer.Option(min=1, help="Steps between log lines.")]
CheckpointSecondsOption = Annotated[float, typer.Option(min=0, help="Time between checkpoints.")]


def past_run(out: Path, result: Path, resume: bool) -> Path | None:
    """The checkpoint to go on from, if there is one.

    Raises CheckpointError where the result is there already, and BadParameter where a run is that
    nobody wants to resume.
    """
    from paliglass.checkpoints.saving import refuse_existing
    from paliglass.training.runs import find_checkpoint

    refuse_existing(result)
    checkpoint = find_checkpoint(out / "checkpoint")
    if checkpoint is not None and not resume:
        raise typer.BadParameter(f"{out} holds a run; go on with --resume, or choose a new folder")
    return checkpoint


def wants_shards(flag: bool) -> bool:
    """--shard, or `accelerate launch --use_fsdp`; sharding is then ours, not accelerate's."""
    return os.environ.pop("ACCELERATE_USE_FSDP", "") == "true" or flag
