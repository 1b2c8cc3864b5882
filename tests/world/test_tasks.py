from __future__ import annotations

import pickle
import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from workshop.world import Scene, SceneObject, World
from workshop.world.concepts import CONCEPTS, plural_of, with_article
from workshop.world.sources import Art
from workshop.world.tasks import (
    caption,
    detection,
    examples,
    location_tokens,
    segmentation,
    token_box,
)

from paliglass.modeling_mask_codec import MaskCodec, MaskCodecConfig
from paliglass.tasks.masks import crop_mask

DETECTION = re.compile(r"<loc(\d{4})><loc(\d{4})><loc(\d{4})><loc(\d{4})> ([a-z-]+(?: [a-z-]+)*)")


def thing(label: str, x: int, *, colour: str | None = None, kind: str = "sticker") -> SceneObject:
    mask = np.tri(32, 16, x, dtype=bool)  # each place has an outline of its own
    box = (x, 32, x + 16, 64)
    return SceneObject(kind, label, colour, box, 1.0, mask)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def codec() -> MaskCodec:
    torch.manual_seed(0)
    return MaskCodec(MaskCodecConfig(width=8, embedding_dim=4)).eval()


def scene_of(*things: SceneObject) -> Scene:
    return Scene(np.zeros((128, 128, 3), np.uint8), things, np.zeros((128, 128), np.uint8))


@pytest.mark.parametrize(
    ("things", "text"),
    [
        ([thing("umbrella", 0)], "an umbrella"),
        ([thing("dog", 0), thing("cat", 20), thing("dog", 40)], "two dogs and a cat"),
        ([thing("fish", 0), thing("fish", 20), thing("fish", 40)], "three fish"),
        (
            [
                thing("circle", 0, colour="orange", kind="shape"),
                thing("STOP", 20, kind="word"),
                thing("7", 60, kind="digit"),
            ],
            "an orange circle, the word STOP and the digit 7",
        ),
    ],
)
def test_captions(things: list[SceneObject], text: str) -> None:
    assert caption(scene_of(*things)) == text


def test_detection_keeps_the_order_asked_and_skips_what_is_absent() -> None:
    scene = scene_of(thing("dog", 0), thing("apple", 32), thing("dog", 64))
    assert detection(scene, ["apple", "bus", "dog"]) == (
        "<loc0256><loc0256><loc0512><loc0384> apple ; "
        "<loc0256><loc0000><loc0512><loc0128> dog ; "
        "<loc0256><loc0512><loc0512><loc0639> dog"
    )
    assert detection(scene, ["bus"]) == ""


@given(st.lists(st.integers(0, 512), min_size=4, max_size=4), st.sampled_from([128, 224, 512]))
def test_locations_come_back_within_half_a_step(edges: list[int], size: int) -> None:
    x0, y0, x1, y1 = (min(edge, size) for edge in edges)
    tokens = re.findall(r"<loc(\d{4})>", location_tokens((x0, y0, x1, y1), size))
    back = [int(token) / 1023 * size for token in tokens]
    assert np.abs(np.array(back) - [y0, x0, y1, x1]).max() <= size * (0.5 / 64 + 0.5 / 1023)


def test_segmentation_follows_detection(codec: MaskCodec) -> None:
    scene = scene_of(thing("dog", 0), thing("apple", 32), thing("dog", 64))
    answer = segmentation(scene, "dog", codec)
    assert re.sub("(<seg\\d{3}>){16} ", " ", answer) == detection(scene, ["dog"])
    assert segmentation(scene, "bus", codec) == ""
    for thing_, part in zip((scene.objects[0], scene.objects[2]), answer.split(" ; "), strict=True):
        y0, x0, y1, x1 = (int(token) * 128 / 1023 for token in re.findall(r"<loc(\d{4})>", part))
        box = token_box(thing_.box, 128)
        assert box == pytest.approx((x0, y0, x1, y1))
        crop = crop_mask(scene.mask(thing_), box)
        codes = [int(token) for token in re.findall(r"<seg(\d{3})>", part)]
        assert codes == codec.encode(torch.from_numpy(crop)[None])[0].tolist()


