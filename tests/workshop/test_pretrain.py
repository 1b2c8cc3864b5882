from __future__ import annotations

import dataclasses
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.tiny import tiny_processor
from tests.workshop.fake_world import FakeWorld
from workshop.pretrain.batches import (
    ROW,
    TASKS,
    PromptRow,
    SceneBatch,
    SceneDataset,
    batches,
    patch_boxes,
    text_batch,
)
from workshop.pretrain.pretrainer import Pretrainer, PretrainLoss
from workshop.pretrain.recipe import PretrainRecipe
from workshop.tokenizer import run_tokenizer, training_texts
from workshop.world.concepts import CHARACTERS
from workshop.world.scenes import PATCH_CLASSES
from workshop.world.scenes import Scene as WorldScene

from paliglass.config import GemmaConfig, PaliGemmaConfig, SigLipConfig
from paliglass.errors import PaliglassError
from paliglass.layers.masks import prefix_lm_mask
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.processing_paligemma import PaliGemmaProcessor
from paliglass.training.attention import PlainAttention, use_attention
from paliglass.training.processes import make_accelerator
from paliglass.training.tokenizer import train_tokenizer

SMALL = PaliGemmaConfig(
    SigLipConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
    ),
    GemmaConfig(
        vocab_size=3201,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    ),
    image_token_index=3200,
)
GRID = 4
RECIPE = PretrainRecipe(
    steps=8,
    scenes=4,
    prompts=4,
    vision_warmup=0.25,
    unpacked_share=0.25,
    warm_up_steps=1,
    decay=1.0,
)
WORLD = FakeWorld(size=64)
TOKENIZER = train_tokenizer(training_texts(WORLD, scenes=20, prompts=4))
PROCESSOR = PaliGemmaProcessor(TOKENIZER, GRID**2, 64)


def network(**changes: object) -> PretrainLoss:
    recipe = dataclasses.replace(RECIPE, **{"precision": "fp32", **changes})  # type: ignore[arg-type]
    return PretrainLoss(SMALL, len(WORLD.patch_classes), recipe)


def trainer(**changes: object) -> Pretrainer:
    return Pretrainer(network(**changes), make_accelerator())


def data(first_step: int = 0) -> list[SceneBatch]:
    return list(batches(WORLD, PROCESSOR, RECIPE, GRID, first_step, workers=0))


def mean(report: dict[str, tuple[float, int]]) -> float:
    return sum(total for total, _ in report.values()) / sum(count for _, count in report.values())


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0], ids=["vision", "packed", "unpacked"])
def test_steps_lower_the_loss_of_a_batch(progress: float) -> None:
    model = trainer(
        steps=10**9, vision_warmup=0.0 if progress else 1.0, unpacked_share=float(progress == 1)
    )
    batch = data()[0]
    losses = [mean(model.train_step([batch])) for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]


def test_half_precision_trains_too() -> None:
    model = trainer(vision_warmup=0.0, precision="bf16")
    batch = data()[0]
    losses = [mean(model.train_step([batch])) for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]
    assert {weight.dtype for weight in model.parameters.values()} == {torch.float32}


def test_half_precision_has_the_losses_of_a_model_in_it() -> None:
    """Of weights in float32, and of the same weights rounded."""
    batch = data()[0]
    kept, rounded = (
        network(precision="bf16", vision_warmup=0.0),
        network(vision_warmup=0.0).bfloat16(),
    )
    use_attention(rounded, PlainAttention)
    found = Pretrainer(kept, make_accelerator()).losses(batch)
    with torch.no_grad():
        assert rounded(batch, 0.0)[1] == found


def test_a_seed_gives_the_same_first_fifty_losses() -> None:
    def losses(seed: int, steps: int) -> list[float]:
        recipe = dataclasses.replace(RECIPE, scenes=2, steps=50)
        model = trainer(seed=seed, scenes=2, steps=50)
        batches_of = batches(FakeWorld(64, seed), PROCESSOR, recipe, GRID, 0, workers=0)
        return [mean(model.train_step([batch])) for batch in islice(batches_of, steps)]

    first = losses(0, 50)
    assert losses(0, 50) == first
    assert losses(1, 1) != first[:1]


def test_a_resumed_run_has_the_losses_of_an_unbroken_one(tmp_path: Path) -> None:
    unbroken = trainer()
    expected = [unbroken.train_step([batch]) for batch in data()]
    first = trainer()
    got = [first.train_step([batch]) for batch in data()[:3]]
    first.save(tmp_path / "checkpoint")
    second = trainer()
    torch.nn.init.ones_(second.model.multi_modal_projector.linear.weight)  # to be replaced
    second.resume(tmp_path / "checkpoint")
    got += [second.train_step([batch]) for batch in data(second.step)]
    assert got == expected
    assert list(tmp_path.iterdir()) == [tmp_path / "checkpoint"]


