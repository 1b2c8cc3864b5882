"""The one way from examples to scores: examples → questions → predictions → `metrics.score`.

`paliglass eval`, the validation of a fine-tuning run and the workshop's scores take it, so that a
prediction that is right in one of them is right in all: the same prompt, location tokens in it
included; the same greedy decoding within the same grammar; a limit that every right answer fits.
"""

from __future__ import annotations

import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from paliglass.data.example import OBJECT_TASKS, SPECIAL_TOKENS_IN_PREFIX, Example
from paliglass.errors import PaliglassError, PictureError
from paliglass.evaluation.cases import Case, Question
from paliglass.generation import Completion, Request
from paliglass.model import PaliGemma
from paliglass.modeling_mask_codec import MaskCodec
from paliglass.pictures import Picture, PreparedPicture
from paliglass.processing_paligemma import PaliGemmaProcessor
from paliglass.tasks.answering import parse_objects
from paliglass.tasks.boxes import parse_boxes
from paliglass.tasks.confidence import raw_score
from paliglass.tasks.grammar import ObjectGrammar
from paliglass.tasks.prompts import label_key, one_label, split_labels

__all__ = [
    "FEWEST_TOKENS",
    "allowed_labels",
    "answer",
    "longest_reference",
    "refuse_unscorable",
    "remarks",
    "to_questions",
]

FEWEST_TOKENS = 128  # room for a wrong answer to show how wrong it is


def to_questions(examples: Iterable[Example]) -> list[Question]:
    """One question for each prompt about the same pictures, with all that is right, in the first
    one's place.

    A set of captions has several entries for a picture; VQA has ten answers in one.
    """
    asked: dict[tuple[object, str], list[Example]] = defaultdict(list)
    for example in examples:
        asked[example.asked].append(example)
    return [
        Question(
            some[0].images,
            some[0].prefix,
            tuple(text for e in some for text in e.answers or (e.suffix,)),
            ignored=some[0].ignored,
            where=some[0].where,
        )
        for some in asked.values()
    ]


def refuse_unscorable(questions: Iterable[Question], codec: MaskCodec | None) -> None:
    """Raises PaliglassError for `segment` without a mask codec."""
    if codec is None and any(question.task == "segment" for question in questions):
        raise PaliglassError("scoring `segment` takes a model with a mask codec (mask_codec=)")


def longest_reference(model: PaliGemma, questions: Iterable[Question]) -> int:
    """The tokens of the longest right answer."""
    references = {reference for q in questions for reference in q.references}
    lengths = (len(model.processor.encode_suffix(reference)) for reference in references)
    return max(lengths, default=0)


def allowed_labels(questions: Iterable[Question]) -> dict[str, tuple[str, ...] | None]:
    """Prompt of `detect` or `segment` → the labels that an answer may have; None: any words.

    They are the prompt's, unless a right answer to it has others, as `detect all objects` has: then
    all that the right answers of the data set have, for those of one picture would give it away.
    """
    named: dict[str, dict[str, str]] = defaultdict(dict)
    for question in questions:
        if question.task in OBJECT_TASKS:
            found = named[question.prefix]
            for thing in (t for reference in question.references for t in parse_boxes(reference)):
                found.setdefault(label_key(thing.label), one_label(thing.label))
    everything = {key: label for found in named.values() for key, label in found.items()}
    allowed: dict[str, tuple[str, ...] | None] = {}
    for prefix, found in named.items():
        task, _, labels = prefix.partition(" ")
        asked = split_labels(labels, task)
        if "" in found:
            allowed[prefix] = None
        elif found.keys() <= {label_key(label) for label in asked}:
            allowed[prefix] = tuple(asked)
        else:
            allowed[prefix] = tuple(label for label in everything.values() if label)
    return allowed


