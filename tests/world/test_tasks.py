from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paliglass.world import Scene, SceneObject, World
from paliglass.world.concepts import CONCEPTS, plural_of, with_article
from paliglass.world.sources import Art
from paliglass.world.tasks import caption, detection, examples, location_tokens

DETECTION = re.compile(r"<loc(\d{4})><loc(\d{4})><loc(\d{4})><loc(\d{4})> ([a-z]+(?: [a-z]+)?)")


def thing(label: str, x: int, *, colour: str | None = None, kind: str = "sticker") -> SceneObject:
    return SceneObject(kind, label, colour, (x, 32, x + 16, 64), 1.0)  # type: ignore[arg-type]


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
    assert all(re.fullmatch(r"[a-z]+", concept.name) for concept in CONCEPTS.values())
    assert len({plural_of(name) for name in CONCEPTS}) == len(CONCEPTS)
