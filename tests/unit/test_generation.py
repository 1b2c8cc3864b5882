"""The loop: one pass of the vision tower, batches, ends, limits."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.tiny import GEMMA2, make_batch, row_alone, tiny_config, tiny_model
from torch import Tensor

from paliglass.errors import PromptError
from paliglass.generation import Completion, generate, generate_steps
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.sampling import Sampling

NEVER = 319  # an end of sequence that cannot be chosen: the id of <image>
ENDLESS = tiny_config(eos_token_id=NEVER)


def uncached_greedy(
    model: PaliGemmaForConditionalGeneration, batch: dict[str, Tensor], count: int
) -> list[int]:
    """Greedy decoding the slow way: the whole sequence anew for every token of one row."""
    ids, types = batch["input_ids"], torch.zeros_like(batch["input_ids"])
    for _ in range(count):
        with torch.inference_mode():
            logits = model(ids, batch["pixel_values"], token_type_ids=types).logits
        word = logits[:, -1:, : model.config.real_vocab_size].argmax(-1)
        ids, types = torch.cat((ids, word), 1), torch.cat((types, torch.ones_like(word)), 1)
    new: list[int] = ids[0, -count:].tolist()
    return new


@pytest.mark.parametrize("decoder", [{}, GEMMA2], ids=["gemma", "gemma2"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_says_what_each_row_says_alone_without_a_cache(
    decoder: dict[str, object], side: str
) -> None:
    model = tiny_model(tiny_config(eos_token_id=NEVER, **decoder))
    batch = make_batch(model.config, [3, 9, 6], side=side)
    together = generate(model, batch, 16)
    for row, completion in enumerate(together):
        alone = row_alone(batch, row, [1, 1, 1])
        assert completion.ids == uncached_greedy(model, alone, 16)
        [single] = generate(model, alone, 16)
        assert completion.ids == single.ids
        assert completion.log_probs == pytest.approx(single.log_probs, abs=1e-4)


def test_each_picture_goes_through_the_vision_tower_once() -> None:
    model = tiny_model(ENDLESS)
    seen: list[int] = []
    model.vision_tower.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    generate(model, make_batch(ENDLESS, [3, 5], pictures=[1, 2]), 12)
    assert seen == [3]


def test_every_token_goes_through_the_decoder_once() -> None:
    model = tiny_model(ENDLESS)
    lengths: list[int] = []
    model.language_model.model.layers[0].register_forward_hook(
        lambda _m, inputs, _o: lengths.append(inputs[0].shape[1])
    )
    batch = make_batch(ENDLESS, [5])
    generate(model, batch, 6)
    assert lengths == [batch["input_ids"].shape[1], 1, 1, 1, 1, 1]


def test_ready_features_stand_for_the_picture() -> None:
    model = tiny_model(ENDLESS)
    batch = make_batch(ENDLESS, [3, 5])
    with torch.inference_mode():
        features = model.get_image_features(batch["pixel_values"])
    ready = {k: v for k, v in batch.items() if k != "pixel_values"} | {"image_features": features}
    assert generate(model, ready, 8) == generate(model, batch, 8)


def test_the_picture_matters() -> None:
    model = tiny_model(ENDLESS)
    batch = make_batch(ENDLESS, [3])
    other = batch | {"pixel_values": -batch["pixel_values"]}
    assert generate(model, batch, 8)[0].ids != generate(model, other, 8)[0].ids


@pytest.mark.parametrize("ends", [1, 2])
def test_a_row_ends_at_its_own_end_of_sequence(ends: int) -> None:
    batch = make_batch(ENDLESS, [3, 9, 6])
    endless = [c.ids for c in generate(tiny_model(ENDLESS), batch, 20)]
    chosen = tuple(endless[row][4] for row in range(ends))
    config = tiny_config(eos_token_id=chosen if ends > 1 else chosen[0])
    for full, completion in zip(endless, generate(tiny_model(config), batch, 20), strict=True):
        places = [i for i, word in enumerate(full) if word in chosen]
        assert completion.ids == (full[: places[0]] if places else full)
        assert completion.ended == bool(places)
        assert len(completion.log_probs) == len(completion.ids)


def test_steps_stop_when_every_row_has_ended() -> None:
    batch = make_batch(ENDLESS, [3])
    words = generate(tiny_model(ENDLESS), batch, 20)[0].ids
    config = tiny_config(eos_token_id=words[6])
    steps = list(generate_steps(tiny_model(config), batch, 20))
    assert len(steps) == words.index(words[6]) + 1


def test_rows_of_padding_are_never_words() -> None:
    """The published tables have 64 rows more than there are words."""
    config = dataclasses.replace(tiny_config(vocab_size=340, eos_token_id=NEVER))
    model = tiny_model(config)
    with torch.no_grad():  # make the meaningless rows the likeliest
        model.language_model.lm_head.weight[319:] *= 20
    ids = torch.tensor([c.ids for c in generate(model, make_batch(config, [3, 4]), 20)])
    assert ids.max() < 319
    sampling = Sampling(temperature=2.0, seed=0)
    ids = torch.tensor([c.ids for c in generate(model, make_batch(config, [3, 4]), 20, sampling)])
    assert ids.max() < 319


def test_nothing_asked_nothing_said() -> None:
    batch = make_batch(ENDLESS, [3, 4])
    assert generate(tiny_model(ENDLESS), batch, 0) == [Completion([], [], False)] * 2


def test_the_answer_ends_where_the_models_length_does() -> None:
    batch = make_batch(ENDLESS, [4])  # 20 tokens with the picture
    config = tiny_config(eos_token_id=NEVER, max_position_embeddings=25)
    [completion] = generate(tiny_model(config), batch, 100)
    assert len(completion.ids) == 5
    assert not completion.ended


@pytest.mark.parametrize("length", [19, 20])
def test_a_prompt_that_leaves_no_room_is_refused(length: int) -> None:
    config = tiny_config(max_position_embeddings=length)
    with pytest.raises(PromptError, match=f"20 tokens.*fewer than {length}"):
        generate(tiny_model(config), make_batch(config, [4]), 5)


def test_sampling_repeats_with_its_seed() -> None:
    model, batch = tiny_model(ENDLESS), make_batch(ENDLESS, [3, 5])
    one, two, other = (
        generate(model, batch, 12, Sampling(temperature=1.5, seed=seed)) for seed in (5, 5, 6)
    )
    assert one == two
    assert one != other


def test_log_probabilities_are_the_models_own() -> None:
    model, batch = tiny_model(ENDLESS), make_batch(ENDLESS, [3])
    [completion] = generate(model, batch, 5, Sampling(temperature=2.0, top_k=5, seed=0))
    words = torch.tensor([completion.ids])
    ids = torch.cat((batch["input_ids"], words), 1)
    types = torch.zeros_like(ids)
    types[:, -5:] = 1
    with torch.inference_mode():
        logits = model(ids, batch["pixel_values"], token_type_ids=types).logits
    log_probs = logits[0, -6:-1, : model.config.real_vocab_size].log_softmax(-1)
    expected = log_probs.gather(-1, words[0][:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(completion.log_probs), expected, atol=1e-4, rtol=0)
