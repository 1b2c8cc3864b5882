"""Answers within a grammar: always whole, always readable, the same in batches and in one go."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tests.tiny import GEMMA2, noise_picture, tiny_model, tiny_processor, worded_config

from paliglass import PaliGemma
from paliglass.constrained import Allowed, Constraint
from paliglass.errors import PromptError
from paliglass.generation import Completion, Request, complete
from paliglass.pictures import PreparedPicture
from paliglass.sampling import GREEDY, Sampling
from paliglass.tasks.boxes import parse_boxes
from paliglass.tasks.grammar import (
    YES_NO,
    ChoiceGrammar,
    Grammar,
    NumberGrammar,
    ObjectGrammar,
    ObjectState,
)

PROCESSOR = tiny_processor()
EOS = PROCESSOR.eos_token_id
LOC = PROCESSOR.token_id("<loc0000>")
LABELS = ["dog", "dog house", "do", "Überraschung", "犬", "C++ (2.0)", "<loc0001>", "en cap", "d"]
PICTURES = [noise_picture(40 + 3 * i, 50, seed=i) for i in range(4)]


@pytest.fixture(scope="module", params=[{}, GEMMA2], ids=["gemma", "gemma2"])
def model(request: pytest.FixtureRequest) -> PaliGemma:
    return PaliGemma(tiny_model(worded_config(**request.param)), tiny_processor())


@pytest.fixture(scope="module")
def one() -> PaliGemma:
    return PaliGemma(tiny_model(worded_config()), tiny_processor())


def answer(boxes: list[tuple[tuple[int, ...], str]], codes: str = "") -> list[int]:
    """Ids as the processor writes a true answer for training, without `<eos>`."""
    text = " ; ".join(
        "".join(f"<loc{edge:04}>" for edge in edges) + f"{codes} {label}" for edges, label in boxes
    )
    return PROCESSOR.encode_suffix(text)[:-1]


def allowed(state: Constraint, room: int = 999) -> set[int]:
    choices = state.allowed(room)
    span = set(range(choices.low, choices.high)) - set(choices.excluded)
    return span | set(choices.ids)


def accepts(grammar: Grammar, ids: list[int], room: int = 999) -> bool:
    """Whether every token, and `<eos>` after the last, may come where it stands."""
    state: Constraint = grammar.start()
    for i, token in enumerate(ids):
        if token not in allowed(state, room - i):
            return False
        state = state.after(token)
    return len(ids) == room or EOS in allowed(state, room - len(ids))


def walk(grammar: Grammar, room: int, rng: random.Random) -> list[int]:
    """A random answer, edges small so that boxes repeat."""
    state: Constraint = grammar.start()
    ids: list[int] = []
    while len(ids) < room:
        options = sorted(allowed(state, room - len(ids)))
        assert options, ids
        if len(ids) and len(options) > 1 and rng.random() < 0.9:
            options = [token for token in options if token != EOS]
        edges = [token for token in options if LOC <= token < LOC + 1024]
        token = rng.choice([edges[0], edges[0], edges[-1]] if edges else options)
        if token == EOS:
            break
        ids.append(token)
        state = state.after(token)
    return ids


@given(st.integers(0, 10**9), st.integers(0, 60), st.booleans(), st.integers(1, len(LABELS)))
@example(
    69, 51, False, 2
)  # "dog" is free for a box that "dog house" was said of, with no room left
def test_every_answer_is_whole_and_read_as_it_was_said(
    seed: int, room: int, masks: bool, count: int
) -> None:
    rng = random.Random(seed)
    grammar = ObjectGrammar(PROCESSOR, rng.sample(LABELS, count), masks)
    ids = walk(grammar, room, rng)
    found = grammar.read(ids)
    assert len({(f.box, f.label) for f in found}) == len(found)  # nothing is said twice
    ends = [f.end for f in found]
    assert ends == [] or ends[-1] == len(ids)  # nothing is left over
    for f in found:
        assert f.box.x1 > f.box.x0
        assert f.box.y1 > f.box.y0
        assert f.label in grammar.labels
        assert f.codes is None if not masks else len(f.codes or ()) == 16
    labels = [f.label for f in found]
    if "<loc0001>" not in labels:  # which in a text looks like the token
        in_text = parse_boxes(PROCESSOR.decode(ids))
        assert [(f.label, f.box, f.codes) for f in in_text] == [
            (f.label, f.box, f.codes) for f in found
        ]


edge_pair = st.lists(st.integers(0, 1023), min_size=2, max_size=2, unique=True).map(sorted)


@given(st.lists(st.tuples(edge_pair, edge_pair, st.sampled_from(LABELS)), max_size=5))
def test_every_true_answer_is_allowed(things: list[tuple[list[int], list[int], str]]) -> None:
    """In the tokens that training has: a label's may depend on whether it is the last one."""
    boxes = {((y[0], x[0], y[1], x[1]), label) for y, x, label in things if label != "<loc0001>"}
    ordered = sorted(boxes)
    grammar = ObjectGrammar(PROCESSOR, LABELS)
    ids = answer(ordered)
    assert accepts(grammar, ids)
    assert [f.label for f in grammar.read(ids)] == [label for _, label in ordered]
    codes = "".join(f"<seg{i * 8 % 128:03}>" for i in range(16))
    assert accepts(ObjectGrammar(PROCESSOR, LABELS, masks=True), answer(ordered, codes))