def test_a_batch_of_empty_pictures_has_a_loss() -> None:
    batch = data()[0]
    batch.patch_boxes[:] = torch.nan
    report = trainer(vision_warmup=1.0).train_step([batch])
    assert report["patch_box"] == (0.0, 0)


def test_weights_never_see_a_gradient_that_is_not_finite() -> None:
    model = trainer()
    model.network.patch_head.bias.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(PaliglassError, match="step 1: the gradient is not finite"):
        model.train_step([data()[0]])
    assert all(weight.isfinite().all() for weight in model.parameters.values())


def text_loss(report: dict[str, tuple[float, int]]) -> float:
    return mean({name: report[name] for name in report if not name.startswith("patch")})


def test_unpacked_rows_have_the_model_s_own_loss() -> None:
    model = trainer(vision_warmup=0.0, unpacked_share=1.0)
    pictures, prompts, answers = [], [], []
    for index in range(RECIPE.scenes):
        scene, examples = WORLD.sample(index, RECIPE.prompts)
        for example in examples[index % 2 :: 2]:  # every other one
            pictures.append(scene.image)
            prompts.append(example.prefix)
            answers.append(example.suffix)
    batch = PROCESSOR(prompts, pictures, suffix=answers)
    plain = PaliGemmaForConditionalGeneration(SMALL)
    plain.load_state_dict(model.model.state_dict())
    with torch.no_grad():
        expected = plain(**batch).loss
    assert text_loss(model.train_step([data()[0]])) == pytest.approx(expected.item(), rel=1e-4)


def test_prompts_in_one_row_have_the_losses_they_have_alone() -> None:
    dataset = SceneDataset(WORLD, PROCESSOR, RECIPE.prompts, GRID)
    samples = [dataset[i] for i in range(RECIPE.scenes)]

    def losses(some: slice) -> dict[str, tuple[float, int]]:
        batch = dataset.collate([(scene, rows[some]) for scene, rows in samples])
        return trainer(vision_warmup=0.0, unpacked_share=0.0).train_step([batch])

    report = losses(slice(None))
    alone = [losses(slice(i, i + 1)) for i in range(RECIPE.prompts)]
    for task in TASKS:
        totals = [sum(column) for column in zip(*(part[task] for part in alone), strict=True)]
        assert report[task] == pytest.approx(totals, rel=1e-4)


def rows(*lengths: tuple[int, int]) -> list[PromptRow]:
    """Rows of (prefix, suffix) tokens, ids 10, 11 …"""
    return [PromptRow(list(range(10, 10 + p + s)), p, task=1) for p, s in lengths]


def test_unpacked_rows_have_the_model_s_own_mask_and_positions() -> None:
    text = text_batch([rows((2, 2), (1, 3))], num_patches=3, packed=False)
    is_suffix = torch.tensor([[0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1, 1]])
    assert torch.equal(text.mask, prefix_lm_mask(is_suffix, torch.ones_like(is_suffix)))
    assert text.positions.tolist() == [list(range(1, 8))] * 2
    assert text.pictures.tolist() == [0, 0]
    assert text.labels.tolist() == [[-100, 12, 13, -100], [11, 12, 13, -100]]


def test_packed_prompts_see_the_picture_and_themselves() -> None:
    text = text_batch([rows((2, 1), (1, 2)), rows((1, 1))], num_patches=1, packed=True)
    assert text.ids.tolist() == [[10, 11, 12, 10, 11, 12], [10, 11, 0, 0, 0, 0]]
    assert text.positions[0].tolist() == [1, 2, 3, 4, 2, 3, 4]
    assert text.mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],  # the picture
        [1, 1, 1, 0, 0, 0, 0],  # a prefix of two
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],  # its suffix
        [1, 0, 0, 0, 1, 0, 0],  # the next prompt's prefix
        [1, 0, 0, 0, 1, 1, 0],
        [1, 0, 0, 0, 1, 1, 1],
    ]
    assert text.labels.tolist() == [
        [-100, 12, -100, 11, 12, -100],
        [11, -100, -100, -100, -100, -100],
    ]
    assert text.pictures.tolist() == [0, 1]


