"""The running batch: whoever is in it, a request's answer is its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import GEMMA2, noise_picture, tiny_model, tiny_processor, worded_config
from tokenizers import AddedToken
from torch import Tensor

from paliglass.errors import PaliglassError, PromptError
from paliglass.generation import (
    Completion,
    Event,
    Request,
    RunningBatch,
    complete,
    run,
)
from paliglass.lru_cache import LRUCache
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.sampling import Sampling
from paliglass.tasks.grammar import YES_NO, ChoiceGrammar, NumberGrammar, ObjectGrammar

PROCESSOR = tiny_processor()
NEVER = PROCESSOR.image_token_id  # an end of sequence that cannot be said
ENDLESS = worded_config(eos_token_id=NEVER)
PICTURES = [PROCESSOR.prepare(noise_picture(40 + 3 * i, 50, seed=i)) for i in range(6)]


def ask(prompt: str = "what?", *pictures: int, **options: Any) -> Request:
    return Request(prompt, [PICTURES[i] for i in pictures or (0,)], **options)


def answers(
    model: PaliGemmaForConditionalGeneration, requests: list[Request], max_rows: int = 8
) -> list[Completion]:
    return list(complete(model, PROCESSOR, requests, max_rows))


def batch_of(request: Request) -> dict[str, Tensor]:
    return PROCESSOR([request.prompt], [list(request.pictures)])


@torch.inference_mode()
def uncached_logits(
    model: PaliGemmaForConditionalGeneration, request: Request, ids: list[int]
) -> Tensor:
    """What a full pass says before each token of an answer, and after the last: n + 1 × V."""
    prompt = batch_of(request)["input_ids"]
    whole = torch.cat((prompt, torch.tensor([ids], dtype=torch.long)), 1)
    types = torch.zeros_like(whole)
    types[:, prompt.shape[1] :] = 1
    pixels = batch_of(request).get("pixel_values")
    logits = model(whole, pixels, token_type_ids=types).logits[0, prompt.shape[1] - 1 :]
    logits[:, NEVER] = -torch.inf
    return logits


@pytest.mark.parametrize("decoder", [{}, GEMMA2], ids=["gemma", "gemma2"])
def test_a_batch_says_what_each_row_says_without_a_cache(decoder: dict[str, Any]) -> None:
    model = tiny_model(worded_config(eos_token_id=NEVER, **decoder))
    requests = [ask(p, i, max_new_tokens=12) for i, p in enumerate(["a", "b c d", "e" * 40])]
    for request, done in zip(requests, answers(model, requests), strict=True):
        logits = uncached_logits(model, request, done.ids)[:-1]
        assert done.ids == logits.argmax(-1).tolist()
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(done.ids)[:, None])[:, 0]
        assert done.log_probs == pytest.approx(expected.tolist(), abs=1e-4)
        assert done.finish_reason == "length"


REQUESTS = st.builds(
    lambda prompt, pictures, kind, sampled, seed, limit: (
        prompt,
        tuple(pictures),
        kind,
        Sampling(1.5, 40, 0.95) if sampled else Sampling(),
        seed,
        limit,
    ),
    st.sampled_from(["a", "detect dog", "what is this, and what is that?", ""]),
    st.lists(st.integers(0, 5), min_size=0, max_size=2),
    st.sampled_from(["free", "free", "boxes", "masks", "choice", "number"]),
    st.booleans(),
    st.integers(0, 3),
    st.integers(26, 45),
)


def requests_of(some: list[tuple[Any, ...]]) -> list[Request]:
    starts = {
        "free": lambda: None,
        "boxes": ObjectGrammar(PROCESSOR, ["dog", "dog house"]).start,
        "masks": ObjectGrammar(PROCESSOR, ["dog"], masks=True).start,
        "choice": ChoiceGrammar(PROCESSOR, YES_NO).start,
        "number": NumberGrammar(PROCESSOR).start,
    }
    return [
        Request(prompt, [PICTURES[i] for i in pictures], starts[kind](), sampling, seed, limit)
        for prompt, pictures, kind, sampling, seed, limit in some
    ]


@settings(max_examples=20)
@given(
    some=st.lists(REQUESTS, min_size=2, max_size=7),
    max_rows=st.integers(1, 4),
    gemma2=st.booleans(),
)
def test_a_request_alone_is_the_request_in_any_company(
    some: list[tuple[Any, ...]], max_rows: int, gemma2: bool
) -> None:
    """Joining and leaving at any step: grammars, several pictures, padding and seeds mixed."""
    model = tiny_model(worded_config(**(GEMMA2 if gemma2 else {})), std=0.15)
    requests = requests_of(some)
    together = answers(model, requests, max_rows)
    for request, in_company in zip(requests, together, strict=True):
        [alone] = answers(model, [request])
        assert in_company.ids == alone.ids
        assert in_company.log_probs == pytest.approx(alone.log_probs, abs=1e-5)
        assert in_company.end_log_prob == pytest.approx(alone.end_log_prob, abs=1e-5)
        assert in_company.finish_reason == alone.finish_reason


def test_rows_leave_and_the_next_in_line_take_their_place() -> None:
    model = tiny_model(ENDLESS)
    limits = [2, 9, 3, 4, 2]
    requests = [ask(str(i), max_new_tokens=n) for i, n in enumerate(limits)]
    shapes: list[tuple[int, int]] = []
    layer = model.language_model.model.layers[0]
    layer.register_forward_hook(lambda _m, inputs, _o: shapes.append(inputs[0].shape[:2]))
    events = list(run(model, PROCESSOR, requests, max_rows=2))
    assert [sum(e.request is r for e in events) for r in requests] == limits
    assert [e.finish_reason for e in events].count("length") == len(limits)
    assert [rows for rows, tokens in shapes if tokens > 1] == [2, 1, 1, 1]
    # One place says 2 + 3 + 4 + 2 tokens, the other 9: eleven steps, in two of which all end.
    assert sum(tokens == 1 for _, tokens in shapes) == 11 - 2


def test_requests_are_taken_only_as_rows_become_free() -> None:
    taken: list[int] = []

    def endless() -> Iterator[Request]:
        for i in range(10**9):
            taken.append(i)
            yield ask(str(i), max_new_tokens=3)

    events = run(tiny_model(ENDLESS), PROCESSOR, endless(), max_rows=2)
    for _ in range(5):
        next(events)
    assert len(taken) == 2


def test_one_request_may_be_asked_several_times() -> None:
    request = ask(sampling=Sampling(1.5), max_new_tokens=6)
    done = answers(tiny_model(ENDLESS), [request] * 3)
    assert [len(answer.ids) for answer in done] == [6, 6, 6]
    assert len({tuple(answer.ids) for answer in done}) > 1  # without a seed, each its own


def test_no_row_is_refused() -> None:
    with pytest.raises(ValueError, match="max_rows is 0"):
        answers(tiny_model(ENDLESS), [ask()], 0)


def test_answers_come_in_the_order_of_the_requests() -> None:
    model = tiny_model(ENDLESS)
    limits = [9, 2, 5, 1, 3]
    done = answers(model, [ask(str(i), max_new_tokens=n) for i, n in enumerate(limits)], 3)
    assert [len(answer.ids) for answer in done] == limits


def test_a_picture_that_several_ask_about_goes_through_the_vision_tower_once() -> None:
    model = tiny_model(ENDLESS)
    seen: list[int] = []
    model.vision_tower.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    requests = [ask("a", 0, max_new_tokens=2), ask("b", 1, 0, max_new_tokens=5)]
    answers(model, [*requests, ask("c", 1, max_new_tokens=1), ask("d", 2, max_new_tokens=1)], 2)
    assert seen == [2, 1]


def test_features_are_kept_within_a_bound() -> None:
    batch = RunningBatch(tiny_model(ENDLESS), PROCESSOR, feature_bytes=3 * 16 * 48 * 4)
    for picture in range(6):
        batch.admit([ask("a", picture)])
    assert len(batch.features) == 3
    assert batch.features.num_bytes == 3 * 16 * 48 * 4


def all_events(batch: RunningBatch) -> list[Event]:
    events = []
    while len(batch):
        events += batch.step()
    return events


@pytest.mark.parametrize("decoder", [{}, GEMMA2], ids=["gemma", "gemma2"])
def test_a_prompt_asked_again_is_not_run_again_and_says_the_same(decoder: dict[str, Any]) -> None:
    """Alone, among others, and while its first asker is still speaking."""
    model = tiny_model(worded_config(eos_token_id=NEVER, **decoder))
    one, other = ask("a", 0, max_new_tokens=9), ask("bb", 1, max_new_tokens=9)
    expected = [done.ids for done in answers(model, [one, other])]
    batch = RunningBatch(model, PROCESSOR, prefix_bytes=1 << 20)
    assert batch.admit([one]) == [False]
    events = batch.step()
    prefills: list[int] = []
    model.language_model.model.layers[0].register_forward_hook(
        lambda _m, inputs, _o: prefills.append(len(inputs[0])) if inputs[0].shape[1] > 1 else None
    )
    again = ask("a", 0, max_new_tokens=9)
    assert batch.admit([again, other]) == [True, False]
    later = ask("a", 0, max_new_tokens=9)
    events += batch.step()
    assert batch.admit([later]) == [True]
    events += all_events(batch)
    assert prefills == [1]
    for request, ids in zip(
        [one, again, later, other], [*expected[:1] * 3, expected[1]], strict=True
    ):
        assert [e.token for e in events if e.request is request] == ids


def test_another_picture_or_prompt_is_not_taken_for_the_same() -> None:
    batch = RunningBatch(tiny_model(ENDLESS), PROCESSOR, prefix_bytes=1 << 20)
    asked = [ask("a", 0), ask("a", 1), ask("b", 0), ask("a", 0, 1), ask("a", 1, 0), ask("a", 0)]
    assert [batch.admit([request]) for request in asked] == [[False]] * 5 + [[True]]


def test_a_prompt_that_several_ask_at_once_is_run_once() -> None:
    model = tiny_model(ENDLESS)
    sampling = Sampling(1.5)
    several = [ask("a", sampling=sampling, seed=i, max_new_tokens=6) for i in range(3)]
    alone = [answers(model, [request])[0].ids for request in several]
    rows: list[int] = []
    model.language_model.model.layers[0].register_forward_hook(
        lambda _m, inputs, _o: rows.append(len(inputs[0]))
    )
    assert [done.ids for done in answers(model, several)] == alone
    assert rows == [1, 3, 3, 3, 3, 3]


def test_prompts_are_kept_within_a_bound() -> None:
    model = tiny_model(ENDLESS)
    whole = RunningBatch(model, PROCESSOR, prefix_bytes=1 << 20)
    whole.admit([ask("a")])
    size = whole.prefixes.num_bytes
    batch = RunningBatch(model, PROCESSOR, prefix_bytes=2 * size)
    for prompt in "abcb":
        batch.admit([ask(prompt)])
    assert batch.prefixes.num_bytes <= 2 * size
    assert [batch.admit([ask(prompt)]) for prompt in "bca"] == [[True], [True], [False]]
    none = RunningBatch(model, PROCESSOR)
    none.admit([ask("a")])
    assert len(none.prefixes) == 0


def test_what_is_let_go_of_was_used_longest_ago() -> None:
    cache: LRUCache[str, int] = LRUCache(10)
    for i, key in enumerate("abc"):
        cache.put(key, i, 4)
    assert cache["a"] == 0
    cache.trim()
    assert ("a" in cache, "b" in cache, "c" in cache) == (True, False, True)
    cache.put("a", 7, 1)
    assert (cache["a"], cache.num_bytes) == (7, 5)


def test_check_tells_of_a_request_what_admitting_it_would() -> None:
    model = tiny_model(worded_config(max_position_embeddings=100))
    batch = RunningBatch(model, PROCESSOR)
    assert batch.check(ask()) == batch_of(ask())["input_ids"].shape[1]
    for bad in (ask(max_new_tokens=0), ask("a" * 100)):
        with pytest.raises(PromptError) as checked:
            batch.check(bad)
        with pytest.raises(PromptError) as admitted:
            batch.admit([bad])
        assert str(checked.value) == str(admitted.value)


def test_alternatives_are_the_likeliest_tokens_of_a_full_pass() -> None:
    model = tiny_model(ENDLESS)
    batch = RunningBatch(model, PROCESSOR)
    request = ask(num_alternatives=3, sampling=Sampling(2.0), seed=1, max_new_tokens=5)
    batch.admit([request, ask("b", 1, max_new_tokens=4), ask("c", num_alternatives=1)])
    events = [e for e in all_events(batch) if e.request is request]
    log_probs = uncached_logits(model, request, [e.token for e in events])[:-1].log_softmax(-1)
    for event, row in zip(events, log_probs, strict=True):
        values, ids = row.topk(3)
        assert [token for token, _ in event.alternatives] == ids.tolist()
        assert [p for _, p in event.alternatives] == pytest.approx(values.tolist(), abs=1e-4)


def test_every_token_goes_through_the_decoder_once() -> None:
    model = tiny_model(ENDLESS)
    lengths: list[int] = []
    model.language_model.model.layers[0].register_forward_hook(
        lambda _m, inputs, _o: lengths.append(inputs[0].shape[1])
    )
    request = ask(max_new_tokens=6)
    answers(model, [request])
    assert lengths == [batch_of(request)["input_ids"].shape[1], 1, 1, 1, 1, 1]


@pytest.mark.parametrize("ends", [1, 2])
def test_a_row_ends_at_its_own_end_of_sequence(ends: int) -> None:
    requests = [ask(p, i, max_new_tokens=20) for i, p in enumerate(["a", "bb", "c d e"])]
    endless = [done.ids for done in answers(tiny_model(ENDLESS), requests)]
    chosen = tuple(endless[row][4] for row in range(ends))
    model = tiny_model(worded_config(eos_token_id=chosen if ends > 1 else chosen[0]))
    for full, done in zip(endless, answers(model, requests), strict=True):
        places = [i for i, word in enumerate(full) if word in chosen]
        assert done.ids == (full[: places[0]] if places else full)
        assert done.finish_reason == ("stop" if places else "length")
        assert len(done.log_probs) == len(done.ids)


def test_words_alone_are_said_and_all_of_the_tokenizers() -> None:
    """A table may have rows beyond the tokenizer's words; `<image>` is none; new words are."""
    processor = tiny_processor()
    processor.tokenizer.add_tokens([AddedToken("<new>")])
    new = processor.token_id("<new>")
    config = worded_config(eos_token_id=NEVER).replace(vocab_size=new + 20)
    model = tiny_model(config)
    with torch.no_grad():  # make what must not be said the likeliest
        model.language_model.lm_head.weight[NEVER] *= 20
        model.language_model.lm_head.weight[new + 1 :] *= 20
    for sampling in (Sampling(), Sampling(temperature=2.0)):
        request = ask(max_new_tokens=60, sampling=sampling, seed=0)
        [done] = complete(model, processor, [request])
        assert max(done.ids) <= new
        assert NEVER not in done.ids
    with torch.no_grad():
        model.language_model.lm_head.weight[new] = 0.02 * model.language_model.lm_head.weight[
            done.ids[0]
        ] + 3 * model.language_model.model.norm.weight.new_ones(48)
    assert any(new in c.ids for c in complete(model, processor, [ask(sampling=Sampling(5.0))] * 2))


