from __future__ import annotations

import hashlib
import pickle

import numpy as np
import pytest
from numpy.typing import NDArray
from workshop.world import PATCH_CLASSES, Scene, World, scenes
from workshop.world.art import Art
from workshop.world.concepts import CHARACTERS, COLOURS, CONCEPTS, SHAPES
from workshop.world.words import is_held_out

from paliglass.errors import PaliglassError

SIZE = 128


def same(one: Scene, other: Scene) -> bool:
    return (
        np.array_equal(one.image, other.image)
        and np.array_equal(one.classes, other.classes)
        and one.objects == other.objects
        and all(
            np.array_equal(a.mask, b.mask) for a, b in zip(one.objects, other.objects, strict=True)
        )
    )


def test_a_scene_depends_on_seed_split_and_index_alone(art: Art) -> None:
    world = World(art=art, seed=3)
    first = [world.sample(index) for index in range(20)]
    copy = pickle.loads(pickle.dumps(World(art=art, seed=3)))
    for index in reversed(range(20)):  # in another order, in another world
        scene, prompts = copy.sample(index)
        assert same(scene, first[index][0])
        assert prompts == first[index][1]
    assert not same(World(art=art, seed=4).scene(0), first[0][0])
    assert not same(World(art=art, seed=3, split="test").scene(0), first[0][0])


def test_scenes_and_prompts_stay_what_they_are(art: Art) -> None:
    """A seed's scenes are what trained models, logs and figures refer to.

    Words are left out of account: how wide they are is up to the version of FreeType.
    """
    digests = []
    for split in ("train", "test", "style"):
        digest = hashlib.sha256()
        world = World(art=art, seed=7, split=split)
        for index in range(60):
            scene, prompts = world.sample(index)
            if any(thing.kind in ("word", "document") for thing in scene.objects):
                continue
            things = [(t.kind, t.name, t.box) for t in scene.objects]
            digest.update(repr((split, index, things, prompts)).encode())
        digests.append(digest.hexdigest()[:8])
    assert digests == ["2cbf34dd", "bc9d8c2e", "2761d695"]


def test_validation_is_new_scenes_of_what_training_has(art: Art) -> None:
    train, validation = (World(art=art, split=split) for split in ("train", "validation"))
    assert not any(same(train.scene(index), validation.scene(index)) for index in range(10))
    words = [
        word.strip("!?.:,")
        for index in range(60)
        for thing in validation.scene(index).objects
        if thing.kind == "word" and thing.label[-1].isalpha()
        for word in thing.label.split()
        if word[0].isalpha()
    ]
    assert len(words) > 5
    assert not any(is_held_out(word) for word in words)


def test_an_unknown_split_is_refused(art: Art) -> None:
    with pytest.raises(PaliglassError, match="no split 'dev'"):
        World(split="dev", art=art)  # type: ignore[arg-type]


def test_scenes_keep_to_their_bounds(art: Art) -> None:
    world = World(art=art)
    kinds: set[str] = set()
    empty = 0
    for index in range(300):
        scene = world.scene(index)
        assert scene.image.shape == (SIZE, SIZE, 3)
        assert scene.image.dtype == np.uint8
        assert 0 <= len(scene.objects) <= 6
        assert sum(thing.kind == "word" for thing in scene.objects) <= 2
        empty += not scene.objects
        assert (scene.document is None) == all(t.kind != "document" for t in scene.objects)
        assert [t.centre for t in scene.objects] == sorted(t.centre for t in scene.objects)
        for thing in scene.objects:
            kinds.add(thing.kind)
            x0, y0, x1, y1 = thing.box
            assert 0 <= x0 < x1 <= SIZE
            assert 0 <= y0 < y1 <= SIZE
            assert 0.4 <= thing.visible <= 1
            assert (thing.colour in COLOURS) == (thing.kind == "shape")
            if thing.kind == "word":
                assert set(thing.label) <= {*CHARACTERS, " "}
                assert thing.label == thing.label.strip() != ""
                assert thing.visible >= 0.95
    assert kinds == {"sticker", "drawing", "shape", "word", "digit", "document"}
    assert 3 < empty < 40


