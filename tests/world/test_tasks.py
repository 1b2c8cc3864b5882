from __future__ import annotations

import pickle
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from workshop.world import Scene, SceneObject, World
from workshop.world.art import Art
from workshop.world.concepts import COLOURS, CONCEPTS, TERMS, means, plural_of, with_article
from workshop.world.documents import Document
from workshop.world.scenes import Lettering
from workshop.world.tasks import (
    NOTHING,
    UNANSWERABLE,
    _main_colour,
    caption,
    detection,
    examples,
    location_tokens,
    segmentation,
    token_box,
    unknown_words,
)
from workshop.world.wordings import wordings

from paliglass.modeling_mask_codec import MaskCodec, MaskCodecConfig
from paliglass.tasks.masks import crop_mask

BOXES = re.compile(r"<loc(\d{4})><loc(\d{4})><loc(\d{4})><loc(\d{4})> (.+?)(?= ; <loc|$)")


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
                label = example.prefix.removeprefix("segment ")
                if label in TERMS:
                    assert example.suffix == segmentation(scene, label, codec)
                seen[bool(example.suffix)] += 1
    assert seen[True] > 10
    assert seen[False] > 2


def named(scene: Scene) -> list[str]:
    return [t.name for t in scene.objects if t.kind in ("sticker", "drawing", "shape")]


def terms_of(plural: str) -> list[str]:
    return [term for term, several in TERMS.items() if several == plural]


def asked(wording: str, text: str) -> dict[str, str] | None:
    """The slots of a wording that a question was made from, if it was."""
    pattern = re.escape(wording.removesuffix("?"))
    if "[" in wording:  # one of several, or nothing
        pattern = pattern.replace(r"\[", "(?:").replace(r"\|", "|").replace(r"\]", ")")
        pattern = pattern.replace(r"\ ", " *")
    for slot in re.findall(r"\\{(\w+)\\}", pattern):
        pattern = pattern.replace(f"\\{{{slot}\\}}", f"(?P<{slot}>.+?)", 1)
    pattern = pattern.replace("colour", "colou?r").replace("grey", "gr[ae]y")
    match = re.fullmatch(pattern, text, re.IGNORECASE)
    return match.groupdict() if match else None


def counted(prefix: str) -> str:
    """The plural in a question of how many; of several readings the one that is a term's."""
    text = prefix.removeprefix("answer en ").rstrip(" ?")
    apart = (("count more", False), ("count by another", False))
    kinds = (("count", False), ("count", True), *apart)
    found = [asked(line, text) for kind, held in kinds for line in wordings(kind, held)]
    plurals = [slots["many"].strip().lower().replace("gray", "grey") for slots in found if slots]
    plurals += [many.removeprefix("the ") for many in plurals]
    return next((many for many in plurals if terms_of(many)), plurals[0])


def laid_out(scene: Scene) -> dict[str, set[str]]:
    """What may be answered about the lines of a page, or of the only text."""
    if scene.document is not None:
        lines = scene.document.lines
    else:
        [lettering] = [t.lettering for t in scene.objects if t.kind == "word"]
        assert lettering is not None
        lines = lettering.lines
    words = re.findall(r"[^ ]*\w[^ ]*", " ".join(lines))
    return {
        "lines": {str(len(lines))},
        "words": {str(len(words))},
        "first word": {words[0].strip(".,!?:")},
        "last word": {words[-1].strip(".,!?:")},
        "nth line": {*lines[:3], lines[-1]},
    }