def test_the_answer_ends_where_the_models_length_does() -> None:
    length = batch_of(ask())["input_ids"].shape[1]
    model = tiny_model(worded_config(eos_token_id=NEVER, max_position_embeddings=length + 5))
    [done] = answers(model, [ask(max_new_tokens=100)])
    assert len(done.ids) == 5
    assert done.finish_reason == "length"


@pytest.mark.parametrize("missing", [0, 1])
def test_a_prompt_that_leaves_no_room_is_refused(missing: int) -> None:
    length = batch_of(ask())["input_ids"].shape[1]
    model = tiny_model(worded_config(max_position_embeddings=length - missing))
    with pytest.raises(PromptError, match=f"{length} tokens.*fewer than {length - missing}"):
        answers(model, [ask()])


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(PromptError, match="max_new_tokens is 0"):
        answers(tiny_model(ENDLESS), [ask(max_new_tokens=0)])


def test_a_limit_that_would_choose_the_answer_is_refused() -> None:
    model = tiny_model(worded_config())
    choice = ChoiceGrammar(PROCESSOR, ["yes of course", "no"])
    needed = len(PROCESSOR.encode_plain("yes of course"))
    with pytest.raises(PromptError, match=f"may need {needed} tokens.*room for 2: raise it"):
        answers(model, [ask(constraint=choice.start(), max_new_tokens=2)])
    mask = ObjectGrammar(PROCESSOR, ["dog"], masks=True)
    with pytest.raises(PromptError, match="room for 20"):
        answers(model, [ask(constraint=mask.start(), max_new_tokens=20)])
    prompt = "detect " + " ; ".join(f"thing {i}" for i in range(139))
    length = len(PROCESSOR.encode_prefix(prompt, 1))
    narrow = tiny_model(worded_config(max_position_embeddings=length + 3))
    boxes = ObjectGrammar(PROCESSOR, ["dog"])
    with pytest.raises(PromptError, match="shorten the prompt"):
        answers(narrow, [Request(prompt, [PICTURES[0]], boxes.start())])


