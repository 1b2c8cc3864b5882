"""`python -m workshop.pretrain`: a model of mini's shape from the picture world."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Annotated

import typer

from paliglass.cli.app import command
from paliglass.cli.train.group import (
    CheckpointSecondsOption,
    LogEveryOption,
    OutOption,
    PrecisionOption,
    ResumeOption,
    ShardOption,
    WorldCacheOption,
    past_run,
    wants_shards,
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@functools.partial(command, on=app)
def pretrain(
    out: OutOption,
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
    precision: PrecisionOption = None,
    shard: ShardOption = False,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and scenes.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Of each process.")] = 1,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that compose scenes, for each that trains.")
    ] = 1,
    world_cache: WorldCacheOption = None,
    resume: ResumeOption = False,
    log_every: LogEveryOption = 50,
    checkpoint_seconds: CheckpointSecondsOption = 240.0,
) -> None:
    """Train a model of mini's shape on the picture world: all tasks at once, every weight.

    Processes share each step: torchrun --nproc-per-node 2 -m workshop.pretrain … On a CPU,
    two of one thread get more done than one of two.
    """
    if steps is None and minutes is None:
        raise typer.BadParameter("say when to end: --steps or --minutes")
    if weights is not None and vision is not None:
        raise typer.BadParameter("--weights has a vision tower already; leave out --vision")
    import torch

    from paliglass.checkpoints.folder import load_model
    from paliglass.checkpoints.hub import locate
    from paliglass.contrastive.folders import initialise_vision_tower
    from paliglass.modeling_mask_codec import MaskCodec
    from paliglass.processing_paligemma import PaliGemmaProcessor
    from paliglass.training.runs import choose_precision, finish, make_accelerator
    from workshop.pretrain import loop as training
    from workshop.pretrain.pretrainer import Pretrainer, PretrainLoss, Recipe
    from workshop.world import World

    checkpoint = past_run(out, out / "model", resume)
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
        precision=choose_precision(precision.value if precision else None, checkpoint),
        seed=seed,
    )
    shard = wants_shards(shard)
    accelerator = make_accelerator()
    torch.set_num_threads(threads)
    size = config.vision_config.image_size
    masks = MaskCodec.load(codec or locate("mini") / "mask_codec.safetensors")
    # One process fetches artwork and trains the tokenizer; the others then find them.
    with accelerator.main_process_first():
        out.mkdir(parents=True, exist_ok=True)
        world = World(world_cache, "train", seed, size, codec=masks, mixture=recipe.mixture)
        words = training.common_tokenizer(out / "tokenizer.json", world_cache, world, weights)
    processor = PaliGemmaProcessor(words, config.num_image_tokens, size)
    network = PretrainLoss(config, len(world.patch_classes), recipe)
    if weights is not None:
        network.model.load_state_dict(load_model(weights, "cpu", "float32").state_dict())
    elif vision is not None:
        initialise_vision_tower(network.model, vision)
    trainer = Pretrainer(network, accelerator, shard)
    if checkpoint is not None:
        trainer.resume(checkpoint)
    data = training.batches(
        world,
        processor,
        recipe,
        config.vision_config.patches_per_side,
        trainer.step,
        workers,
        accelerator.process_index,
        accelerator.num_processes,
    )
    training.train(trainer, data, out, log_every, checkpoint_seconds)
    training.save_result(trainer, out / "model", processor)
    if accelerator.is_main_process:
        print(f"{out / 'model'}: {trainer.step} steps, {trainer.elapsed / 60:.1f} minutes")
    finish(accelerator)


def _weight(text: str) -> tuple[str, float]:
    """A task and its weight, of "segment=1.5"."""
    from workshop.pretrain.batches import TASKS

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


if __name__ == "__main__":
    app()
