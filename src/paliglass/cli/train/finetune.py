"""train finetune: a model that exists learns a task."""

from __future__ import annotations

import functools
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from paliglass.cli.app import command, complain
from paliglass.cli.train.group import (
    CheckpointSecondsOption,
    LogEveryOption,
    OutOption,
    PrecisionOption,
    ResumeOption,
    ShardOption,
    past_run,
    train,
    wants_shards,
)


class Part(StrEnum):
    """What learns; the rest is frozen."""

    ALL = "all"
    DECODER = "decoder"
    ATTENTION = "attention"
    PROJECTOR = "projector"


class CocoTask(StrEnum):
    """What COCO's boxes and masks are made into."""

    DETECT = "detect"
    SEGMENT = "segment"


def _defaults(context: typer.Context, path: Path | None) -> Path | None:
    """Takes a YAML file's settings as the options' defaults; flags win."""
    if path is None:
        return None
    import yaml

    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path}: is not YAML ({' '.join(str(error).split())})") from None
    parameters = [p for p in context.command.params if p.name not in ("config", "debug")]
    flags = {flag.lstrip("-").replace("-", "_"): p.name for p in parameters for flag in p.opts}
    if not isinstance(settings, dict):
        raise typer.BadParameter(f"{path}: is no list of settings, as `learning_rate: 1e-4`")
    found = {}
    for name, value in settings.items():
        known = str(name).replace("-", "_")
        if known not in flags:
            raise typer.BadParameter(
                f"{path}: {name} is no setting; there are {', '.join(sorted(flags))}"
            )
        found[flags[known]] = value
    context.default_map = {**(context.default_map or {}), **found}
    return path


def _recipe(context: typer.Context, name: str | None) -> str | None:
    """Takes a published recipe's settings as the options' defaults; --config and flags win."""
    if name is None:
        return None
    from paliglass.training.recipes import RECIPES

    if name not in RECIPES:
        raise typer.BadParameter(f"there is no {name}; choose {', '.join(RECIPES)}")
    context.default_map = {**RECIPES[name], **(context.default_map or {})}
    return name