@pytest.mark.parametrize("split", ["train", "test", "wordings", "phrasings", "unknown"])
def test_every_answer_is_true(art: Art, split: str) -> None:
    """Reads each prompt and answer back and holds it against the scene's objects."""
    world = World(art=art, split=split)  # type: ignore[arg-type]
    seen: Counter[str] = Counter()
    for index in range(220):
        scene, prompts = world.sample(index, prompts=6)
        assert len({example.prefix for example in prompts}) == 6
        names = named(scene)
        texts = [t.label for t in scene.objects if t.kind == "word"]
        for example in prompts:
            assert "\n" not in example.prefix + example.suffix
            answer = example.suffix
            seen[example.kind] += 1
            if example.kind == "detect":
                labels = [x.strip() for x in example.prefix.removeprefix("detect ").split(";")]
                found = [label for *_, label in BOXES.findall(answer)]
                assert found == sorted(found, key=labels.index)
                assert set(found) <= set(labels)
                for label in labels:
                    if label in TERMS:
                        assert found.count(label) == sum(means(label, n) is True for n in names)
            elif example.kind == "ocr":
                lines = scene.document.lines if scene.document else ()
                assert sorted(answer.split()) == sorted(" ".join([*texts, *lines]).split())
            elif example.kind == "caption":
                assert answer == caption(scene)
            elif example.kind == "count":
                terms = terms_of(counted(example.prefix))
                counts = {sum(means(t, n) is True for n in names) for t in terms}
                assert int(answer) in counts or (not counts and answer == "0")
            elif example.kind == "total":
                assert int(answer) == len(scene.objects)
            elif example.kind == "what":
                assert (answer == NOTHING) == (not scene.objects) == (not example.answerable)
                parts = answer.split(", ")
                assert set(names) <= set(parts)
            elif example.kind == "colour":
                shapes = {t.colour for t in scene.objects}
                others = {_main_colour(scene, t) for t in scene.objects if not t.colour}
                assert answer in shapes | others or not example.answerable
            elif example.kind in ("words", "lines", "first word", "last word", "nth line"):
                assert answer in laid_out(scene)[example.kind]
            elif example.kind in ("text colour", "sign colour"):
                [text] = [t for t in scene.objects if t.kind == "word"]
                ink = np.array(COLOURS[answer])
                pixels = scene.image[scene.mask(text)].astype(int)
                assert example.kind == "sign colour" or np.abs(pixels - ink).max(axis=1).min() < 16
                assert answer in (text.lettering.ink, text.lettering.sign)  # type: ignore[union-attr]
            elif example.kind == "no fact" or example.kind == "off world":
                assert (answer, example.answerable) == (UNANSWERABLE, False)
            elif example.kind == "says":
                assert sorted(answer.split()) == sorted(" ".join(texts).split() or [NOTHING])
            elif example.kind == "number" and answer in texts:
                assert answer.isdigit()
            elif example.kind in ("digit", "number"):
                digits = [t.label for t in scene.objects if t.kind == "digit"]
                assert answer in digits or (answer == NOTHING and not digits)
            elif example.kind.startswith("fact"):
                assert scene.document is not None
                assert answer in scene.document.facts.values()
            if not example.answerable:
                assert answer in (NOTHING, UNANSWERABLE)
            if example.kind == "presence":
                seen[answer] += 1
    assert seen.keys() >= {"detect", "caption", "count", "presence", "what", "off world"}
    assert seen.keys() >= {"where", "total", "which kind", "says"}
    assert 0.5 < seen["yes"] / seen["no"] < 1.6 or split == "unknown"


def test_what_cannot_be_answered_is_half_of_the_split_of_the_unknown(art: Art) -> None:
    world = World(art=art, split="unknown")
    found = [e.answerable for i in range(150) for e in world.sample(i, prompts=6)[1]]
    assert 0.35 < found.count(False) / len(found) < 0.65
    empty = sum(not world.scene(i).objects for i in range(150))
    assert 0.35 < empty / 150 < 0.6