def test_special_tokens_in_a_label_stay_text() -> None:
    grammar = ObjectGrammar(PROCESSOR, ["<loc0001>"])
    ids = [LOC, LOC, LOC + 9, LOC + 9, *PROCESSOR.encode_plain(" <loc0001>")]
    assert accepts(grammar, ids)
    assert grammar.read(ids)[0].label == "<loc0001>"


@pytest.mark.parametrize(
    "wrong",
    [
        [((5, 0, 5, 9), "dog")],  # no height
        [((0, 5, 9, 4), "dog")],  # right of its right edge
        [((1023, 0, 1023, 9), "dog")],
        [((0, 0, 9, 9), "cat")],  # not asked for
        [((0, 0, 9, 9), "dog h")],  # the beginning of a label
        [((0, 0, 9, 9), "dog"), ((0, 0, 9, 9), "dog")],  # said already
    ],
)
def test_nothing_else_is_allowed(wrong: list[tuple[tuple[int, ...], str]]) -> None:
    assert not accepts(ObjectGrammar(PROCESSOR, ["dog", "dog house"]), answer(wrong))


def test_the_same_box_may_have_another_label() -> None:
    grammar = ObjectGrammar(PROCESSOR, ["dog", "dog house"])
    both = [((0, 0, 9, 9), "dog"), ((0, 0, 9, 9), "dog house")]
    assert accepts(grammar, answer(both))
    assert accepts(grammar, answer([*both, ((0, 0, 9, 8), "dog")]))
    state = grammar.start()
    for token in [*answer(both), *PROCESSOR.encode_suffix(" ; ")[:-1], LOC, LOC, LOC + 9]:
        state = state.after(token)
    assert LOC + 9 not in allowed(state)  # both labels have been said
    assert LOC + 8 in allowed(state)


def test_the_last_corner_is_not_offered_when_its_one_box_is_said() -> None:
    grammar = ObjectGrammar(PROCESSOR, ["dog"])
    said = (((1022, 1022, 1023, 1023), 0),)
    assert LOC + 1022 not in allowed(ObjectState(grammar, said, (1022,)))
    assert LOC + 1021 in allowed(ObjectState(grammar, said, (1022,)))
    assert LOC + 1022 in allowed(ObjectState(grammar, (), (1022,)))
    bottom = tuple(((1021, 1022, bottom, 1023), 0) for bottom in (1022, 1023))
    assert LOC + 1022 not in allowed(ObjectState(grammar, bottom, (1021,)))
    assert LOC + 1022 in allowed(ObjectState(grammar, bottom[:1], (1021,)))
    assert allowed(ObjectState(grammar, bottom[:1], (1021, 1022))) == {LOC + 1023}


