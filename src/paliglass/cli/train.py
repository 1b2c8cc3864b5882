"""train …: models from data."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paliglass.cli.app import app, command, complain

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from paliglass.contrastive.config import ContrastiveConfig
    from paliglass.training.pairs import PairSource

train = typer.Typer(no_args_is_help=True)
app.add_typer(train, name="train", help="Train a model; see `paliglass train COMMAND --help`.")

WORLD = "world"


class ImageEncoder(StrEnum):
    """What pictures are encoded with."""

    VIT = "vit"
    RESNET = "resnet"


class TextEncoder(StrEnum):
    """What texts are encoded with."""

    TRANSFORMER = "transformer"
    CBOW = "cbow"


class Loss(StrEnum):
    """A softmax over the batch, or a sigmoid for each cell of its matrix."""

    CLIP = "clip"
    SIGLIP = "siglip"


class Optimizer(StrEnum):
    """Muon is for the layers' matrices; AdamW then does the rest."""

    ADAMW = "adamw"
    MUON = "muon"


class Precision(StrEnum):
    """What forward and backward compute in; the weights are float32."""

    FP32 = "fp32"
    BF16 = "bf16"


class Logs(StrEnum):
    """log.jsonl is always written; tensorboard is written beside it."""

    JSONL = "jsonl"
    TENSORBOARD = "tensorboard"


