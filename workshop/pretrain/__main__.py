"""`python -m workshop.pretrain`: a model of mini's shape from the picture world."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from paliglass.checkpoints.folder import load_model
from paliglass.checkpoints.hub import locate
from paliglass.checkpoints.mask_codec import CODEC, load_mask_codec
from paliglass.checkpoints.saving import save_folder
from paliglass.cli.train.group import RunOptions, ShardOption, wants_shards
from paliglass.config import PaliGemmaConfig
from paliglass.contrastive.folders import initialize_vision_tower
from paliglass.errors import PaliglassError
from paliglass.modeling_siglip import with_positions
from paliglass.processing_paligemma import PaliGemmaProcessor
from paliglass.training.loop import train
from paliglass.training.processes import finish, make_accelerator
from paliglass.training.sharding import gathered_model
from workshop.commands import CACHE, WorldCache, run
from workshop.pretrain.batches import batches
from workshop.pretrain.pretrainer import Pretrainer, PretrainLoss
from workshop.pretrain.recipe import MINI, PretrainRecipe
from workshop.tokenizer import run_tokenizer
from workshop.world import World


def pretrain(
    options: RunOptions,
    recipe: PretrainRecipe,
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
    shard: ShardOption = False,
    threads: Annotated[int, typer.Option(min=1, help="Of each process.")] = 1,
    world_cache: WorldCache = CACHE,
) -> None:
    """Train a model of mini's shape on the picture world: all tasks at once, every weight.

    Processes share each step: torchrun --nproc-per-node 2 -m workshop.pretrain … On a CPU,
    two of one thread get more done than one of two.
    """
    if recipe.steps is None and recipe.minutes is None:
        raise typer.BadParameter("say when to end: --steps or --minutes")
    if weights is not None and vision is not None:
        raise typer.BadParameter("--weights has a vision tower already; leave out --vision")
    with options.open() as folder:
        recipe = replace(recipe, precision=folder.precision(recipe.precision))
        shard = wants_shards(shard)
        accelerator = make_accelerator(out=options.out, logs=options.logs)
        torch.set_num_threads(threads)
        config = of_size(MINI, recipe.image_size)
        size = config.vision_config.image_size
        masks = load_mask_codec(codec or locate("mini") / CODEC)
        # One process fetches artwork and learns the tokenizer; the others then find them.
        with accelerator.main_process_first():
            world = World(
                world_cache, "train", recipe.seed, size, codec=masks, mixture=recipe.mixture
            )
            words = run_tokenizer(options.out / "tokenizer.json", world_cache, world, weights)
        processor = PaliGemmaProcessor(words, config.num_image_tokens, size)
        network = PretrainLoss(config, len(world.patch_classes), recipe)
        if weights is not None:
            state = load_model(weights, "cpu", "float32").state_dict()
            side = config.vision_config.patches_per_side
            network.model.load_state_dict(with_positions(state, side))
        elif vision is not None:
            initialize_vision_tower(network.model, vision)
        trainer = Pretrainer(network, accelerator, shard)
        folder.start(trainer)
        folder.record({**asdict(recipe), "weights": weights, "vision": vision, "codec": codec})
        data = batches(
            world,
            processor,
            recipe,
            config.vision_config.patches_per_side,
            trainer.step,
            options.workers,
            accelerator.process_index,
            accelerator.num_processes,
            accelerator.device,
        )
        train(
            trainer,
            ((batch, ()) for batch in data),
            folder,
            log_every=options.log_every,
            checkpoint_seconds=options.checkpoint_seconds,
        )
        save_result(trainer, folder.result, processor)
        if accelerator.is_main_process:
            print(f"{folder.result}: {trainer.step} steps, {trainer.elapsed / 60:.1f} minutes")
        finish(accelerator)


def of_size(config: PaliGemmaConfig, image_size: int | None) -> PaliGemmaConfig:
    """The same model for pictures of so many pixels along a side.

    Raises PaliglassError where these are no whole patches.
    """
    patch = config.vision_config.patch_size
    if image_size is None:
        return config
    if image_size % patch:
        raise PaliglassError(
            f"--image-size {image_size}: give a multiple of {patch}, a patch's side"
        )
    return config.replace(image_size=image_size)


def save_result(trainer: Pretrainer, folder: Path, processor: PaliGemmaProcessor) -> None:
    """The model as a folder, in bfloat16 whatever it computed in.

    To be called by every process: what is sharded is gathered. The first one writes.
    """
    model = gathered_model(trainer.model, trainer.accelerator, folder.name, torch.bfloat16)
    if model is not None:
        save_folder(model, folder, processor)


if __name__ == "__main__":
    run(pretrain)