def test_a_choice_that_just_fits_is_whole_and_a_cut_list_says_so() -> None:
    model = tiny_model(worded_config())
    choice = ChoiceGrammar(PROCESSOR, ["dog house"])
    needed = len(PROCESSOR.encode_plain("dog house"))
    [done] = answers(model, [ask(constraint=choice.start(), max_new_tokens=needed)])
    assert (choice.read(done.ids), done.finish_reason) == ("dog house", "stop")
    boxes = ObjectGrammar(PROCESSOR, ["dog"])
    done = answers(
        model,
        [
            ask(constraint=boxes.start(), max_new_tokens=40, sampling=Sampling(1.0), seed=i)
            for i in range(20)
        ],
    )
    cut = [answer for answer in done if answer.finish_reason == "length"]
    assert cut
    assert all(len(boxes.read(answer.ids)) >= 2 for answer in cut)


def test_sampling_repeats_with_its_seed() -> None:
    model, sampling = tiny_model(ENDLESS), Sampling(temperature=1.5)
    one, two, other = (
        answers(model, [ask(seed=seed, sampling=sampling, max_new_tokens=12)])[0].ids
        for seed in (5, 5, (5, 1))
    )
    assert one == two
    assert one != other


def test_log_probabilities_are_the_models_own() -> None:
    model = tiny_model(ENDLESS)
    request = ask(sampling=Sampling(2.0, top_k=5), seed=0, max_new_tokens=5)
    [done] = answers(model, [request])
    log_probs = uncached_logits(model, request, done.ids)[:-1].log_softmax(-1)
    expected = log_probs.gather(-1, torch.tensor(done.ids)[:, None])[:, 0]
    assert done.log_probs == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize(
    ("temperature", "value"), [(0.0, torch.nan), (1.0, torch.nan), (0.5, torch.inf)]
)
def test_numbers_that_are_none_are_an_error_not_an_answer(
    constrained: bool, temperature: float, value: float
) -> None:
    model = tiny_model(worded_config())
    with torch.no_grad():
        model.language_model.model.layers[1].mlp.down_proj.weight[3, 3] = value
    choice = ChoiceGrammar(PROCESSOR, YES_NO).start() if constrained else None
    request = ask(constraint=choice, sampling=Sampling(temperature))
    with pytest.raises(PaliglassError, match=r"weight .*layers\.1\.mlp\.down_proj.* holds NaN"):
        answers(model, [request])