def test_near_the_limit_no_object_is_begun() -> None:
    grammar = ObjectGrammar(PROCESSOR, ["dog", "dog house"])
    house = answer([((0, 0, 9, 9), "dog house")])
    dog = answer([((0, 0, 9, 9), "dog")])
    assert allowed(grammar.start(), len(house) - 1) == {EOS}
    assert accepts(grammar, house, len(house))
    one = ObjectGrammar(PROCESSOR, ["dog"])
    state = one.start()
    for token in dog:
        state = state.after(token)
    again = len(PROCESSOR.encode_suffix(" ; ")) - 1 + len(dog)
    assert len(allowed(state, again)) == 2
    assert allowed(state, again - 1) == {EOS}


def test_forty_labels() -> None:
    labels = [f"thing {i}" for i in range(40)]
    grammar = ObjectGrammar(PROCESSOR, labels)
    ids = answer([((i, 0, i + 1, 9), label) for i, label in enumerate(labels)])
    assert accepts(grammar, ids)
    assert [f.label for f in grammar.read(ids)] == labels


def test_what_a_grammar_does_not_allow_is_not_read() -> None:
    grammar = ObjectGrammar(PROCESSOR, ["dog"])
    with pytest.raises(KeyError):
        grammar.read([EOS])
    with pytest.raises(KeyError):
        grammar.read(answer([((0, 0, 9, 9), "cat")]))


def test_choices_share_beginnings() -> None:
    grammar = ChoiceGrammar(PROCESSOR, ["dog", "do", "dog house", "dog"])
    for choice in ("dog", "do", "dog house"):
        ids = PROCESSOR.encode_suffix(choice)[:-1]
        assert accepts(grammar, ids)
        assert grammar.read(ids) == choice
    assert not accepts(grammar, PROCESSOR.encode_suffix("dog h")[:-1])
    with pytest.raises(KeyError):
        grammar.read(PROCESSOR.encode_suffix("dog h")[:-1])


@pytest.mark.parametrize("choices", [[], [""], ["yes", " "]])
def test_an_empty_choice_is_refused(choices: list[str]) -> None:
    with pytest.raises(PromptError, match="at least one choice"):
        ChoiceGrammar(PROCESSOR, choices)


def test_numbers_are_digits() -> None:
    grammar = NumberGrammar(PROCESSOR)
    assert accepts(grammar, PROCESSOR.encode_suffix("4207")[:-1])
    assert not accepts(grammar, [])
    assert not accepts(grammar, PROCESSOR.encode_suffix("4a")[:-1])


def run(
    model: PaliGemma,
    grammars: Sequence[Grammar | None],
    prompts: list[str],
    room: int = 60,
    sampling: Sampling = GREEDY,
    max_rows: int = 8,
) -> list[Completion]:
    """Every request is seeded by its place in the list."""
    pictures = [model.processor.prepare(PICTURES[i % len(PICTURES)]) for i in range(len(prompts))]
    requests = [
        Request(prompt, [picture], grammar and grammar.start(), sampling, i, room)
        for i, (prompt, picture, grammar) in enumerate(
            zip(prompts, pictures, grammars, strict=True)
        )
    ]
    return list(complete(model.model, model.processor, requests, max_rows))


def mixed(processor: Any) -> tuple[list[Grammar], list[str]]:
    grammars: list[Grammar] = [
        ObjectGrammar(processor, ["dog", "dog house"]),
        ObjectGrammar(processor, ["犬"], masks=True),
        ChoiceGrammar(processor, YES_NO),
        NumberGrammar(processor),
        ObjectGrammar(processor, LABELS),
        ChoiceGrammar(processor, ["the only answer"]),
    ]
    return grammars, ["detect dog ; dog house", "segment 犬", "a", "answer en how many", "b", "c"]