@functools.partial(command, on=train)
def finetune(
    out: OutOption,
    data: Annotated[
        Path,
        typer.Option(
            exists=True,
            help='A .jsonl of {"image", "prefix", "suffix"}, COCO or VQAv2 JSON, or a folder.',
        ),
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", help="mini, a folder, or a hub id.")
    ] = "mini",
    config: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            is_eager=True,
            callback=_defaults,
            help="A YAML file of these settings; flags win.",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            is_eager=True,
            callback=_recipe,
            help="Settings that PaliGemma was transferred with, as vqav2-224; --config and flags "
            "win.",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Where COCO's or VQAv2's pictures are."),
    ] = None,
    task: Annotated[CocoTask, typer.Option(help="For COCO's boxes.")] = CocoTask.DETECT,
    validation: Annotated[
        Path | None, typer.Option(exists=True, help="Held-out examples, of the same kinds.")
    ] = None,
    train_part: Annotated[
        Part, typer.Option("--train", help="What learns; with --lora, what gets adapters.")
    ] = Part.ALL,
    lora: Annotated[int, typer.Option(min=0, help="Rank of LoRA adapters; 0: none.")] = 0,
    lora_alpha: Annotated[
        float | None, typer.Option(min=0, help="Their scale, times the rank. [2 × rank]")
    ] = None,
    lora_dropout: Annotated[float, typer.Option(min=0, max=1, help="In front of them.")] = 0.0,
    epochs: Annotated[
        float | None, typer.Option(min=0, help="End after so many passes over the data.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="End after these.")] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Rows in a step, over all processes and --accumulate.")
    ] = 8,
    accumulate: Annotated[
        int, typer.Option(min=1, help="Parts that a step's rows are worked off in, for memory.")
    ] = 1,
    learning_rate: Annotated[
        float | None, typer.Option(min=0, help="The highest. [2e-5; with --lora 2e-4]")
    ] = None,
    warm_up: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the steps until the highest rate.")
    ] = 0.05,
    weight_decay: Annotated[float, typer.Option(min=0, help="Of matrices.")] = 0.0,
    label_smoothing: Annotated[
        float, typer.Option(min=0, max=0.99, help="Share of each target spread over all words.")
    ] = 0.0,
    precision: PrecisionOption = None,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Less memory, a third more work.")
    ] = False,
    shard: ShardOption = False,
    every: Annotated[
        int | None, typer.Option(min=1, help="Steps between looks at --validation. [10 in all]")
    ] = None,
    patience: Annotated[
        int, typer.Option(min=0, help="Looks without a better score before the end; 0: no end.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of order, adapters and dropout.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare pictures.")] = 1,
    resume: ResumeOption = False,
    log_every: LogEveryOption = 10,
    checkpoint_seconds: CheckpointSecondsOption = 120.0,
) -> None:
    """Teach a model a task of yours: pictures, prefixes (prompts) and suffixes (answers).

    Leaves OUT/model, or OUT/adapter with --lora; both load here and in transformers. Several
    processes share each step: torchrun --nproc-per-node 2 -m paliglass train finetune …
    """
    if steps is None and epochs is None:
        raise typer.BadParameter("say when to end: --steps or --epochs")
    if lora and train_part is Part.PROJECTOR:
        raise typer.BadParameter("--lora goes with --train all, decoder or attention")
    if patience and validation is None:
        raise typer.BadParameter("--patience needs --validation, whose score it watches")
    shard = wants_shards(shard)
    settings = {
        name: value.value
        if isinstance(value, StrEnum)
        else str(value)
        if isinstance(value, Path)
        else value
        for name, value in locals().items()
        if name not in ("out", "config", "recipe", "resume") and value is not None
    }
    import yaml

    from paliglass.checkpoints.files import write_whole
    from paliglass.data.examples import open_examples
    from paliglass.model import load
    from paliglass.training import finetune as training
    from paliglass.training.finetuner import Finetuner, FinetuneRecipe
    from paliglass.training.recipes import picture_side
    from paliglass.training.runs import choose_precision, finish, make_accelerator

    result = out / ("adapter" if lora else "model")
    checkpoint = past_run(out, result, resume)
    computing = choose_precision(precision.value if precision else None, checkpoint)
    settings["precision"] = computing
    accelerator = make_accelerator(computing)
    # What is to be sharded need not fit onto one GPU: it comes from the CPU layer by layer.
    base = load(model, device="cpu" if shard else accelerator.device, fast=False)
    codec = base.mask_codec if task is CocoTask.SEGMENT else None
    examples = open_examples(data, images, task.value, codec)
    held_out = [] if validation is None else open_examples(validation, images, task.value, codec)
    side = picture_side(recipe) if recipe else None
    if side not in (None, base.model.config.vision_config.image_size):
        complain(
            f"--recipe {recipe} is for pictures of {side} × {side} pixels; {model} takes "
            f"{base.model.config.vision_config.image_size}"
        )
    total = steps or max(1, round((epochs or 0) * len(examples) / batch_size))
    settled = FinetuneRecipe(
        steps=total,
        batch_size=batch_size,
        accumulate=accumulate,
        learning_rate=(2e-4 if lora else 2e-5) if learning_rate is None else learning_rate,
        warm_up=warm_up,
        weight_decay=weight_decay,
        label_smoothing=label_smoothing,
        part=train_part.value,
        lora_rank=lora,
        lora_alpha=2.0 * lora if lora_alpha is None else lora_alpha,
        lora_dropout=lora_dropout,
        precision=computing,
        checkpointing=checkpointing,
        seed=seed,
    )
    kept_as = base.model.dtype
    trainer = Finetuner(base.model, settled, accelerator, shard)
    past = trainer.resume(checkpoint) if checkpoint is not None else None
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        settings |= {"learning_rate": settled.learning_rate, "steps": total}
        settings["train"] = settings.pop("train_part")  # the flag's name
        if lora:
            settings["lora_alpha"] = settled.lora_alpha
        write_whole(out / "config.yaml", yaml.safe_dump(settings, sort_keys=True))
    training.train(
        trainer,
        base.processor,
        examples,
        out,
        validation=training.Validation(held_out, every or max(1, total // 10), patience)
        if held_out
        else None,
        workers=workers,
        log_every=log_every,
        checkpoint_seconds=checkpoint_seconds,
        past=past,
    )
    training.save_result(trainer, base, result, model, kept_as)
    if accelerator.is_main_process:
        learned = sum(p.numel() for p in trainer.learning.values())
        print(f"{result}: {trainer.step} steps, {learned:,} numbers learned")
    finish(accelerator)