def test_prompts_too_long_for_a_row_go_on_in_another_behind_the_same_picture() -> None:
    half = ROW // 2
    scenes = [rows((half, 1), (half, 2), (9, 1), (1, ROW)), rows((2, 2))]
    text = text_batch(scenes, num_patches=2, packed=True)
    assert text.pictures.tolist() == [0, 0, 0, 1]
    assert text.ids.shape == (4, ROW + 1)
    kept = [ids[ids > 0].tolist() for ids in text.ids[:3]]
    given = sorted(token for row in scenes[0] for token in row.ids)
    assert sorted(token for row in kept for token in row) == given


def test_patches_know_the_smallest_box_around_them() -> None:
    scene, _ = WORLD.sample(0, prompts=1)
    boxes = patch_boxes(scene, GRID).numpy()
    labels = scene.patch_labels(GRID)
    assert np.array_equal(~np.isnan(boxes[:, 0]), labels > 0)
    expected = np.array(scene.objects[0].box) / 64
    assert np.allclose(boxes[labels > 0], expected)


def test_characters_are_named_cell_by_cell() -> None:
    """Two letters in a patch, which its one label would not tell apart."""
    classes = np.zeros((64, 64), np.uint16)
    a, b = (PATCH_CLASSES.index(f"character {letter}") for letter in "Ab")
    side = 64 // GRID
    classes[side : 2 * side, : side // 2] = a
    classes[side : 2 * side, side // 2 : side] = b
    classes[:side, :side] = PATCH_CLASSES.index("dog")
    scene = WorldScene(np.zeros((64, 64, 3), np.uint8), (), classes)
    dataset = SceneDataset(SimpleNamespace(patch_classes=PATCH_CLASSES), PROCESSOR, 0, GRID)
    [characters] = dataset.collate([(scene, [])]).characters
    first, second = (1 + CHARACTERS.index(letter) for letter in "Ab")
    assert characters.shape == (GRID**2, 8)
    assert characters[GRID].tolist() == [first, first, second, second] * 2
    assert characters.count_nonzero() == 8


def test_a_head_that_spells_rightly_has_no_loss_of_text() -> None:
    """Each of a patch's cells is scored by its own part of the head."""
    batch = data()[0]
    batch.characters[:] = torch.arange(1, 9)  # another character in every cell
    model = network(vision_warmup=1.0)
    _, before = model(batch, 0.0)
    with torch.no_grad():
        scores = model.patch_head.bias[-model.parts[-1] :].view(8, -1)
        scores[torch.arange(8), torch.arange(1, 9)] = 50.0
    loss, after = model(batch, 0.0)
    assert before["patch_text"][0] / before["patch_text"][1] > 3
    assert after["patch_text"][0] == pytest.approx(0.0, abs=1e-5)
    batch.characters[:] = batch.characters.flip(-1)
    wrong, _ = model(batch, 0.0)
    assert wrong > loss + 50
    wrong.backward()
    assert model.patch_head.weight.grad.abs().sum() > 0


def test_every_scene_is_seen_once_and_in_order() -> None:
    dataset = SceneDataset(WORLD, PROCESSOR, RECIPE.prompts, GRID)
    pixels = torch.cat([batch.pixels for batch in data(first_step=2)])
    expected = [dataset[i][0].image for i in range(2 * RECIPE.scenes, 8 * RECIPE.scenes)]
    assert np.array_equal(pixels.numpy(), np.stack(expected))


def test_scenes_are_learned_from_again_in_between_new_ones() -> None:
    recipe = dataclasses.replace(RECIPE, repeats=3)

    def seen(first_step: int) -> list[bytes]:
        some = batches(WORLD, PROCESSOR, recipe, GRID, first_step, workers=0)
        return [batch.pixels.numpy().tobytes() for batch in some]

    fresh = [batch.pixels.numpy().tobytes() for batch in data()]
    found = seen(0)
    assert found[::3] == fresh[:3]  # of eight steps
    for place, batch in enumerate(found):
        assert batch in fresh[: place // 3 + 1]
    assert len(set(found[4:6] + found[7:9])) > 1
    assert seen(0) == found
    assert seen(3)[0] == fresh[1]


def test_a_run_of_the_vision_tower_alone_composes_no_prompts() -> None:
    recipe = dataclasses.replace(RECIPE, vision_warmup=1.0)
    alone = list(batches(WORLD, PROCESSOR, recipe, GRID, 0, workers=0))
    assert all(batch.packed is batch.single is None for batch in alone)
    assert torch.equal(alone[0].pixels, data()[0].pixels)


def test_a_run_from_a_model_takes_its_tokenizer(tmp_path: Path) -> None:
    given = tiny_processor().tokenizer
    given.save(str(tmp_path / "tokenizer.json"))
    for folder in (tmp_path, None):  # then the run has its own
        found = run_tokenizer(tmp_path / "run.json", None, None, folder)
        assert found.get_vocab() == given.get_vocab()