def test_segmentation_is_asked_for_only_with_a_codec(art: Art, codec: MaskCodec) -> None:
    plain, world = World(art=art), pickle.loads(pickle.dumps(World(art=art, codec=codec)))
    seen: Counter[bool] = Counter()
    for index in range(80):
        assert not any(e.prefix.startswith("segment") for e in plain.sample(index)[1])
        scene, prompts = world.sample(index)
        assert np.array_equal(scene.image, plain.scene(index).image)
        for example in prompts:
            if example.prefix.startswith("segment "):
                name = example.prefix.removeprefix("segment ")
                present = name in [t.name for t in scene.objects]
                assert example.suffix == segmentation(scene, name, codec)
                assert bool(example.suffix) == present
                seen[present] += 1
    assert seen[True] > 10
    assert seen[False] > 2


def test_every_answer_is_true(art: Art) -> None:
    """Reads each prompt and answer back and holds it against the scene's objects."""
    world = World(art=art, split="test")
    seen: Counter[str] = Counter()
    for index in range(300):
        scene, prompts = world.sample(index, prompts=5)
        assert len({example.prefix for example in prompts}) == 5
        names = [t.name for t in scene.objects if t.kind in ("sticker", "shape")]
        for prefix, suffix in ((example.prefix, example.suffix) for example in prompts):
            task, _, rest = prefix.partition(" ")
            assert "\n" not in prefix + suffix
            if task == "detect":
                found = DETECTION.findall(suffix)
                labels = rest.split(" ; ")
                wanted = [label for label in labels for _ in range(names.count(label))]
                assert [label for *_, label in found] == wanted
                for label in set(wanted):
                    lefts = [int(x0) + int(x1) for _, x0, _, x1, name in found if name == label]
                    # centres are sorted before they are rounded
                    assert all(b - a > -40 for a, b in pairwise(lefts))
                seen["detect" if wanted else "detect nothing"] += 1
            elif task == "ocr":
                assert suffix == "".join(t.label for t in scene.objects if t.kind == "word")
                seen["ocr"] += 1
            elif task == "caption":
                assert suffix == caption(scene)
                seen["caption"] += 1
            elif match := re.fullmatch(r"en how many (.+) are there\?", rest):
                assert suffix == str(sum(plural_of(name) == match[1] for name in names))
                seen["how many"] += 1
            elif match := re.fullmatch(r"en is there (.+)\?", rest):
                present = match[1] in {with_article(name) for name in names}
                assert suffix == ("yes" if present else "no")
                seen[suffix] += 1
            elif match := re.fullmatch(r"en what colour is the (.+)\?", rest):
                assert {t.colour for t in scene.objects if t.label == match[1]} == {suffix}
                seen["colour"] += 1
            elif rest == "en what digit is it?":
                assert suffix in [t.label for t in scene.objects if t.kind == "digit"]
                seen["digit"] += 1
            else:
                assert rest.startswith("en what is ")
                short = [t.kind if t.kind in ("word", "digit") else t.name for t in scene.objects]
                assert set(suffix.split(", ")) <= set(short)
                seen[" ".join(rest.split()[2:4])] += 1
    assert min(seen.values()) > 5
    assert seen.keys() >= {"detect nothing", "ocr", "is on", "is at", "is in", "colour", "digit"}
    assert 0.7 < seen["yes"] / seen["no"] < 1.4


def test_examples_of_a_bare_word_still_come_in_any_number() -> None:
    scene = scene_of(thing("STOP", 10, kind="word"))
    assert len(examples(scene, np.random.default_rng(0), 8)) == 8


def test_names_are_plain_and_plurals_differ_from_each_other() -> None:
    assert all(re.fullmatch(r"[a-z]+([ -][a-z]+)*", concept.name) for concept in CONCEPTS.values())
    assert len({plural_of(name) for name in CONCEPTS}) == len(CONCEPTS)


def test_articles_follow_the_sound() -> None:
    assert [with_article(name) for name in ("umbrella", "unicorn", "hourglass", "horse")] == [
        "an umbrella",
        "a unicorn",
        "an hourglass",
        "a horse",
    ]


def test_a_mixture_asks_a_task_more_often(art: Art) -> None:
    def share(mixture: dict[str, float]) -> float:
        world = World(art=art, mixture=mixture)
        asked = [e.prefix for i in range(60) for e in world.sample(i, prompts=3)[1]]
        return sum(prefix.startswith("detect ") for prefix in asked) / len(asked)

    assert share({"detect": 20.0}) > 2 * share({}) > 4 * share({"detect": 0.05})