@functools.partial(command, on=train)
def contrastive(
    out: Annotated[Path, typer.Option(file_okay=False, help="The run's folder.")],
    data: Annotated[
        str,
        typer.Option(
            help='world, a file of {"image": …, "text": …} lines, or a folder: NAME.txt beside '
            "each picture, or class folders."
        ),
    ] = WORLD,
    vision: Annotated[
        str | None,
        typer.Option(help="A PaliGemma whose vision tower the ViT starts from, as mini."),
    ] = None,
    image: Annotated[ImageEncoder, typer.Option(help="The image encoder.")] = ImageEncoder.VIT,
    text: Annotated[TextEncoder, typer.Option(help="The text encoder.")] = TextEncoder.TRANSFORMER,
    loss: Annotated[Loss, typer.Option(help="Which loss.")] = Loss.SIGLIP,
    config: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="A config.json with other sizes, for those three."
        ),
    ] = None,
    image_size: Annotated[int, typer.Option(min=16, help="Side of the pictures, pixels.")] = 128,
    steps: Annotated[int | None, typer.Option(min=1, help="End after these.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0, help="End after this time.")] = None,
    epochs: Annotated[
        float | None, typer.Option(min=0, help="End after so many passes over the data.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=2, help="Pairs that are compared, over all processes.")
    ] = 256,
    accumulate: Annotated[
        int,
        typer.Option(
            min=1, help="Batches in a step. They are not compared with each other, only averaged."
        ),
    ] = 1,
    learning_rate: Annotated[float, typer.Option(min=0, help="The highest.")] = 2e-3,
    optimizer: Annotated[Optimizer, typer.Option(help="Which one.")] = Optimizer.MUON,
    warm_up: Annotated[int, typer.Option(min=0, help="Steps until the highest rate.")] = 100,
    precision: Annotated[
        Precision, typer.Option(help="bf16 is faster where the processor has it.")
    ] = Precision.BF16,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and order.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare pictures.")] = 1,
    tokenizer: Annotated[
        Path | None,
        typer.Option(exists=True, help="A tokenizer.json; else one is trained on the texts."),
    ] = None,
    world_cache: Annotated[
        Path | None, typer.Option(file_okay=False, help="The world's artwork. [.cache/world]")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, if there is one.")
    ] = False,
    logs: Annotated[Logs, typer.Option(help="Where losses are written to.")] = Logs.JSONL,
    log_every: Annotated[int, typer.Option(min=1, help="Steps between log lines.")] = 20,
    checkpoint_seconds: Annotated[
        float, typer.Option(min=0, help="Time between checkpoints.")
    ] = 120.0,
) -> None:
    """Train a dual encoder: pictures and texts that belong together get near each other.

    Several processes share each batch: torchrun --nproc-per-node 2 -m paliglass train contrastive …
    """
    if steps is None and minutes is None and epochs is None:
        raise typer.BadParameter("say when to end: --steps, --minutes or --epochs")
    from paliglass.checkpoints.saving import refuse_existing
    from paliglass.contrastive.folders import save_contrastive, start_from_paligemma
    from paliglass.contrastive.processing import ContrastiveProcessor
    from paliglass.training import contrastive as training
    from paliglass.training.runs import find_checkpoint, make_accelerator

    refuse_existing(out / "model")
    checkpoint = find_checkpoint(out / "checkpoint")
    if checkpoint is not None and not resume:
        raise typer.BadParameter(f"{out} holds a run; go on with --resume, or choose a new folder")
    shape = None if config is None else _read_config(config)
    side = image_size if shape is None else shape.image.image_size
    settings: dict[str, Any] = {
        "minutes": math.inf if minutes is None else minutes,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "optimizer": optimizer.value,
        "learning_rate": learning_rate,
        "warm_up": warm_up,
        "precision": precision.value,
        "seed": seed,
    }
    accelerator = make_accelerator(precision.value, accumulate, out, logs.value)
    # One process fetches artwork and trains the tokenizer; the others then find them.
    with accelerator.main_process_first():
        out.mkdir(parents=True, exist_ok=True)
        source = _open(data, side, seed, world_cache)
        words = _tokenizer(tokenizer, data, source, out)
    settings["steps"] = _steps(steps, epochs, source, batch_size * accumulate)
    if shape is None:
        length = training.text_length(words, source)
        size = words.get_vocab_size()
        shape = training.dual_config(image.value, text.value, loss.value, size, side, length)
    trainer = training.ContrastiveTrainer(
        shape, training.ContrastiveRecipe(**settings), accelerator
    )
    if checkpoint is not None:
        trainer.resume(checkpoint)
    elif vision is not None:
        start_from_paligemma(trainer.model, vision)
    processor = ContrastiveProcessor(
        words, side, shape.text.max_position_embeddings, padding=shape.text.padding
    )
    if logs is Logs.TENSORBOARD:
        accelerator.init_trackers("tensorboard")
    training.train(
        trainer,
        source,
        processor,
        out,
        workers=workers,
        log_every=log_every,
        checkpoint_seconds=checkpoint_seconds,
    )
    if accelerator.is_main_process:
        dtype = "bfloat16" if precision is Precision.BF16 else "float32"
        save_contrastive(trainer.model, out / "model", processor, dtype)
        print(f"{out / 'model'}: {trainer.step} steps, {trainer.elapsed / 60:.1f} minutes")
    accelerator.end_training()


@functools.partial(command, on=train)
def pretrain(
    out: Annotated[Path, typer.Option(file_okay=False, help="The run's folder.")],
    weights: Annotated[
        Path | None, typer.Option(exists=True, help="A model of mini's shape to go on from.")
    ] = None,
    vision: Annotated[
        str | None,
        typer.Option(help="A dual encoder with a ViT, whose vision tower to start from."),
    ] = None,
    codec: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="What turns masks into codes. [mini's]"),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="End after these.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0, help="End after this time.")] = None,
    scenes: Annotated[int, typer.Option(min=1, help="In a step, over all processes.")] = 32,
    prompts: Annotated[int, typer.Option(min=2, help="About each scene.")] = 8,
    more: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK=WEIGHT", help="Ask a task so much more often: segment=1.5."),
    ] = None,
    looking: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of the run, at its start, for the vision tower alone."
        ),
    ] = 0.15,
    separate: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of the run, at its end, with each prompt in a row of its own."
        ),
    ] = 0.2,
    rate: Annotated[float, typer.Option(min=0, help="Times the recipe's learning rates.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and scenes.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Of each process.")] = 1,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that compose scenes, for each that trains.")
    ] = 1,
    world_cache: Annotated[
        Path | None, typer.Option(file_okay=False, help="The world's artwork. [.cache/world]")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, if there is one.")
    ] = False,
    log_every: Annotated[int, typer.Option(min=1, help="Steps between log lines.")] = 50,
    checkpoint_seconds: Annotated[
        float, typer.Option(min=0, help="Time between checkpoints.")
    ] = 240.0,
) -> None:
    """Train a model of mini's shape on the picture world: all tasks at once, every weight.

    Processes share each step: torchrun --nproc-per-node 2 -m paliglass train pretrain … On a CPU,
    two of one thread get more done than one of two.
    """
    if steps is None and minutes is None:
        raise typer.BadParameter("say when to end: --steps or --minutes")
    if weights is not None and vision is not None:
        raise typer.BadParameter("--weights has a vision tower already; leave out --vision")
    import torch

    from paliglass.checkpoints import save_folder
    from paliglass.checkpoints.folder import load_model
    from paliglass.checkpoints.hub import locate
    from paliglass.checkpoints.saving import refuse_existing
    from paliglass.processing_paligemma import PaliGemmaProcessor
    from paliglass.segmentation import MaskCodec
    from paliglass.training import pretrain as training
    from paliglass.training.runs import find_checkpoint
    from paliglass.training.trainer import Pretrainer, Recipe, rank
    from paliglass.world import World

    config, recipe = training.MINI, Recipe()
    recipe = dataclasses.replace(
        recipe,
        minutes=math.inf if minutes is None else minutes,
        steps=recipe.steps if steps is None else steps,
        scenes=scenes,
        prompts=prompts,
        mixture=dict(_weight(text) for text in more or ()),
        looking=looking,
        separate=separate,
        muon_rate=rate * recipe.muon_rate,
        adam_rate=rate * recipe.adam_rate,
        seed=seed,
    )
    refuse_existing(out / "model")
    checkpoint = find_checkpoint(out / "checkpoint")
    if checkpoint is not None and not resume:
        raise typer.BadParameter(f"{out} holds a run; go on with --resume, or choose a new folder")
    torch.set_num_threads(threads)
    with training.together(scenes):
        if codec is None:
            codec = locate("mini") / "mask_codec.safetensors"
        size = config.vision_config.image_size
        masks = MaskCodec.load(codec)
        world = World(world_cache, "train", seed, size, codec=masks, mixture=recipe.mixture)
        out.mkdir(parents=True, exist_ok=True)
        words = training.common_tokenizer(out / "tokenizer.json", world_cache, world, weights)
        processor = PaliGemmaProcessor(words, config.num_image_tokens, size)
        trainer = Pretrainer(config, len(world.patch_classes), recipe)
        if checkpoint is not None:
            trainer.resume(checkpoint)
        elif weights is not None:
            trainer.start(load_model(weights, "cpu", "float32"))
        elif vision is not None:
            trainer.start_vision_tower(vision)
        grid = config.vision_config.patches_per_side
        data = training.batches(world, processor, recipe, grid, trainer.step, workers)
        training.train(trainer, data, out, log_every, checkpoint_seconds)
        if rank() == 0:
            save_folder(trainer.model.to(recipe.dtype), out / "model", processor)
            print(f"{out / 'model'}: {trainer.step} steps, {trainer.elapsed / 60:.1f} minutes")