def answer(
    model: PaliGemma,
    questions: Sequence[Question],
    *,
    free: bool = False,
    batch_size: int = 32,
    max_new_tokens: int | None = None,
    among: Sequence[Question] | None = None,
    progress: Callable[[int], object] = lambda done: None,
    complain: Callable[[str], object] | None = None,
) -> list[Case]:
    """Answers each question greedily; one whose pictures cannot be read is left out.

    Where the model's numbers overflow, its answer is empty (`Case.failure`): it counts as wrong.
    Questions about one picture should follow each other: it is then looked at once.

    Args:
        free: let `detect` and `segment` say what they will, rather than hold them to their grammar
            and to `allowed_labels`.
        max_new_tokens: the limit of an answer, which one object always fits; by default the longest
            right answer and half as much again, at least 128.
        among: the data set that the questions are of, which tells the labels and the limit; by
            default they are all of it.
        progress: told how many questions are done.
        complain: told what is left out or has failed, so that the others are answered.

    Raises the first of these errors where `complain` is None: PictureError for a picture,
    PaliglassError for an overflow.
    """
    data = questions if among is None else among
    limit = max_new_tokens or max(FEWEST_TOKENS, longest_reference(model, data) * 3 // 2)
    grammars = _Grammars(model.processor, {} if free else allowed_labels(data))
    pictures = _Pictures(model.processor)
    under_way: deque[tuple[Question, ObjectGrammar | None]] = deque()
    left_out = 0

    def tell(question: Question, error: PaliglassError) -> None:
        message = f"{question.where}: {error}" if question.where else str(error)
        if complain is None:
            raise type(error)(message)
        complain(message)

    def requests() -> Iterator[Request]:
        nonlocal left_out
        for question in questions:
            try:
                prepared = [pictures.prepare(picture) for picture in question.pictures]
            except PictureError as error:
                tell(question, error)
                left_out += 1
                continue
            grammar = grammars.of(question)
            under_way.append((question, grammar))
            yield _request(question, prepared, grammar, limit)

    cases = []
    for done in model.complete(requests(), batch_size, raises=False):
        question, grammar = under_way.popleft()
        if done.error is None:
            cases.append(_case(model.processor, question, grammar, done))
        else:
            tell(question, done.error)
            cases.append(Case(question, "", failure=str(done.error)))
        progress(len(cases) + left_out)
    return cases


def remarks(cases: Sequence[Case]) -> list[str]:
    """What a score does not tell: how many answers ended at the limit, and how many failed."""
    counts = {
        "cut by the limit": sum(case.is_cut for case in cases),
        "overflowed and count as wrong": sum(bool(case.failure) for case in cases),
    }
    return [f"{n} of {len(cases)} answers {what}" for what, n in counts.items() if n]


def _request(
    question: Question,
    pictures: Sequence[PreparedPicture],
    grammar: ObjectGrammar | None,
    limit: int,
) -> Request:
    state = None if grammar is None else grammar.start()
    return Request(
        question.prefix,
        pictures,
        state,
        max_new_tokens=limit if state is None else max(limit, state.fair_budget),
        allow_special_tokens=SPECIAL_TOKENS_IN_PREFIX,
    )


def _case(
    processor: PaliGemmaProcessor,
    question: Question,
    grammar: ObjectGrammar | None,
    done: Completion,
) -> Case:
    is_cut = done.finish_reason == "length"
    text = processor.decode(done.ids)
    if question.task in OBJECT_TASKS:
        objects = tuple(parse_objects(done, processor, grammar))
        score = min((raw for _, raw in objects), default=1.0)
        return Case(question, text, score, objects, is_cut)
    ending = [] if is_cut else [done.end_log_prob]
    return Case(question, text, raw_score([*done.log_probs, *ending]), (), is_cut)


class _Grammars:
    """The grammar of each question, one for all that may have the same labels."""

    def __init__(
        self, processor: PaliGemmaProcessor, allowed: Mapping[str, tuple[str, ...] | None]
    ) -> None:
        self._processor, self._allowed = processor, allowed
        self._known: dict[tuple[str, ...], ObjectGrammar] = {}

    def of(self, question: Question) -> ObjectGrammar | None:
        labels = self._allowed.get(question.prefix)
        if labels is None:
            return None
        key = (question.task, *labels)
        if key not in self._known:
            masks = question.task == "segment"
            self._known[key] = ObjectGrammar(self._processor, labels, masks=masks)
        return self._known[key]


class _Pictures:
    """Prepares pictures, each once for prompts that follow each other."""

    KEPT = 16

    def __init__(self, processor: PaliGemmaProcessor) -> None:
        self._processor = processor
        self._known: dict[str, PreparedPicture] = {}

    def prepare(self, picture: Picture) -> PreparedPicture:
        if not isinstance(picture, os.PathLike):
            return self._processor.prepare(picture)
        key = os.fspath(picture)
        if key not in self._known:
            self._known[key] = self._processor.prepare(picture)
            if len(self._known) > self.KEPT:
                del self._known[next(iter(self._known))]
        return self._known[key]
