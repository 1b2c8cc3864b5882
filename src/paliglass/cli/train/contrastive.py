"""train contrastive: a dual encoder from pictures and texts."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paliglass.cli.app import command
from paliglass.cli.messages import counted
from paliglass.cli.train.group import RunOptions, train
from paliglass.contrastive.recipe import ContrastiveRecipe, Encoder, LossName, TextEncoder

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenizers import Tokenizer

    from paliglass.contrastive.config import ContrastiveConfig
    from paliglass.contrastive.pairs import PairSource

__all__ = ["EncoderOptions", "contrastive", "train_dual"]


@dataclass(frozen=True)
class EncoderOptions:
    """What a dual encoder is made of."""

    image: Annotated[Encoder, typer.Option(help="The image encoder.")] = "vit"
    text: Annotated[TextEncoder, typer.Option(help="The text encoder.")] = "transformer"
    loss: Annotated[
        LossName,
        typer.Option(help="A softmax over the batch, or a sigmoid for each cell of its matrix."),
    ] = "siglip"
    shape: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="A config.json with other sizes, for those three."
        ),
    ] = None
    image_size: Annotated[int, typer.Option(min=16, help="Side of the pictures, pixels.")] = 128
    vision: Annotated[
        str | None,
        typer.Option(help="A PaliGemma whose vision tower the ViT starts from, as mini."),
    ] = None

    def config(self, words: Tokenizer, source: PairSource) -> ContrastiveConfig:
        """The encoders, for these words and texts."""
        from paliglass.contrastive.training import dual_config, text_length

        if self.shape is not None:
            return _read_shape(self.shape)
        length, count = text_length(words, source), words.get_vocab_size()
        return dual_config(self.image, self.text, self.loss, count, self.image_size, length)

    @property
    def side(self) -> int:
        """Of the pictures, in pixels."""
        return self.image_size if self.shape is None else _read_shape(self.shape).image.image_size


@functools.partial(command, on=train)
def contrastive(
    options: RunOptions,
    data: Annotated[
        Path,
        typer.Option(
            exists=True,
            help='A file of {"image": …, "text": …} lines, or a folder: NAME.txt beside each '
            "picture, or class folders.",
        ),
    ],
    parts: EncoderOptions,
    recipe: ContrastiveRecipe,
    tokenizer: Annotated[
        Path | None,
        typer.Option(exists=True, help="A tokenizer.json; else one is trained on the texts."),
    ] = None,
) -> None:
    """Train a dual encoder: pictures and texts that belong together get near each other.

    Several processes share each batch: torchrun --nproc-per-node 2 -m paliglass train contrastive …
    """

    def open_source() -> tuple[PairSource, Tokenizer]:
        from paliglass.contrastive.pairs import open_pairs

        source = open_pairs(data, parts.side)
        return source, _tokenizer(tokenizer, source, options.out)

    train_dual(options, parts, recipe, open_source, {"data": data, "tokenizer": tokenizer})


def train_dual(
    options: RunOptions,
    parts: EncoderOptions,
    recipe: ContrastiveRecipe,
    open_source: Callable[[], tuple[PairSource, Tokenizer]],
    settings: dict[str, Any],
) -> None:
    """A run from its options to OUT/model.

    open_source: gives the pairs and the words; one process makes what all then find. settings: what
    the run's config.yaml tells beside parts and recipe.
    """
    if recipe.steps is None and recipe.minutes is None and recipe.epochs is None:
        raise typer.BadParameter("say when to end: --steps, --minutes or --epochs")
    from paliglass.contrastive import training
    from paliglass.contrastive.folders import save_contrastive, start_from_paligemma
    from paliglass.contrastive.processing import ContrastiveProcessor
    from paliglass.training.processes import finish, make_accelerator

    with options.open() as run:
        recipe = replace(recipe, precision=run.precision(recipe.precision))
        accelerator = make_accelerator(recipe.precision, options.out, options.logs)
        with accelerator.main_process_first():
            source, words = open_source()
        config, recipe = parts.config(words, source), recipe.complete(source.count)
        trainer = training.ContrastiveTrainer(config, recipe, accelerator)
        if run.past is None and parts.vision is not None:
            start_from_paligemma(trainer.model, parts.vision)
        run.start(trainer)
        run.record({**asdict(recipe), **asdict(parts), **settings})
        processor = ContrastiveProcessor(
            words,
            parts.side,
            config.text.max_position_embeddings,
            padding=config.text.padding,
        )
        training.train(trainer, source, processor, run, **options.loop())
        if accelerator.is_main_process:
            dtype = "bfloat16" if recipe.precision == "bf16" else "float32"
            save_contrastive(trainer.model, run.result, processor, dtype)
            print(
                f"{run.result}: {counted(trainer.step, 'step')}, {trainer.elapsed / 60:.1f} minutes"
            )
        finish(accelerator)


def _read_shape(path: Path) -> ContrastiveConfig:
    from paliglass.contrastive.config import ContrastiveConfig
    from paliglass.errors import ConfigError
    from paliglass.files import read_json

    try:
        data = read_json(path)
        data.pop("dtype", None)
        return ContrastiveConfig.from_dict(data)
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _tokenizer(given: Path | None, source: PairSource, out: Path) -> Tokenizer:
    """The given one, else one trained on the texts, once."""
    from tokenizers import Tokenizer

    from paliglass.checkpoints.folder import load_tokenizer
    from paliglass.files import write_whole
    from paliglass.training.tokenizer import train_tokenizer

    if given is not None:
        return load_tokenizer(given)
    path = out / "tokenizer.json"
    if not path.exists():
        write_whole(path, train_tokenizer(source.texts()).to_str(pretty=True))
    return Tokenizer.from_file(str(path))
