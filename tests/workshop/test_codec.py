from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tests.workshop.conftest import Command
from workshop import codec as training
from workshop.codec import Codebook, round_trips, train_step, training_crops, turned
from workshop.world import Scene, SceneObject

from paliglass.checkpoints.mask_codec import load_mask_codec
from paliglass.modeling_mask_codec import MaskCodec, MaskCodecConfig

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
        nothing = np.zeros((self.size, self.size), np.uint8)
        return Scene(np.zeros((self.size, self.size, 3), np.uint8), (thing,), nothing)


def crops() -> torch.Tensor:
    found = training_crops(Discs(), np.random.default_rng(0), 0.2)  # type: ignore[arg-type]
    assert found.dtype == np.uint8
    assert found.shape[1:] == (64, 64)
    return torch.from_numpy(found).float() / 255


def test_crops_hold_the_things_moved_a_little() -> None:
    masks = crops()
    assert len(masks) > 100
    assert masks.flatten(1).mean(1).sub(0.785).abs().max() < 0.25  # a disc fills π/4 of its box
    assert masks.flatten(1).std(0).max() > 0.1


def test_a_mirrored_mask_keeps_its_pixels() -> None:
    torch.manual_seed(0)
    masks = torch.rand(200, 64, 64)
    result = turned(masks)
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
    for _ in range(200):
        vectors = corners[torch.randint(4, (64,))] + 0.05 * torch.randn(64, 2)
        codebook.update(vectors, codec.nearest(vectors))
    distances = torch.cdist(corners, codec.codebook)
    assert distances.min(1)[0].max() < 0.1  # the code at (50, 50) has come to a corner too


@pytest.mark.parametrize("quantized", [False, True])
def test_gradients_pass_through_the_quantizer(quantized: bool) -> None:
    torch.manual_seed(0)
    codec = MaskCodec(SMALL)
    codec.codebook.requires_grad_(False)
    before = {key: value.clone() for key, value in codec.state_dict().items()}
    weights = [p for p in codec.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, 1e-2, weight_decay=0)
    codebook = Codebook(codec) if quantized else None
    train_step(codec, codebook, optimizer, crops()[:16])
    after = codec.state_dict()
    assert not torch.equal(before["encoder.0.weight"], after["encoder.0.weight"])
    assert not torch.equal(before["decoder.12.weight"], after["decoder.12.weight"])
    assert torch.equal(before["codebook"], after["codebook"]) != quantized


def test_training_learns_discs() -> None:
    torch.manual_seed(0)
    codec = MaskCodec(SMALL)
    codec.codebook.requires_grad_(False)
    untrained = np.mean(round_trips(codec, Discs(), 20))  # type: ignore[arg-type]
    weights = [p for p in codec.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, 3e-3)
    masks, codebook = crops(), Codebook(codec)
    for step in range(100):
        batch = masks[torch.randint(len(masks), (16,))]
        train_step(codec, codebook if step > 30 else None, optimizer, batch)
    trained = np.mean(round_trips(codec, Discs(), 20))  # type: ignore[arg-type]
    assert untrained < 0.8
    assert trained > 0.88


def test_the_command_writes_a_codec_with_its_figures(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "World", Discs)
    monkeypatch.setattr(training, "MINI", SMALL)
    threads = torch.get_num_threads()
    result = command(training.codec, "--out", "codec", "--minutes", "0.01", "--scenes", "5")
    torch.set_num_threads(threads)
    assert result.code == 0, result.err
    assert load_mask_codec("codec").config == SMALL
    figures = json.loads(result.out.splitlines()[-1])
    with safe_open("codec", framework="pt") as file:
        metadata = file.metadata()
    assert figures.items() <= metadata.items()
    found = round_trips(load_mask_codec("codec"), Discs(), 5)  # type: ignore[arg-type]
    assert float(figures["round_trip_iou"]) == pytest.approx(np.mean(found), abs=1e-4)


def test_bad_options_are_named_before_the_work_begins(command: Command) -> None:
    nowhere = command(training.codec, "--out", "no/codec")
    assert (nowhere.code, "no: there is no such folder" in nowhere.err) == (1, True)
    hurried = command(training.codec, "--out", "codec", "--minutes", "0")
    assert (hurried.code, "--minutes must be above 0" in hurried.err) == (2, True)
