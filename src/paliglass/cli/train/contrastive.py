"""train contrastive: a dual encoder from pictures and texts."""

from __future__ import annotations

import functools
import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paliglass.cli.app import command
from paliglass.cli.train.group import (
    CheckpointSecondsOption,
    LogEveryOption,
    OutOption,
    PrecisionOption,
    ResumeOption,
    WorldCacheOption,
    past_run,
    train,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from paliglass.contrastive.config import ContrastiveConfig
    from paliglass.contrastive.pairs import PairSource

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


class Logs(StrEnum):
    """log.jsonl is always written; tensorboard is written beside it."""

    JSONL = "jsonl"
    TENSORBOARD = "tensorboard"


@functools.partial(command, on=train)
def contrastive(
    out: OutOption,
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
    precision: PrecisionOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and order.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare pictures.")] = 1,
    tokenizer: Annotated[
        Path | None,
        typer.Option(exists=True, help="A tokenizer.json; else one is trained on the texts."),
    ] = None,
    world_cache: WorldCacheOption = None,
    resume: ResumeOption = False,
    logs: Annotated[Logs, typer.Option(help="Where losses are written to.")] = Logs.JSONL,
    log_every: LogEveryOption = 20,
    checkpoint_seconds: CheckpointSecondsOption = 120.0,
) -> None:
    """Train a dual encoder: pictures and texts that belong together get near each other.

    Several processes share each batch: torchrun --nproc-per-node 2 -m paliglass train contrastive …
    """
    if steps is None and minutes is None and epochs is None:
        raise typer.BadParameter("say when to end: --steps, --minutes or --epochs")
    from paliglass.contrastive import training as training
    from paliglass.contrastive.folders import save_contrastive, start_from_paligemma
    from paliglass.contrastive.processing import ContrastiveProcessor
    from paliglass.training.runs import choose_precision, finish, make_accelerator

    checkpoint = past_run(out, out / "model", resume)
    computing = choose_precision(precision.value if precision else None, checkpoint)
    shape = None if config is None else _read_config(config)
    side = image_size if shape is None else shape.image.image_size
    settings: dict[str, Any] = {
        "minutes": math.inf if minutes is None else minutes,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "optimizer": optimizer.value,
        "learning_rate": learning_rate,
        "warm_up": warm_up,
        "precision": computing,
        "seed": seed,
    }
    accelerator = make_accelerator(computing, accumulate, out, logs.value)
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
        dtype = "bfloat16" if computing == "bf16" else "float32"
        save_contrastive(trainer.model, out / "model", processor, dtype)
        print(f"{out / 'model'}: {trainer.step} steps, {trainer.elapsed / 60:.1f} minutes")
    finish(accelerator)


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
    from workshop.world_pairs import WorldPairs

    from paliglass.contrastive.pairs import open_pairs

    if data != WORLD:
        return open_pairs(Path(data), size)
    from workshop.world import World

    return WorldPairs(World(cache, "train", seed, size))


def _tokenizer(given: Path | None, data: str, source: PairSource, out: Path) -> Tokenizer:
    """The given one; for the world the mini model's; else one trained on the texts, once."""
    from tokenizers import Tokenizer

    from paliglass.checkpoints.files import write_whole
    from paliglass.checkpoints.folder import load_tokenizer
    from paliglass.contrastive.training import shipped_tokenizer
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
    from paliglass.contrastive.training import ENDLESS

    if epochs is not None:
        if source.count is None:
            raise typer.BadParameter("--epochs: the world has no end; give --steps or --minutes")
        passes = max(1, round(epochs * source.count / pairs_per_step))
        return min(passes, steps or ENDLESS)
    return steps or ENDLESS