def test_boxes_are_those_of_the_visible_pixels(art: Art, monkeypatch: pytest.MonkeyPatch) -> None:
    """On black, the discs' own colour channels tell what is on top, whatever the code says."""

    def black(
        rng: np.random.Generator, size: int, plain: bool = False
    ) -> tuple[NDArray[np.uint8], str]:
        return np.zeros((size, size, 3), np.uint8), "black"

    monkeypatch.setattr(scenes, "draw_ground", black)
    monkeypatch.setattr(scenes, "_overlap", lambda a, b: 0.0)  # let things hide one another
    world = World(art=art, split="test")  # in no other styles
    channels = {name: index % 3 for index, name in enumerate(CONCEPTS)}
    checked = hidden = soft = 0
    for index in range(600):
        scene = world.scene(index)
        if not scene.objects or any(thing.kind != "sticker" for thing in scene.objects):
            continue
        if len({channels[thing.label] for thing in scene.objects}) < len(scene.objects):
            continue
        for thing in scene.objects:
            rows, columns = np.nonzero(scene.image[..., channels[thing.label]] > 127)
            box = np.array((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
            # where two soft edges lie on one another, a pixel can go either way, and two at the
            # tip of the crescent that is left of a thing
            soft_pixels = (len(scene.objects) > 1) + (thing.visible < 0.6)
            assert np.abs(box - thing.box).max() <= soft_pixels
            shown = scene.image[..., channels[thing.label]] > 127
            # soft edges again: a few pixels around the rim
            assert (shown ^ scene.mask(thing)).sum() <= 0.04 * shown.sum()
            soft += bool((shown ^ scene.mask(thing)).any())
            checked += 1
            hidden += thing.visible < 1
    assert checked > 100
    assert hidden > 10
    assert soft < checked / 2


def test_masks_fill_their_boxes_and_never_overlap(art: Art) -> None:
    world = World(art=art)
    for index in range(100):
        scene = world.scene(index)
        for thing in scene.objects:
            x0, y0, x1, y1 = thing.box
            assert thing.mask.dtype == np.bool_
            assert thing.mask.shape == (y1 - y0, x1 - x0)
            touched = (thing.mask[0], thing.mask[-1], thing.mask[:, 0], thing.mask[:, -1])
            assert all(edge.any() for edge in touched)
            assert thing.mask.base is None  # a view would keep the whole picture's map in memory
        covered = np.sum([scene.mask(thing) for thing in scene.objects], axis=0)
        assert not scene.objects or covered.max() == 1


def test_patches_are_named_by_what_covers_them() -> None:
    classes = np.zeros((SIZE, SIZE), np.uint8)
    dog, cat = PATCH_CLASSES.index("dog"), PATCH_CLASSES.index("cat")
    classes[0:16, 0:16] = dog
    classes[16:32, 0:10] = cat  # the cat has the larger part of the patch below
    classes[16:32, 10:16] = dog
    classes[0:3, 16:32] = dog  # 3 of 16 rows: not enough
    scene = Scene(np.zeros((SIZE, SIZE, 3), np.uint8), (), classes)
    labels = scene.patch_labels(8)
    assert labels.dtype == np.int64
    assert labels.shape == (64,)
    assert {index: int(label) for index, label in enumerate(labels) if label} == {0: dog, 8: cat}
    assert scene.patch_labels(16).reshape(16, 16)[0, :2].tolist() == [dog, dog]
    assert scene.patch_labels(8, 16).reshape(8, 16)[1, :3].tolist() == [cat, dog, 0]


def test_patches_spell_the_word(art: Art) -> None:
    """Read from left to right, the characters under a word's row of patches are its own."""
    world = World(art=art, split="reading")
    words = 0
    for index in range(120):
        scene = world.scene(index)
        for thing in (t for t in scene.objects if t.kind == "word"):
            x0, y0, x1, y1 = thing.box
            if not thing.label.isupper():  # small letters may not reach the middle row
                continue
            ids = dict.fromkeys(scene.classes[(y0 + y1) // 2, x0:x1].tolist())
            spelt = [PATCH_CLASSES[i].removeprefix("character ") for i in ids if i]
            assert spelt == list(dict.fromkeys(thing.label))
            words += 1
    assert words > 20


def test_every_thing_has_a_class_of_its_own() -> None:
    assert len(set(PATCH_CLASSES)) == len(PATCH_CLASSES)
    assert len(PATCH_CLASSES) == 1 + len(CONCEPTS) + len(COLOURS) * len(SHAPES) + 10 + len(
        CHARACTERS
    )