def _weight(text: str) -> tuple[str, float]:
    """A task and its weight, of "segment=1.5"."""
    from paliglass.training.batches import TASKS

    task, _, number = text.partition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = 0.0
    if task not in TASKS or not 0 < weight < math.inf:
        raise typer.BadParameter(
            f"--more {text}: write TASK=WEIGHT, a task of {', '.join(TASKS)} and a weight above 0"
        )
    return task, weight


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
    out: Annotated[Path, typer.Option(file_okay=False, help="The run's folder.")],
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
    precision: Annotated[
        Precision, typer.Option(help="bf16 is faster where the processor has it.")
    ] = Precision.BF16,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Less memory, a third more work.")
    ] = False,
    shard: Annotated[
        bool,
        typer.Option(
            "--shard",
            help="Spread weights, gradients and optimizer over the processes (FSDP2).",
        ),
    ] = False,
    every: Annotated[
        int | None, typer.Option(min=1, help="Steps between looks at --validation. [10 in all]")
    ] = None,
    patience: Annotated[
        int, typer.Option(min=0, help="Looks without a better score before the end; 0: no end.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of order, adapters and dropout.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare pictures.")] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, if there is one.")
    ] = False,
    log_every: Annotated[int, typer.Option(min=1, help="Steps between log lines.")] = 10,
    checkpoint_seconds: Annotated[
        float, typer.Option(min=0, help="Time between checkpoints.")
    ] = 120.0,
) -> None:
    """Teach a model a task of yours: pictures, prefixes (prompts) and suffixes (answers).

    Leaves OUT/model, or OUT/adapter with --lora; both load here and in transformers. Several
    processes share each step: torchrun --nproc-per-node 2 -m paliglass train finetune …
    """
    if steps is None and epochs is None:
        raise typer.BadParameter("say when to end: --steps or --epochs")
    if lora and train_part is Part.PROJECTOR:
        raise typer.BadParameter("--lora goes with --train all, decoder or attention")
    if os.environ.pop("ACCELERATE_USE_FSDP", "") == "true":  # accelerate launch --use_fsdp
        shard = True
    if patience and validation is None:
        raise typer.BadParameter("--patience needs --validation, whose score it watches")
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
    from paliglass.checkpoints.saving import refuse_existing
    from paliglass.model import load
    from paliglass.training import finetune as training
    from paliglass.training.examples import open_examples
    from paliglass.training.recipes import picture_side
    from paliglass.training.runs import find_checkpoint, make_accelerator

    result = out / ("adapter" if lora else "model")
    refuse_existing(result)
    checkpoint = find_checkpoint(out / "checkpoint")
    if checkpoint is not None and not resume:
        raise typer.BadParameter(f"{out} holds a run; go on with --resume, or choose a new folder")
    accelerator = make_accelerator(precision.value)
    # What is to be sharded need not fit onto one GPU: it comes from the CPU layer by layer.
    base = load(model, device="cpu" if shard else accelerator.device, pack=False)
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
    settled = training.FinetuneRecipe(
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
        precision=precision.value,
        checkpointing=checkpointing,
        shard=shard,
        seed=seed,
    )
    kept_as = base.model.dtype
    trainer = training.Finetuner(base.model, settled, accelerator)
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
    accelerator.end_training()


