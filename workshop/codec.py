"""The mask codec learned on the picture world: how the shipped mini codec is made.

    python -m workshop.codec --out runs/codec --minutes 8

A VQ-VAE (arXiv 1711.00937): the decoder learns through the quantizer by the straight-through
estimator, the encoder is drawn to its codes by the commitment loss, and the codebook follows the
encoder as a moving average. A code that nothing falls on is moved onto a vector of the batch.
At first nothing is quantized: a codebook that chases an untrained encoder soon uses few codes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from paliglass.checkpoints.mask_codec import CODEC, save_mask_codec
from paliglass.cli.train.group import RunOptions
from paliglass.errors import PaliglassError
from paliglass.modeling_mask_codec import MaskCodec, MaskCodecConfig
from paliglass.tasks.masks import crop_mask, paste_mask
from paliglass.training.loop import StepSums, Trainer, train
from paliglass.training.optimizers import Optimizers
from paliglass.training.order import batch_indices
from paliglass.training.processes import make_accelerator
from paliglass.training.recipes import TimedRecipe
from paliglass.training.sharding import clip_gradients
from workshop.commands import CACHE, Threads, WorldCache, run
from workshop.world import World
from workshop.world.tasks import token_box

if TYPE_CHECKING:
    from accelerate import Accelerator

    from workshop.world import Scene

MINI = MaskCodecConfig(width=64, embedding_dim=64)
WARM_UP = 0.02  # of the run, as is the next
UNQUANTIZED = 0.08
COMMITMENT = 0.25
DEAD = 0.05  # of the mean share: a code used less is moved


@dataclass(frozen=True)
class CodecRecipe(TimedRecipe):
    """It ends at `steps` or after `minutes`, whichever is first reached."""

    scenes: int = field(default=1500, metadata={"min": 1, "help": "To take masks from."})
    batch_size: int = field(default=32, metadata={"min": 1, "help": "Masks in a step."})
    learning_rate: float = field(
        default=2e-3, metadata={"min": 0, "help": "The highest; it falls to 0 as a cosine."}
    )


class Codebook:
    """Keeps the codebook at the moving average of the vectors that fall on each code.

    As in appendix A.1 of arXiv 1711.00937; `usage` and `sums` are N and m there.
    """

    def __init__(self, codec: MaskCodec, decay: float = 0.99) -> None:
        self.codec, self.decay = codec, decay
        self.usage = codec.codebook.new_zeros(codec.config.num_codes)
        self.sums = torch.zeros_like(codec.codebook)

    @torch.no_grad()
    def update(self, vectors: Tensor, codes: Tensor, generator: torch.Generator) -> None:
        """Vectors N × D and the code of each, N; codes that have died start anew among them."""
        hits = F.one_hot(codes, len(self.usage)).to(vectors.dtype)
        self.usage.lerp_(hits.sum(0), 1 - self.decay)
        self.sums.lerp_(hits.T @ vectors, 1 - self.decay)
        share = len(vectors) / len(self.usage)
        dead = self.usage < DEAD * share
        if dead.any():
            picks = torch.randint(len(vectors), (int(dead.sum()),), generator=generator)
            self.usage[dead] = share
            self.sums[dead] = share * vectors[picks]
        self.codec.codebook.copy_(self.sums / self.usage[:, None])


class CodecTrainer(Trainer[Tensor]):
    """A mask codec in training, on batches B × 64 × 64 of uint8, 255 inside.

    Raises PaliglassError for several processes: the codebook follows the vectors of one.
    """

    recipe: CodecRecipe

    def __init__(
        self, config: MaskCodecConfig, recipe: CodecRecipe, accelerator: Accelerator
    ) -> None:
        super().__init__()
        if accelerator.num_processes > 1:
            raise PaliglassError("a mask codec learns in one process; leave out torchrun")
        self.recipe, self.accelerator, self.rows = recipe, accelerator, recipe.batch_size
        torch.manual_seed(recipe.seed)
        self.codec = MaskCodec(config)
        self.codec.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.codec.codebook.requires_grad_(False)
        self.codebook = Codebook(self.codec)
        parameters = dict(self.codec.named_parameters())
        self.weights = {
            **parameters,
            "codebook.usage": self.codebook.usage,
            "codebook.sums": self.codebook.sums,
        }
        learned = {name: p for name, p in parameters.items() if p.requires_grad}
        self.parameters = list(learned.values())
        self.optimizers = Optimizers(learned, weight_decay=0.01, betas=(0.9, 0.98))

    @property
    def rate(self) -> float:
        """The next step's learning rate."""
        falling = (1 + math.cos(math.pi * self.progress)) / 2
        return self.recipe.learning_rate * min(self.progress / WARM_UP, falling)

    def train_step(self, group: Sequence[Tensor]) -> StepSums:
        """One update; reports the reconstruction's loss."""
        (batch,) = group
        codec, device = self.codec, self.accelerator.device
        generator = torch.Generator().manual_seed(self.recipe.seed << 32 | self.step)
        masks = turned(batch.float() / 255, generator).to(device)
        bf16 = self.recipe.precision == "bf16"
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            vectors = codec.embed(masks).float()
        through, commitment = vectors, torch.zeros(())
        if self.progress > UNQUANTIZED:
            codes = codec.nearest(vectors.detach())
            quantized = codec.codebook[codes]
            commitment = F.mse_loss(vectors, quantized)
            through = vectors + (quantized - vectors).detach()  # its gradient is the vectors'
            self.codebook.update(vectors.detach().flatten(0, 2), codes.flatten(), generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            decoded = codec.reconstruct(through).float()
        loss = reconstruction_loss(decoded, masks)
        self.accelerator.backward(loss + COMMITMENT * commitment)
        clip_gradients(self.parameters, self.step + 1)
        self.optimizers.step(self.rate)
        self.step += 1
        return {"loss": (loss.item() * len(masks), len(masks))}


def reconstruction_loss(decoded: Tensor, masks: Tensor) -> Tensor:
    """Squared error to ±1, plus 1 − IoU of each mask, which weighs thin things like full ones."""
    inside = ((decoded + 1) / 2).clamp(0, 1)
    shared = (inside * masks).sum((1, 2))
    joint = (inside + masks).sum((1, 2)) - shared
    return F.mse_loss(decoded, 2 * masks - 1) + (1 - shared / joint.clamp(min=1)).mean()


def training_crops(
    world: World, rng: np.random.Generator, scenes: int, per_mask: int = 3
) -> NDArray[np.uint8]:
    """Visible masks of the world's first scenes, N × 64 × 64 (255 inside).

    Each is cropped by its box with edges moved by up to a step of 1/64 of the picture and some: a
    box that was read from location tokens is never exact.
    """
    crops: list[NDArray[np.uint8]] = []
    for index in range(scenes):
        for box, mask in _outlines(world.scene(index)):
            for _ in range(per_mask):
                x0, y0, x1, y1 = np.array(box) + rng.normal(0, 0.01 * world.size, 4)
                if x1 - x0 >= 2 and y1 - y0 >= 2:
                    crops.append(np.rint(crop_mask(mask, (x0, y0, x1, y1)) * 255).astype(np.uint8))
    return np.stack(crops)


def turned(masks: Tensor, generator: torch.Generator) -> Tensor:
    """Masks mirrored at random: mostly left and right, as scenes do it; a few any way."""
    chance = torch.rand(3, len(masks), 1, 1, generator=generator)
    masks = torch.where(chance[0] < 0.5, masks.flip(2), masks)
    masks = torch.where(chance[1] < 0.1, masks.flip(1), masks)
    return torch.where(chance[2] < 0.1, masks.mT, masks)


def round_trips(codec: MaskCodec, world: World, scenes: int) -> list[float]:
    """IoU of every mask in that many scenes with what its location and mask tokens give back."""
    found = []
    for index in range(scenes):
        for box, mask in _outlines(world.scene(index)):
            rounded = token_box(box, world.size)
            codes = codec.encode(torch.from_numpy(crop_mask(mask, rounded))[None])
            back = paste_mask(codec.decode(codes)[0].numpy(), rounded, *mask.shape)
            found.append(float((mask & back).sum() / (mask | back).sum()))
    return found


def _outlines(scene: Scene) -> list[tuple[tuple[int, int, int, int], NDArray[np.bool_]]]:
    """Box and whole mask of what can be asked for by name."""
    named = [thing for thing in scene.objects if thing.kind in ("sticker", "shape")]
    return [(thing.box, scene.mask(thing)) for thing in named]


def batches(
    crops: NDArray[np.uint8], recipe: CodecRecipe, first_step: int
) -> Iterator[tuple[Tensor, Sequence[str]]]:
    """Batches of crops from a step on, as `training.loop.train` takes them."""
    order = batch_indices(len(crops), recipe.batch_size, recipe.seed, first_step, recipe.steps)
    return ((torch.from_numpy(crops[indices]), ()) for indices in order)


def codec(
    options: RunOptions,
    recipe: CodecRecipe,
    held_out: Annotated[int, typer.Option(min=1, help="Held-out scenes to measure on.")] = 500,
    threads: Threads = 1,
    world_cache: WorldCache = CACHE,
) -> None:
    """Train mini's mask codec on the picture world, and measure it on held-out scenes.

    Figures go into the file's metadata.
    """
    if recipe.steps is None and recipe.minutes is None:
        raise typer.BadParameter("say when to end: --steps or --minutes")
    with options.open(CODEC) as folder:
        recipe = replace(recipe, precision=folder.precision(recipe.precision))
        torch.set_num_threads(threads)
        trainer = CodecTrainer(MINI, recipe, make_accelerator(out=options.out, logs=options.logs))
        folder.start(trainer)
        folder.record(asdict(recipe))
        world = World(world_cache, "train", recipe.seed)
        crops = training_crops(world, np.random.default_rng(recipe.seed), recipe.scenes)
        print(f"{len(crops)} crops", flush=True)
        train(
            trainer,
            batches(crops, recipe, trainer.step),
            folder,
            log_every=options.log_every,
            checkpoint_seconds=options.checkpoint_seconds,
        )
        # Measured as it is stored.
        learned = trainer.codec.to("cpu", torch.float16).float().eval().requires_grad_(False)
        found = np.array(round_trips(learned, World(world_cache, "test", 0), held_out))
        used = learned.encode(torch.from_numpy(crops[:: len(crops) // 5000 + 1] / np.float32(255)))
        figures = {
            "round_trip_iou": f"{found.mean():.4f}",
            "round_trip_iou_lowest_tenth": f"{np.quantile(found, 0.1):.4f}",
            "masks": str(len(found)),
            "codes_used": str(int((torch.bincount(used.flatten()) > 0).sum())),
        }
        save_mask_codec(learned, folder.result, dtype=torch.float16, metadata=figures)
        print(json.dumps(figures))


if __name__ == "__main__":
    run(codec)