def test_nothing_is_asked_that_people_would_differ_about(art: Art) -> None:
    """A taxi is a car to some: beside a car, nobody is asked how many cars there are."""
    scene = scene_of(thing("taxi", 0), thing("car", 32), thing("dog", 64))
    for seed in range(20):
        for example in examples(scene, np.random.default_rng(seed), 12):
            if example.kind in ("count", "presence", "where", "detect"):
                assert not re.search(r"\b(a|any|the|many) cars?\b", example.prefix, re.IGNORECASE)
                assert not re.search(r"(detect|;) cars?( ;|$)", example.prefix, re.IGNORECASE)
    animals = scene_of(thing("eagle", 0), thing("rose", 32), thing("cow", 64))
    prompts = examples(animals, np.random.default_rng(0), 400)
    counts = {e.suffix for e in prompts if e.kind == "count" and "animals" in e.prefix}
    assert counts == {"2"}


def answers(scene: Scene, kind: str) -> set[str]:
    """All that is answered to questions of a kind."""
    prompts = examples(scene, np.random.default_rng(0), 400)
    return {example.suffix for example in prompts if example.kind == kind}


def painted(*things: tuple[SceneObject, tuple[int, int, int]]) -> Scene:
    """A scene on pale ground with each thing's pixels in a colour."""
    scene = scene_of(*(thing for thing, _ in things))
    scene.image[:] = (222, 236, 250)
    for thing, colour in things:
        scene.image[scene.mask(thing)] = colour
    return scene


@pytest.mark.parametrize("kind", ["caption", "describe", "count"])
def test_what_is_asked_comes_behind_answer_en_and_as_it_is(kind: str) -> None:
    """`PaliGemma.ask` says "answer en" before "describe the picture", too."""
    prompts = examples(scene_of(thing("dog", 0)), np.random.default_rng(0), 300)
    starts = Counter(e.prefix.startswith("answer en ") for e in prompts if e.kind == kind)
    assert min(starts[True], starts[False]) > 0