SAMPLINGS = [Sampling(), Sampling(temperature=1.5), Sampling(2.0, 5, 0.9)]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled", "filtered"])
def test_forced_tokens_in_one_go_change_nothing(
    model: PaliGemma, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    grammars, prompts = mixed(model.processor)
    lengths: list[int] = []
    handle = model.model.language_model.model.register_forward_hook(
        lambda _m, inputs, _o: lengths.append(inputs[0].shape[1])
    )
    fast = run(model, grammars, prompts, sampling=sampling)
    passes = len(lengths)
    lengths.clear()
    # Nothing is said to be forced: each token is chosen, and costs a step of its own.
    monkeypatch.setattr(Allowed, "forced", None)
    slow = run(model, grammars, prompts, sampling=sampling)
    handle.remove()
    assert {length for length in lengths if length < 16} == {1}  # a picture has 16 tokens
    assert passes < len(lengths)
    for one_go, one_by_one, grammar in zip(fast, slow, grammars, strict=True):
        if sampling == GREEDY:  # else forced tokens have used up random numbers
            assert one_go.ids == one_by_one.ids
            assert one_go.log_probs == pytest.approx(one_by_one.log_probs, abs=1e-3)
        assert accepts(grammar, one_go.ids, 60)
        assert accepts(grammar, one_by_one.ids, 60)


@pytest.mark.parametrize("sampling", SAMPLINGS[:2], ids=["greedy", "sampled"])
def test_rows_of_a_batch_say_what_they_say_alone(model: PaliGemma, sampling: Sampling) -> None:
    grammars, prompts = mixed(model.processor)
    together = run(model, grammars, prompts, sampling=sampling)
    assert len({tuple(c.ids) for c in together}) == len(together)
    alone = run(model, grammars, prompts, sampling=sampling, max_rows=1)
    for one, other in zip(alone, together, strict=True):
        assert one.ids == other.ids
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-3)


@pytest.mark.parametrize("masks", [False, True], ids=["detect", "segment"])
def test_decisions_are_the_uncached_models(one: PaliGemma, masks: bool) -> None:
    """Every token is the likeliest allowed one after a full pass over all that came before; edges
    are scored among the allowed, words of labels among all.
    """
    processor, network = one.processor, one.model
    grammar = ObjectGrammar(processor, ["dog", "dog house"], masks)
    [completion] = run(one, [grammar], ["detect dog"], room=40)
    assert len(completion.ids) > 10
    batch = processor(["detect dog"], [[PICTURES[0]]])
    start = batch["input_ids"].shape[1]
    ids = torch.cat((batch["input_ids"], torch.tensor([completion.ids])), 1)
    types = torch.zeros_like(ids)
    types[:, start:] = 1
    with torch.inference_mode():
        logits = network(ids, batch["pixel_values"], token_type_ids=types).logits[0, start - 1 : -1]
    state: ObjectState = grammar.start()
    for i, token in enumerate(completion.ids):
        options = sorted(allowed(state, 40 - i))
        assert token == options[int(logits[i][options].argmax())]
        pool = processor.word_logits(logits[i])
        if not state.allowed(40 - i).score_over_vocab:
            pool = logits[i][options]
        expected = float(logits[i][token] - pool.logsumexp(0))
        assert completion.log_probs[i] == pytest.approx(expected, abs=1e-3)
        state = state.after(token)


@pytest.mark.parametrize("text", [{}, GEMMA2], ids=["gemma", "gemma2"])
def test_the_head_for_some_words_is_the_heads(text: dict[str, Any]) -> None:
    head = tiny_model(worded_config(**text)).language_model
    hidden = torch.randn(3, 2, head.config.hidden_size, generator=torch.Generator().manual_seed(0))
    every = head.logits(hidden)
    rows = torch.tensor([3, 900, 5])
    torch.testing.assert_close(head.logits(hidden, rows), every[..., rows])


