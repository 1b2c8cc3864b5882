from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from tests.workshop.conftest import Command
from workshop import codec as training
from workshop.codec import (
    Codebook,
    CodecRecipe,
    CodecTrainer,
    batches,
    round_trips,
    training_crops,
    turned,
)
from workshop.world import Scene, SceneObject

from paliglass.checkpoints.mask_codec import CODEC, load_mask_codec
from paliglass.modeling_mask_codec import MaskCodec, MaskCodecConfig
from paliglass.training.processes import make_accelerator

SMALL = MaskCodecConfig(width=32, embedding_dim=8, num_codes=32)


class Discs:
    """Scenes of one disc each, at another place every time."""

    def __init__(self, *_: object, size: int = 128) -> None:
        self.size = size

    def scene(self, index: int) -> Scene:
        rng = np.random.default_rng(index)
        side = int(rng.integers(24, 60))
        x, y = (int(edge) for edge in rng.integers(0, self.size - side, 2))
        place = np.arange(side) + 0.5 - side / 2
        mask = place**2 + place[:, None] ** 2 < side**2 / 4
        thing = SceneObject("shape", "circle", "red", (x, y, x + side, y + side), 1.0, mask)
        nothing = np.zeros((self.size, self.size), np.uint16)
        return Scene(np.zeros((self.size, self.size, 3), np.uint8), (thing,), nothing)


def crops() -> NDArray[np.uint8]:
    found = training_crops(Discs(), np.random.default_rng(0), 100)  # type: ignore[arg-type]
    assert found.dtype == np.uint8
    assert found.shape[1:] == (64, 64)
    return found


def test_crops_hold_the_things_moved_a_little() -> None:
    masks = torch.from_numpy(crops()).float() / 255
    assert len(masks) > 100
    assert masks.flatten(1).mean(1).sub(0.785).abs().max() < 0.25  # a disc fills π/4 of its box
    assert masks.flatten(1).std(0).max() > 0.1


def test_a_mirrored_mask_keeps_its_pixels() -> None:
    torch.manual_seed(0)
    masks = torch.rand(200, 64, 64)
    result = turned(masks, torch.Generator().manual_seed(0))
    assert torch.equal(masks.flatten(1).sort(1)[0], result.flatten(1).sort(1)[0])
    kept = (masks == result).flatten(1).all(1).float().mean()
    mirrored = (masks.flip(2) == result).flatten(1).all(1).float().mean()
    assert 0.25 < kept < 0.55
    assert 0.25 < mirrored < 0.55
    assert kept + mirrored < 1


def test_the_codebook_follows_its_vectors_and_moves_what_is_dead() -> None:
    torch.manual_seed(0)
    codec = MaskCodec(MaskCodecConfig(width=8, embedding_dim=2, num_codes=4))
    codec.codebook.requires_grad_(False)
    codec.codebook.copy_(torch.tensor([[1.0, 0], [0, 1], [-1, 0], [50, 50]]))
    corners = torch.tensor([[2.0, 0], [0, 2], [-2, 0], [0, -2]])
    codebook = Codebook(codec, decay=0.9)
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        vectors = corners[torch.randint(4, (64,))] + 0.05 * torch.randn(64, 2)
        codebook.update(vectors, codec.nearest(vectors), generator)
    distances = torch.cdist(corners, codec.codebook)
    assert distances.min(1)[0].max() < 0.1  # the code at (50, 50) has come to a corner too


def trainer(steps: int, **settings: Any) -> CodecTrainer:
    return CodecTrainer(SMALL, CodecRecipe(steps=steps, **settings), make_accelerator())


@pytest.mark.parametrize("quantized", [False, True])
def test_gradients_pass_through_the_quantizer(quantized: bool) -> None:
    learner = trainer(100)
    learner.step = 50 if quantized else 4  # of a hundred
    before = {key: value.clone() for key, value in learner.codec.state_dict().items()}
    learner.train_step([torch.from_numpy(crops()[:16])])
    after = learner.codec.state_dict()
    assert not torch.equal(before["encoder.0.weight"], after["encoder.0.weight"])
    assert not torch.equal(before["decoder.12.weight"], after["decoder.12.weight"])
    assert torch.equal(before["codebook"], after["codebook"]) != quantized


def test_training_learns_discs() -> None:
    learner = trainer(400, batch_size=16, learning_rate=3e-3)
    untrained = np.mean(round_trips(learner.codec, Discs(), 20))  # type: ignore[arg-type]
    for batch, _ in islice(batches(crops(), learner.recipe, 0), 100):
        learner.train_step([batch])
    trained = np.mean(round_trips(learner.codec, Discs(), 20))  # type: ignore[arg-type]
    assert untrained < 0.8
    assert trained > 0.82  # a box filled whole has π/4


def test_a_resumed_run_is_an_unbroken_one(tmp_path: Path) -> None:
    whole, first, second = (trainer(12, batch_size=8) for _ in range(3))
    masks = crops()
    losses = [whole.train_step([batch]) for batch, _ in batches(masks, whole.recipe, 0)]
    for batch, _ in islice(batches(masks, first.recipe, 0), 6):
        first.train_step([batch])
    first.save(tmp_path / "checkpoint")
    second.resume(tmp_path / "checkpoint")
    rest = [second.train_step([batch]) for batch, _ in batches(masks, second.recipe, 6)]
    assert rest == losses[6:]
    assert torch.equal(whole.codec.codebook, second.codec.codebook)
    assert torch.equal(whole.codebook.usage, second.codebook.usage)


def test_the_command_writes_a_codec_with_its_figures(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "World", Discs)
    monkeypatch.setattr(training, "MINI", SMALL)
    threads = torch.get_num_threads()
    arguments = ("--out", "run", "--steps", "3", "--scenes", "20", "--held-out", "5")
    result = command(training.codec, *arguments)
    torch.set_num_threads(threads)
    assert result.code == 0, result.err
    path = f"run/{CODEC}"
    assert load_mask_codec(path).config == SMALL
    figures = json.loads(result.out.splitlines()[-1])
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert figures.items() <= metadata.items()
    found = round_trips(load_mask_codec(path), Discs(), 5)  # type: ignore[arg-type]
    assert float(figures["round_trip_iou"]) == pytest.approx(np.mean(found), abs=1e-4)
    again = command(training.codec, *arguments)
    assert (again.code, f"{path}: exists already" in again.err) == (1, True), again.err


def test_bad_options_are_named_before_the_work_begins(command: Command) -> None:
    endless = command(training.codec, "--out", "run")
    assert (endless.code, "say when to end" in endless.err) == (2, True)
    hurried = command(training.codec, "--out", "run", "--minutes", "0")
    assert (hurried.code, "--minutes" in hurried.err) == (2, True)