def test_the_colour_of_a_thing_is_what_most_of_it_has() -> None:
    car, dog = thing("car", 20), thing("dog", 60)
    scene = painted((car, COLOURS["red"]), (dog, COLOURS["green"]))
    x0, y0, x1, y1 = dog.box
    scene.image[y0 : (y0 + y1) // 2, x0:x1] = COLOURS["blue"]  # half of the dog: nobody can say
    prompts = examples(scene, np.random.default_rng(0), 400)
    told = {e.prefix: e.suffix for e in prompts if e.kind == "colour" and e.answerable}
    assert set(told.values()) == {"red"}
    assert not any("dog" in prefix.lower() for prefix in told)


def test_a_thing_in_the_colour_of_its_ground_has_none() -> None:
    """Such is a drawing of lines alone."""
    scene = painted((thing("car", 20), COLOURS["red"]))
    scene.image[:] = COLOURS["red"]
    assert "red" not in answers(scene, "colour")


def test_a_shape_is_asked_for_by_its_colour_beside_others() -> None:
    circle, star = (
        thing(shape, x, colour=colour, kind="shape")
        for shape, colour, x in (("circle", "red", 0), ("star", "blue", 40))
    )
    assert answers(scene_of(circle, star), "which shape") == {"circle", "star"}
    heart = thing("heart", 90, colour="red", kind="shape")
    assert answers(scene_of(circle, star, heart), "which shape") == {"star"}


def test_one_shapes_colour_is_asked_with_anothers_form() -> None:
    circle, square = (
        thing(shape, x, colour=colour, kind="shape")
        for shape, colour, x in (("circle", "yellow", 0), ("square", "green", 40))
    )
    prompts = examples(scene_of(circle, square), np.random.default_rng(0), 400)
    told = {
        name: Counter(
            e.suffix for e in prompts if e.kind == "presence" and name in e.prefix.lower()
        )
        for name in ("green circle", "green square")
    }
    assert {name: set(answers) for name, answers in told.items()} == {
        "green circle": {"no"},
        "green square": {"yes"},
    }
    assert min(count.total() for count in told.values()) > 3


def test_words_lines_and_their_colours() -> None:
    lettering = Lettering(("Fresh bread,", "DAILY!"), "blue", "white")
    sign = replace(thing("Fresh bread, DAILY!", 10, kind="word"), lettering=lettering)
    right = {
        "words": {"3"},
        "lines": {"2"},
        "first word": {"Fresh"},
        "last word": {"DAILY"},
        "nth line": {"Fresh bread,", "DAILY!"},
        "text colour": {"blue"},
        "sign colour": {"white"},
    }
    assert {kind: answers(scene_of(sign), kind) for kind in right} == right


def test_on_which_side_of_another_a_thing_lies() -> None:
    dog = replace(thing("dog", 0), box=(10, 80, 26, 112))
    cat = replace(thing("cat", 0), box=(90, 10, 106, 42))
    sides = {"above or below": ("above", "below"), "which side of": ("right", "left")}
    seen: Counter[str] = Counter()
    for example in examples(scene_of(dog, cat), np.random.default_rng(0), 400):
        text = example.prefix.removeprefix("answer en ").rstrip(" ?").replace("scene", "{pic}")
        for line in wordings(example.kind, False) if example.kind in sides else ():
            slots = asked(line, re.sub("picture|image|photo|drawing", "{pic}", text))
            if slots:
                is_cat = slots["one"].lower() in ("cat", "kitten")
                assert example.suffix == sides[example.kind][0 if is_cat else 1]
                seen[example.kind] += 1
    assert seen.keys() == sides.keys()


def test_a_document_is_asked_for_what_it_does_not_bear() -> None:
    page = Document(
        "form", ("FORM", "Age: 12", "Phone: 123 456"), {"age": "12", "phone": "123 456"}
    )
    scene = replace(scene_of(thing("form", 0, kind="document")), document=page)
    prompts = [e for e in examples(scene, np.random.default_rng(0), 300) if e.kind == "no fact"]
    assert {(e.suffix, e.answerable) for e in prompts} == {(UNANSWERABLE, False)}
    assert not any(re.search(r"phone|\bage\b|how old", e.prefix, re.IGNORECASE) for e in prompts)
    assert any("date" in e.prefix.lower() for e in prompts)


def test_terms() -> None:
    assert means("plane", "airplane") is True
    assert means("vehicle", "airplane") is True
    assert means("car", "taxi") is None
    assert means("star", "yellow star") is True
    assert means("blue star", "yellow star") is False
    assert means("dog", "cat") is False
    assert plural_of("mouse") == "mice"
    assert plural_of("plane") == "planes"


def test_two_pictures_are_asked_about_together(art: Art) -> None:
    world = World(art=art)
    seen: Counter[str] = Counter()
    for index in range(60):
        (first, second), prompts = world.pair(index, prompts=4)
        for example in prompts:
            seen[example.kind] += 1
            if example.kind == "two same":
                same = Counter(named(first)) == Counter(named(second))
                assert example.suffix == "no" or same
            elif example.kind == "two which":
                seen[example.suffix] += 1
            elif example.kind == "two count":
                assert int(example.suffix) <= len(named(first)) + len(named(second))
    assert seen.keys() >= {"two same", "two which", "two count", "two what", "two both"}
    assert seen.keys() >= {"the first", "the second", "neither"}


def test_examples_of_a_bare_word_still_come_in_any_number() -> None:
    scene = scene_of(thing("STOP", 10, kind="word"))
    assert len(examples(scene, np.random.default_rng(0), 30)) == 30
    assert len(examples(scene_of(), np.random.default_rng(0), 30)) == 30


def test_names_are_plain_and_plurals_differ_from_each_other() -> None:
    assert all(re.fullmatch(r"[a-zñ0-9]+([ -][a-z]+)*", name) for name in CONCEPTS)
    assert len({plural_of(name) for name in CONCEPTS}) == len(CONCEPTS)
    assert all(concept.doubtful.isdisjoint(concept.synonyms) for concept in CONCEPTS.values())
    icons = [icon for concept in CONCEPTS.values() for icon in concept.icons]
    assert len(set(icons)) == len(icons)
    assert not set(unknown_words(False)) & set(unknown_words(True))
    assert not {*unknown_words(False), *unknown_words(True)} & TERMS.keys()


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
