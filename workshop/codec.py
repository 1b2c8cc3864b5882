"""The mask codec learned on the picture world: how the shipped mini codec is made.

    python -m workshop.codec --out mini_codec.safetensors --minutes 9

A VQ-VAE (arXiv 1711.00937): the decoder learns through the quantizer by the straight-through
estimator, the encoder is drawn to its codes by the commitment loss, and the codebook follows the
encoder as a moving average. A code that nothing falls on is moved onto a vector of the batch.
At first nothing is quantized: a codebook that chases an untrained encoder soon uses few codes.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from paliglass.checkpoints.mask_codec import load_mask_codec, save_mask_codec
from paliglass.errors import PaliglassError
from paliglass.modeling_mask_codec import MaskCodec, MaskCodecConfig
from paliglass.tasks.masks import crop_mask, paste_mask
from workshop.commands import CACHE, Threads, WorldCache, run
from workshop.world import World
from workshop.world.tasks import token_box

if TYPE_CHECKING:
    from workshop.world import Scene

MINI = MaskCodecConfig(width=64, embedding_dim=64)
SAVE_SECONDS = 60
BATCH_SIZE = 32
PEAK_LEARNING_RATE = 2e-3
WARM_UP = 0.02  # of the time, as are these
COMPOSING = 0.1
UNQUANTIZED = 0.08
COMMITMENT = 0.25
DEAD = 0.05  # of the mean share: a code used less is moved


class Codebook:
    """Keeps the codebook at the moving average of the vectors that fall on each code.

    As in appendix A.1 of arXiv 1711.00937; `usage` and `sums` are N and m there.
    """

    def __init__(self, codec: MaskCodec, decay: float = 0.99) -> None:
        self.codec, self.decay = codec, decay
        self.usage = torch.zeros(codec.config.num_codes)
        self.sums = torch.zeros_like(codec.codebook)

    @torch.no_grad()
    def update(self, vectors: Tensor, codes: Tensor) -> None:
        """Vectors N × D and the code of each, N; codes that have died start anew among them."""
        hits = F.one_hot(codes, len(self.usage)).to(vectors.dtype)
        self.usage.lerp_(hits.sum(0), 1 - self.decay)
        self.sums.lerp_(hits.T @ vectors, 1 - self.decay)
        share = len(vectors) / len(self.usage)
        dead = self.usage < DEAD * share
        if dead.any():
            picks = torch.randint(len(vectors), (int(dead.sum()),))
            self.usage[dead] = share
            self.sums[dead] = share * vectors[picks]
        self.codec.codebook.copy_(self.sums / self.usage[:, None])


def train_step(
    codec: MaskCodec, codebook: Codebook | None, optimizer: torch.optim.Optimizer, masks: Tensor
) -> float:
    """One step on masks B × 64 × 64 in [0, 1]; returns the reconstruction's loss.

    Without a codebook nothing is quantized.
    """
    with torch.autocast("cpu", torch.bfloat16):
        vectors = codec.embed(masks).float()
    through, commitment = vectors, torch.zeros(())
    if codebook is not None:
        codes = codec.nearest(vectors.detach())
        quantized = codec.codebook[codes]
        commitment = F.mse_loss(vectors, quantized)
        through = vectors + (quantized - vectors).detach()  # the gradient passes straight through
        codebook.update(vectors.detach().flatten(0, 2), codes.flatten())
    with torch.autocast("cpu", torch.bfloat16):
        decoded = codec.reconstruct(through).float()
    loss = reconstruction_loss(decoded, masks)
    (loss + COMMITMENT * commitment).backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def reconstruction_loss(decoded: Tensor, masks: Tensor) -> Tensor:
    """Squared error to ±1, plus 1 − IoU of each mask, which weighs thin things like full ones."""
    inside = ((decoded + 1) / 2).clamp(0, 1)
    shared = (inside * masks).sum((1, 2))
    joint = (inside + masks).sum((1, 2)) - shared
    return F.mse_loss(decoded, 2 * masks - 1) + (1 - shared / joint.clamp(min=1)).mean()


def training_crops(
    world: World, rng: np.random.Generator, seconds: float, per_mask: int = 3
) -> NDArray[np.uint8]:
    """Visible masks of the world's scenes, N × 64 × 64 (255 inside), as many as time allows.

    Each is cropped by its box with edges moved by up to a step of 1/64 of the picture and some: a
    box that was read from location tokens is never exact.
    """
    crops: list[NDArray[np.uint8]] = []
    until, index = time.monotonic() + seconds, 0
    while time.monotonic() < until or not crops:
        scene = world.scene(index)
        index += 1
        for box, mask in _outlines(scene):
            for _ in range(per_mask):
                x0, y0, x1, y1 = np.array(box) + rng.normal(0, 0.01 * world.size, 4)
                if x1 - x0 >= 2 and y1 - y0 >= 2:
                    crops.append(np.rint(crop_mask(mask, (x0, y0, x1, y1)) * 255).astype(np.uint8))
    return np.stack(crops)


def turned(masks: Tensor) -> Tensor:
    """Masks mirrored at random: mostly left and right, as scenes do it; a few any way."""
    chance = torch.rand(3, len(masks), 1, 1)
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


def train(codec: MaskCodec, crops: NDArray[np.uint8], seconds: float, out: Path) -> None:
    """Trains for that long; the codec so far is saved every minute."""
    masks = torch.from_numpy(crops)
    codec.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    codec.codebook.requires_grad_(False)
    codebook = None
    weights = [p for p in codec.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    started = saved = time.monotonic()
    step, losses = 0, list[float]()
    while (progress := (time.monotonic() - started) / seconds) < 1:
        falling = 0.5 * (1 + math.cos(math.pi * progress))
        optimizer.param_groups[0]["lr"] = PEAK_LEARNING_RATE * min(progress / WARM_UP, falling)
        if codebook is None and progress > UNQUANTIZED:
            codebook = Codebook(codec)
        batch = masks[torch.randint(len(masks), (BATCH_SIZE,))].float() / 255
        losses.append(train_step(codec, codebook, optimizer, turned(batch)))
        step += 1
        if step % 200 == 0:
            loss = sum(losses) / len(losses)
            line = {"step": step, "progress": round(progress, 3), "loss": round(loss, 4)}
            print(json.dumps(line), flush=True)
            losses.clear()
        if time.monotonic() - saved > SAVE_SECONDS:
            save_mask_codec(codec, out, dtype=torch.float16)
            saved = time.monotonic()


def codec(
    out: Annotated[Path, typer.Option(dir_okay=False, help="The .safetensors file to write.")],
    minutes: Annotated[float, typer.Option(help="For composing and training.")] = 9.0,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and scenes.")] = 0,
    scenes: Annotated[int, typer.Option(min=1, help="Held-out ones to measure on.")] = 500,
    threads: Threads = 1,
    world_cache: WorldCache = CACHE,
) -> None:
    """Train mini's mask codec on the picture world, and measure it on held-out scenes.

    Figures go into the file's metadata.
    """
    if minutes <= 0:
        raise typer.BadParameter("--minutes must be above 0")
    if not out.parent.is_dir():
        raise PaliglassError(f"{out.parent}: there is no such folder; make it first")
    torch.set_num_threads(threads)
    torch.manual_seed(seed)

    seconds = 60 * minutes
    world = World(world_cache, "train", seed)
    rng = np.random.default_rng(seed)
    crops = training_crops(world, rng, COMPOSING * seconds)
    print(f"{len(crops)} crops", flush=True)
    learned = MaskCodec(MINI)
    train(learned, crops, (1 - COMPOSING) * seconds, out)

    save_mask_codec(learned, out, dtype=torch.float16)
    learned = load_mask_codec(out)  # measured as it is stored
    found = np.array(round_trips(learned, World(world_cache, "test", 0), scenes))
    used = learned.encode(torch.from_numpy(crops[:: len(crops) // 5000 + 1] / np.float32(255)))
    figures = {
        "round_trip_iou": f"{found.mean():.4f}",
        "round_trip_iou_lowest_tenth": f"{np.quantile(found, 0.1):.4f}",
        "masks": str(len(found)),
        "codes_used": str(int((torch.bincount(used.flatten()) > 0).sum())),
    }
    save_mask_codec(learned, out, dtype=torch.float16, metadata=figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    run(codec)