def _read_config(path: Path) -> ContrastiveConfig:
    from paliglass.checkpoints.files import read_json
    from paliglass.contrastive.config import ContrastiveConfig
    from paliglass.errors import ConfigError

    try:
        data = read_json(path)
        data.pop("dtype", None)
        return ContrastiveConfig.from_dict(data)
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _open(data: str, size: int, seed: int, cache: Path | None) -> PairSource:
    from paliglass.training.pairs import WorldPairs, open_pairs

    if data != WORLD:
        return open_pairs(Path(data), size)
    from paliglass.world import World

    return WorldPairs(World(cache, "train", seed, size))


def _tokenizer(given: Path | None, data: str, source: PairSource, out: Path) -> Tokenizer:
    """The given one; for the world the mini model's; else one trained on the texts, once."""
    from tokenizers import Tokenizer

    from paliglass.checkpoints.files import write_whole
    from paliglass.checkpoints.folder import load_tokenizer
    from paliglass.training.contrastive import shipped_tokenizer
    from paliglass.training.tokenizer import train_tokenizer

    if given is not None:
        return load_tokenizer(given)
    if data == WORLD:
        return shipped_tokenizer()
    path = out / "tokenizer.json"
    if not path.exists():
        write_whole(path, train_tokenizer(source.texts()).to_str(pretty=True))
    return Tokenizer.from_file(str(path))


def _steps(steps: int | None, epochs: float | None, source: PairSource, pairs_per_step: int) -> int:
    from paliglass.training.contrastive import ENDLESS

    if epochs is not None:
        if source.count is None:
            raise typer.BadParameter("--epochs: the world has no end; give --steps or --minutes")
        passes = max(1, round(epochs * source.count / pairs_per_step))
        return min(passes, steps or ENDLESS)
    return steps or ENDLESS
