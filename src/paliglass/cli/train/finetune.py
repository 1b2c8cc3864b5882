"""train finetune: a model that exists learns a task."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from paliglass.cli.app import command, complain
from paliglass.cli.messages import counted
from paliglass.cli.options import CocoTask
from paliglass.cli.scores import warn
from paliglass.cli.train.group import RunOptions, ShardOption, train, wants_shards
from paliglass.training.recipes import FinetuneRecipe

__all__ = ["TaskOptions", "finetune"]


def published_recipe(context: typer.Context, name: str | None) -> str | None:
    """Takes a published recipe's settings as the options' defaults; --config and flags win."""
    if name is None:
        return None
    from paliglass.training.recipes import RECIPES

    if name not in RECIPES:
        raise typer.BadParameter(f"there is no {name}; choose {', '.join(RECIPES)}")
    context.default_map = {**RECIPES[name], **(context.default_map or {})}
    return name


@dataclass(frozen=True)
class TaskOptions:
    """What is learned by which model, and what it is judged by on the way."""

    panel = "Task"

    data: Annotated[
        Path,
        typer.Option(
            exists=True,
            help='A .jsonl of {"image", "prefix", "suffix"}, COCO or VQAv2 JSON, or a folder.',
        ),
    ]
    model: Annotated[str, typer.Option("--model", "-m", help="mini, a folder, or a hub id.")] = (
        "mini"
    )
    adapter: Annotated[
        str | None,
        typer.Option(help="LoRA adapters of the model to go on with: a folder or a hub id."),
    ] = None
    quantize: Annotated[
        Literal["int8"] | None,
        typer.Option(help="With --lora: hold what is frozen in int8, in less memory (QLoRA)."),
    ] = None
    images: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Where COCO's or VQAv2's pictures are."),
    ] = None
    task: Annotated[CocoTask, typer.Option(help="For COCO's boxes.")] = "detect"
    validation: Annotated[
        Path | None, typer.Option(exists=True, help="Held-out examples, of the same kinds.")
    ] = None
    every: Annotated[
        int | None,
        typer.Option(min=1, show_default="10 in all", help="Steps between looks at --validation."),
    ] = None
    patience: Annotated[
        int, typer.Option(min=0, help="Looks without a better score before the end; 0: no end.")
    ] = 0

    def __post_init__(self) -> None:
        if self.patience and self.validation is None:
            raise typer.BadParameter("--patience needs --validation, whose score it watches")


@functools.partial(command, on=train)
def finetune(
    options: RunOptions,
    learned: TaskOptions,
    settings: FinetuneRecipe,
    recipe: Annotated[
        str | None,
        typer.Option(
            is_eager=True,
            callback=published_recipe,
            help="Settings that PaliGemma was transferred with, as vqav2-224; --config and flags "
            "win.",
        ),
    ] = None,
    shard: ShardOption = False,
) -> None:
    """Teach a model a task of yours: pictures, prefixes (prompts) and suffixes (answers).

    Leaves OUT/model, or OUT/adapter with --lora; both load here and in transformers. Several
    processes share each step: torchrun --nproc-per-node 2 -m paliglass train finetune …
    """
    if settings.steps is None and settings.epochs is None:
        raise typer.BadParameter("say when to end: --steps or --epochs")
    from paliglass.checkpoints.adapters import with_base
    from paliglass.checkpoints.hub import locate

    place, start = with_base(locate(learned.model), learned.adapter)
    if start != learned.adapter:  # the model that was named is an adapter, to go on from
        learned = replace(learned, model=str(place), adapter=str(start))
    if learned.quantize and not (settings.lora or learned.adapter):
        raise typer.BadParameter("--quantize needs --lora: what is in int8 cannot learn")
    if learned.quantize and wants_shards(shard):
        raise typer.BadParameter("--quantize and --shard: choose one")
    from paliglass.checkpoints.folder import quantization
    from paliglass.data.reading import open_examples, trainable
    from paliglass.errors import PaliglassError
    from paliglass.model import load
    from paliglass.training import finetune as training
    from paliglass.training.finetuner import QUANTIZED, Finetuner
    from paliglass.training.lora import settings_of
    from paliglass.training.processes import finish, make_accelerator
    from paliglass.training.recipes import picture_side

    adapter = None if learned.adapter is None else locate(learned.adapter, kind="adapter")
    if adapter is not None:
        settings = settings_of(adapter, settings)
    if place.is_dir() and quantization(place):
        raise PaliglassError(f"{place}: {QUANTIZED}")
    shard = wants_shards(shard)
    with options.open("adapter" if settings.lora else "model") as run:
        settings = replace(settings, precision=run.precision(settings.precision))
        accelerator = make_accelerator(settings.precision, options.out, options.logs)
        # What is to be sharded need not fit onto one GPU: it comes from the CPU layer by layer.
        device = "cpu" if shard else accelerator.device
        base = load(learned.model, device=device, fast=False, quantize=learned.quantize)
        codec = base.mask_codec if learned.task == "segment" else None
        how = learned.images, learned.task, codec
        examples = trainable(open_examples(learned.data, *how, tell=warn))
        held_out = (
            open_examples(learned.validation, *how, split="held out", tell=warn)
            if learned.validation
            else []
        )
        side = base.model.config.vision_config.image_size
        if recipe and picture_side(recipe) not in (None, side):
            complain(
                f"--recipe {recipe} is for pictures of {picture_side(recipe)} × "
                f"{picture_side(recipe)} pixels; {learned.model} takes {side}"
            )
        settings = settings.complete(len(examples))
        kept_as, data = base.model.dtype, training.fingerprint(examples)
        trainer = Finetuner(base.model, settings, accelerator, shard, adapter, data)
        run.start(trainer)
        run.record({**asdict(settings), **asdict(learned), "shard": shard})
        assert settings.steps is not None
        every = learned.every or max(1, settings.steps // 10)
        validation = training.Validation(held_out, every, learned.patience, codec=base.mask_codec)
        training.train(
            trainer,
            base.processor,
            examples,
            run,
            validation=validation if held_out else None,
            **options.loop(),
        )
        training.save_result(trainer, base, run.result, learned.model, kept_as)
        if accelerator.is_main_process:
            count = sum(p.numel() for p in trainer.learning.values())
            print(f"{run.result}: {counted(trainer.step, 'step')}, {count:,} numbers learned")
        finish(accelerator)
