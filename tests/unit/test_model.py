"""The friendly object: lists in, lists out, in order, whatever the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tiny import noise_picture, tiny_model, tiny_processor, worded_config

from paliglass import PaliGemma, load
from paliglass.checkpoints import save_folder
from paliglass.errors import PictureError, PromptError
from paliglass.generation import Completion
from paliglass.tasks.results import Detection

PICTURES = [noise_picture(30 + 20 * i, 60, seed=i) for i in range(5)]


@pytest.fixture(scope="module")
def model() -> PaliGemma:
    return PaliGemma(tiny_model(worded_config()), tiny_processor())


def test_one_in_one_out_and_lists_in_lists_out(model: PaliGemma) -> None:
    short: dict[str, Any] = {"max_new_tokens": 4}
    for task in (model.caption, model.read):
        assert isinstance(task(PICTURES[0], **short), str)
        assert task([PICTURES[0]], **short) == [task(PICTURES[0], **short)]
    assert len(model.ask(PICTURES[:2], "what?", **short)) == 2
    assert isinstance(model.detect(PICTURES[0], "dog", **short), list)
    assert len(model.detect(PICTURES[:3], ["dog", "cat"], **short)) == 3


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_batches_change_nothing(model: PaliGemma, batch_size: int) -> None:
    alone = [model.caption(picture, max_new_tokens=6) for picture in PICTURES]
    assert len(set(alone)) > 1  # the pictures matter
    assert model.caption(PICTURES, max_new_tokens=6, batch_size=batch_size) == alone


def test_one_picture_takes_many_prompts(model: PaliGemma) -> None:
    prompts = ["cap en", "detect dog", "dog"]
    answers = model.generate(PICTURES[0], prompts, max_new_tokens=6)
    assert answers == [model.generate(PICTURES[0], p, max_new_tokens=6) for p in prompts]


def test_a_picture_asked_about_twice_is_looked_at_once(model: PaliGemma) -> None:
    seen: list[int] = []
    tower = model.model.vision_tower
    handle = tower.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    model.generate(PICTURES[0], ["a", "b", "c"], max_new_tokens=3)
    model.generate([PICTURES[0], PICTURES[1], PICTURES[0]], ["a", "b", "c"], max_new_tokens=3)
    handle.remove()
    assert seen == [1, 2]


def test_every_kind_of_picture_means_the_same(model: PaliGemma, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    PICTURES[0].save(path)
    answers = {
        model.caption(source, max_new_tokens=6)
        for source in (PICTURES[0], path, str(path), path.read_bytes(), np.asarray(PICTURES[0]))
    }
    assert len(answers) == 1


def test_several_pictures_serve_one_prompt(model: PaliGemma) -> None:
    both = model.generate([[PICTURES[0], PICTURES[1]]], ["what differs?"], max_new_tokens=8)
    swapped = model.generate([[PICTURES[1], PICTURES[0]]], ["what differs?"], max_new_tokens=8)
    assert len(both) == 1
    assert both != swapped


@pytest.mark.parametrize("seed", range(4))
def test_a_stream_adds_up_to_the_answer(model: PaliGemma, seed: int) -> None:
    options: dict[str, Any] = {"temperature": 1.5, "seed": seed, "max_new_tokens": 40}
    pieces = list(model.generate(PICTURES[0], "cap en", stream=True, **options))
    assert "".join(pieces) == model.generate(PICTURES[0], "cap en", **options)
    assert len(pieces) > 1


def test_sampling_does_not_depend_on_the_batch(model: PaliGemma) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "seed": 0, "max_new_tokens": 8}
    together = model.caption(PICTURES, **options)
    assert together == model.caption(PICTURES, batch_size=2, **options)
    assert together[0] == model.caption(PICTURES[0], **options)


def test_a_stream_of_many_is_refused(model: PaliGemma) -> None:
    with pytest.raises(PromptError, match="stream"):
        model.generate(PICTURES, "cap en", stream=True)


def test_numbers_that_do_not_match_are_refused(model: PaliGemma) -> None:
    with pytest.raises(PromptError, match="2 pictures for 3 prompts"):
        model.generate(PICTURES[:2], ["a", "b", "c"])


def test_nothing_in_nothing_out(model: PaliGemma) -> None:
    assert model.caption([]) == []
    assert model.detect([], "dog") == []


def test_a_broken_picture_is_named(model: PaliGemma, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"")
    with pytest.raises(PictureError, match=r"broken\.png: is empty"):
        model.caption([PICTURES[0], tmp_path / "broken.png"])


def test_boxes_come_in_pixels_of_the_upright_picture_with_scores(
    model: PaliGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = "<loc0000><loc0341><loc0682><loc1023> dog ; <loc0682><loc0000><loc1023><loc0341> cat"
    ids = model.processor.encode_suffix(answer)[:-1]
    cat = len(model.processor.encode_suffix(answer.split(" ; ")[0])) - 1
    log_probs = [0.0 if i < cat else float(np.log(0.25)) for i in range(len(ids))]
    monkeypatch.setattr(
        "paliglass.model.generate",
        lambda *_args, **_options: [Completion(ids, log_probs, ended=True)],
    )
    picture = noise_picture(300, 150)
    dog, cat_found = model.detect(picture, "dog ; cat", free=True)
    assert isinstance(dog, Detection)
    assert dog.label == "dog"
    assert dog.box == pytest.approx((100, 0, 300, 100))
    assert dog.score == pytest.approx(1)
    assert cat_found.box == pytest.approx((0, 100, 100, 150))
    assert cat_found.score == pytest.approx(0.25, rel=0.05)


def test_special_tokens_of_a_user_stay_text(model: PaliGemma) -> None:
    tokens: list[int] = []
    embed = model.model.language_model.model.embed_tokens
    handle = embed.register_forward_hook(lambda _m, inputs, _o: tokens.extend(inputs[0].flatten()))
    location = model.processor.tokenizer.token_to_id("<loc0012>")
    model.generate(PICTURES[0], "at <loc0012> ?", max_new_tokens=1)
    plain = [int(token) for token in tokens]
    tokens.clear()
    model.generate(PICTURES[0], "at <loc0012> ?", max_new_tokens=1, allow_special_tokens=True)
    handle.remove()
    assert location not in plain
    assert location in [int(token) for token in tokens]


def test_a_saved_model_answers_the_same(model: PaliGemma, tmp_path: Path) -> None:
    save_folder(model.model, tmp_path / "model", model.processor)
    again = load(tmp_path / "model", device="cpu")
    assert again.caption(PICTURES, max_new_tokens=8) == model.caption(PICTURES, max_new_tokens=8)