def test_in_a_box_only_location_rows_are_computed(one: PaliGemma) -> None:
    seen: list[int] = []
    original = one.model.language_model.logits

    def watched(hidden: torch.Tensor, token_ids: Any = None) -> torch.Tensor:
        logits = original(hidden, token_ids)
        seen.append(logits.shape[-1])
        return logits

    one.model.language_model.logits = watched  # type: ignore[method-assign]
    try:
        box = ObjectGrammar(PROCESSOR, ["dog"], masks=True)
        [done] = run(one, [box], ["segment dog"], 30, Sampling(1.0))
    finally:
        del one.model.language_model.logits
    assert len(done.ids) > 20
    # The first edge or the end; three more; the codes; then words, which are scored among all.
    assert seen[:4] == [1024, 1023, *seen[2:4]]
    assert max(seen[2:4]) < 1024
    assert seen[4:20] == [128] * 16


@pytest.mark.parametrize("masks", [False, True], ids=["detect", "segment"])
@pytest.mark.parametrize(("temperature", "count"), [(0.0, 600), (1.5, 200)])
def test_hundreds_of_random_pictures_give_as_many_readable_answers(
    masks: bool, temperature: float, count: int
) -> None:
    """From a model that knows nothing. The same is not true without the grammar."""
    model, processor = tiny_model(worded_config(), seed=5), tiny_processor()
    label_sets = [["dog"], ["dog", "dog house", "犬"], [f"thing {i}" for i in range(40)]]
    grammars = [ObjectGrammar(processor, labels, masks) for labels in label_sets]
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(count, 3, 56, 56, generator=generator) * 2 - 1
    sampling = Sampling(temperature)

    def requests(free: bool) -> list[Request]:
        return [
            Request(
                f"detect {' ; '.join(grammars[i % 3].labels[:3])}",
                [PreparedPicture(pixels[i], (56, 56))],
                None if free else grammars[i % 3].start(),
                sampling,
                i,
                64,
            )
            for i in range(count)
        ]

    objects = 0
    for i, done in enumerate(complete(model, processor, requests(False), 200)):
        found = grammars[i % 3].read(done.ids)
        parsed = parse_boxes(processor.decode(done.ids))
        assert [f.label for f in found] == [f.label for f in parsed]
        assert not done.ids or found[-1].end == len(done.ids)
        objects += len(found)
    assert objects > count / 2
    if not temperature:
        free = list(complete(model, processor, requests(True)[:100], 100))
        assert [c for c in free if c.ids and not parse_boxes(processor.decode(c.ids))]


def test_labels_and_choices_of_thousands_of_tokens_are_no_recursion() -> None:
    label = "ab" * 3000
    grammar = ObjectGrammar(PROCESSOR, [label])
    ids = answer([((0, 0, 9, 9), label)])
    assert accepts(grammar, ids, len(ids) + 9)
    choice = " ".join(f"word{i}" for i in range(900))
    words = ChoiceGrammar(PROCESSOR, [choice, "no"])
    assert words.read(PROCESSOR.encode_plain(choice)) == choice
    assert words.start().fair_budget == len(PROCESSOR.encode_plain(choice))


def test_gemma_like_splits() -> None:
    """Where " dog ; " and " dog" are written with other tokens, both are laid out."""
    paths = {"x": [[1, 2], [1, 3, 4]], "y": [[1, 2, 5], [6, 7]]}

    class Fake:
        eos_token_id = 0

        def token_id(self, token: str) -> int:
            return {"<loc0000>": 1000, "<seg000>": 3000}[token]

        def encode_plain(self, text: str) -> list[int]:
            last, middle = paths[text.split()[0]]
            return middle if text.endswith(" ; ") else last

    grammar = ObjectGrammar(Fake(), ["x", "y"])  # type: ignore[arg-type]
    box, other = [1000, 1000, 1005, 1005], [1001, 1000, 1005, 1005]
    for first, last in itertools.product("xy", "xy"):
        ids = [*box, *paths[first][1], *other, *paths[last][0]]
        state = grammar.start()
        for token in ids:
            assert token in allowed(state)
            state = state.after(token)
        assert 0 in allowed(state)
        assert [f.label for f in grammar.read(ids)] == [first, last]