@pytest.mark.parametrize(
    ("largest", "said"),
    [
        (6e4, "^the model's numbers overflowed in float16: use bfloat16"),
        (7e4, r"^weight .* is too large for float16, or the checkpoint is broken: use bfloat16"),
    ],
)
def test_an_overflow_says_what_reaches_further(largest: float, said: str) -> None:
    model = tiny_model(worded_config())
    with torch.no_grad():
        for layer in model.language_model.model.layers:
            for matrix in (layer.mlp.down_proj.weight, layer.self_attn.o_proj.weight):
                matrix *= largest / matrix.abs().max()  # float16 ends at 65504
    model.half()
    with pytest.raises(PaliglassError, match=said):
        answers(model, [ask()])


def broken(request: Request) -> Request:
    """The same about a picture that no layer can make numbers of, as after an overflow."""
    [picture] = request.pictures
    return replace(request, pictures=[replace(picture, pixels=picture.pixels * torch.inf)])


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"sampling": Sampling(1.0), "seed": 3},
        {"num_alternatives": 2},
        {"constraint": ChoiceGrammar(PROCESSOR, YES_NO).start()},  # scored among the choices
        {"constraint": ObjectGrammar(PROCESSOR, ["dog"]).start(), "max_new_tokens": 24},
    ],
    ids=["greedy", "sampled", "alternatives", "choice", "boxes"],
)
def test_a_row_whose_numbers_overflow_fails_alone(how: dict[str, Any]) -> None:
    model = tiny_model(worded_config())
    requests = [ask(f"{i}", i, **{"max_new_tokens": 6, **how}) for i in range(4)]
    expected = answers(model, requests)
    requests[1] = broken(requests[1])
    found = list(complete(model, PROCESSOR, requests, 3, raises=False))
    assert "overflowed in float32" in str(found[1].error)
    for i in (0, 2, 3):
        assert (found[i].ids, found[i].error) == (expected[i].ids, None)
    with pytest.raises(PaliglassError, match="overflowed in float32"):
        answers(model, requests)


