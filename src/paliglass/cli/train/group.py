"""The group of commands, and the options that every training run has."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paliglass.cli.app import app
from paliglass.errors import not_installed
from paliglass.training.processes import Logs

if TYPE_CHECKING:
    from paliglass.training.runs import Run

__all__ = ["RunOptions", "ShardOption", "train", "wants_shards"]

train = typer.Typer(no_args_is_help=True)
app.add_typer(train, name="train", help="Train a model; see `paliglass train COMMAND --help`.")

ShardOption = Annotated[
    bool,
    typer.Option(
        "--shard", help="Spread weights, gradients and optimizer over the processes (FSDP2)."
    ),
]


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Takes a YAML file's settings as the options' defaults; flags win."""
    if path is None:
        return None
    try:
        import yaml
    except ImportError:
        raise typer.BadParameter(not_installed("yaml")) from None
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path}: is not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(settings, dict):
        raise typer.BadParameter(f"{path}: is no list of settings, as `learning_rate: 1e-4`")
    names = {p.name for p in context.command.params if p.name not in ("config", "debug")}
    found = {str(name).replace("-", "_"): value for name, value in settings.items()}
    for name in found.keys() - names:
        raise typer.BadParameter(
            f"{path}: {name} is no setting; there are {', '.join(sorted(filter(None, names)))}"
        )
    context.default_map = {**(context.default_map or {}), **found}
    return path


@dataclass(frozen=True)
class RunOptions:
    """Where a run goes and what it tells on the way; nothing here changes its losses."""

    panel = "Run"

    out: Annotated[Path, typer.Option("--out", "-o", file_okay=False, help="The run's folder.")]
    config: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            is_eager=True,
            callback=read_config,
            help="A YAML file of these settings, such as a run's config.yaml; flags win.",
        ),
    ] = None
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run in --out, if there is one; at its end it may get more --steps "
            "or --epochs.",
        ),
    ] = False
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that prepare pictures, for each that trains.")
    ] = 1
    logs: Annotated[
        Logs, typer.Option(help="log.jsonl is always written; tensorboard's files beside it.")
    ] = "jsonl"
    log_every: Annotated[int, typer.Option(min=1, help="Steps between log lines.")] = 10
    checkpoint_seconds: Annotated[float, typer.Option(min=0, help="Time between checkpoints.")] = (
        120.0
    )

    def open(self, result: str = "model") -> Run:
        """The run's folder, which is this process's alone until it is closed; see `Run`."""
        from paliglass.training.runs import Run

        return Run(self.out, result, resume=self.resume)

    def loop(self) -> dict[str, Any]:
        """The options of the training loop."""
        return {
            "workers": self.workers,
            "log_every": self.log_every,
            "checkpoint_seconds": self.checkpoint_seconds,
        }


def wants_shards(flag: bool) -> bool:
    """--shard, or `accelerate launch --use_fsdp`; sharding is then ours, not accelerate's."""
    return os.environ.pop("ACCELERATE_USE_FSDP", "") == "true" or flag