@pytest.mark.parametrize("step", [1, 2, 4])
def test_a_row_that_overflows_on_the_way_is_told_once_and_leaves(step: int) -> None:
    model = tiny_model(ENDLESS)
    good, bad = ask("a", max_new_tokens=6), ask("b", 1, max_new_tokens=6)
    [expected] = answers(model, [good])
    batch = RunningBatch(model, PROCESSOR)
    batch.admit([good, bad])
    events: list[Event] = []
    for _ in range(step):
        events += batch.step()
    with torch.inference_mode():
        batch._last[1] = torch.nan
    while len(batch):
        events += batch.step()
    assert [e.token for e in events if e.request is good] == expected.ids
    of_bad = [e for e in events if e.request is bad]
    assert [e.error is None for e in of_bad] == [True] * step + [False]
    assert [e.finish_reason is None for e in of_bad] == [True] * step + [False]


def test_a_cancelled_request_says_no_more_and_the_others_go_on() -> None:
    model = tiny_model(ENDLESS)
    kept, dropped = ask("a", max_new_tokens=6), ask("b", 1, max_new_tokens=6)
    [expected] = answers(model, [kept])
    batch = RunningBatch(model, PROCESSOR)
    batch.admit([kept, dropped])
    events = batch.step()
    batch.cancel(dropped)
    while len(batch):
        events += batch.step()
    assert [e.token for e in events if e.request is kept] == expected.ids
    assert sum(e.request is dropped for e in events) == 1


def test_rows_that_have_ended_do_not_stay_in_the_batch() -> None:
    model = tiny_model(ENDLESS)
    batch = RunningBatch(model, PROCESSOR)
    requests = [ask(str(i), max_new_tokens=n) for i, n in enumerate([2, 2, 2, 9])]
    batch.admit(requests)
    rows: list[int] = []
    model.language_model.model.layers[0].register_forward_hook(
        lambda _m, inputs, _o: rows.append(len(inputs[0]))
    )
    for _ in range(3):
        batch.step()
    batch.cancel(requests[-1])
    batch.step()
    assert rows == [4, 4, 1]  # three end in the second step
    assert batch._cache is None
