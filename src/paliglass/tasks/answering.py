"""A task: what is asked of the model about each picture, and what is made of its answers.

A task makes requests of pictures, and a typed result of the completions that come back. The Python
interface, the command line and the server run the same ones.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from numbers import Integral, Real
from typing import Any, Generic, TypedDict, TypeVar

import torch

from paliglass.constrained import Constraint
from paliglass.errors import PaliglassError, PromptError
from paliglass.generation import MAX_NEW_TOKENS, Completion, Request
from paliglass.modeling_mask_codec import MaskCodec
from paliglass.pictures import PreparedPicture
from paliglass.processing_paligemma import (
    IMAGE_TOKEN,
    LOCATION_TOKENS,
    SEGMENT_TOKENS,
    PaliGemmaProcessor,
)
from paliglass.sampling import Sampling
from paliglass.tasks.boxes import Box, ParsedBox, parse_boxes
from paliglass.tasks.confidence import CalibratedTask, Calibration, object_score, raw_score
from paliglass.tasks.grammar import ObjectGrammar, WordGrammar
from paliglass.tasks.masks import paste_mask
from paliglass.tasks.prompts import SPECIAL_WORD, segment_prompt
from paliglass.tasks.results import Answer, Detection, Found, Segment

__all__ = [
    "DetectTask",
    "GenerationOptions",
    "Options",
    "SegmentTask",
    "Task",
    "TextTask",
    "WordTask",
    "parse_answer",
    "parse_objects",
]

R = TypeVar("R")


class Options(TypedDict, total=False):
    """How answers are generated; see `GenerationOptions`, which these are the fields of."""

    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int | None
    batch_size: int
    allow_special_tokens: bool


@dataclass(frozen=True)
class GenerationOptions:
    """How answers are generated.

    max_new_tokens: the limit of an answer. temperature, top_k, top_p: see `Sampling`; greedy by
    default. seed: the same seed gives the same answers, however pictures are batched. batch_size:
    prompts that run together. allow_special_tokens: let `<loc0001>` and the like in a prompt be
    tokens, not text.

    Raises TypeError for what is no number, ValueError for a number that none of them can have.
    """

    max_new_tokens: int = MAX_NEW_TOKENS
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    batch_size: int = 8
    allow_special_tokens: bool = False

    def __post_init__(self) -> None:
        kinds: dict[str, type] = dict.fromkeys(("max_new_tokens", "batch_size", "seed"), Integral)
        for name, kind in (kinds | {"top_k": Integral, "top_p": Real, "temperature": Real}).items():
            value = getattr(self, name)
            may_lack = getattr(type(self), name) is None
            if isinstance(value, bool) or not isinstance(value, kind | None if may_lack else kind):
                what = "whole number" if kind is Integral else "number"
                raise TypeError(f"{name} is {value!r}; it must be a {what}")
        for name in ("max_new_tokens", "batch_size"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be 1 or more")
        if self.seed is not None and self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be 0 or more")
        _ = self.sampling

    @classmethod
    def of(cls, options: Options) -> GenerationOptions:
        """From keyword arguments. Raises TypeError naming one that there is none of."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise TypeError(f"there is no option {name!r}; the options are {', '.join(known)}")
        return cls(**options)

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p)

    def request(
        self,
        prompt: str,
        pictures: Sequence[PreparedPicture],
        number: int,
        constraint: Constraint | None = None,
    ) -> Request:
        """number: the request's among all of a job, by which it gets random numbers of its own.

        Raises PromptError for a prompt with `<image>` in it, whose letters would change the answer.
        """
        if IMAGE_TOKEN in prompt:
            raise PromptError(
                f"the prompt holds {IMAGE_TOKEN}; pictures get their places by themselves"
            )
        return Request(
            prompt,
            pictures,
            constraint,
            self.sampling,
            None if self.seed is None else (self.seed, number),
            self.max_new_tokens,
            self.allow_special_tokens,
        )


class Task(ABC, Generic[R]):
    """One question, to be asked about any number of pictures, or of groups of pictures."""

    requests_per_picture = 1

    @abstractmethod
    def requests(
        self, pictures: Sequence[PreparedPicture], options: GenerationOptions, number: int
    ) -> list[Request]:
        """What the model is asked about one group of pictures, the job's `number`-th."""

    @abstractmethod
    def result(self, pictures: Sequence[PreparedPicture], completions: Sequence[Completion]) -> R:
        """What is made of the answers to `requests`."""


class TextTask(Task[Answer]):
    """Any prompt that is answered in words.

    calibrated: whose calibration the score gets; None leaves it as it is: the geometric mean of the
    probabilities of the answer's tokens and its end.
    """

    def __init__(
        self,
        processor: PaliGemmaProcessor,
        prompt: str,
        calibration: Calibration,
        calibrated: CalibratedTask | None = None,
    ) -> None:
        self.processor, self.prompt = processor, prompt
        self.calibration, self.calibrated = calibration, calibrated

    def requests(
        self, pictures: Sequence[PreparedPicture], options: GenerationOptions, number: int
    ) -> list[Request]:
        return [options.request(self.prompt, pictures, number)]

    def result(
        self, pictures: Sequence[PreparedPicture], completions: Sequence[Completion]
    ) -> Answer:
        [done] = completions
        ending = [done.end_log_prob] if done.finish_reason == "stop" else []
        score = self.calibration.score(self.calibrated, raw_score([*done.log_probs, *ending]))
        return Answer(self.processor.decode(done.ids), score, done.finish_reason)


class WordTask(Task[Answer]):
    """A question whose answer is one of a closed set, or a number.

    The score is the probability of the answer among those that are allowed.
    """

    def __init__(self, processor: PaliGemmaProcessor, prompt: str, grammar: WordGrammar) -> None:
        self.processor, self.prompt, self.grammar = processor, prompt, grammar

    def requests(
        self, pictures: Sequence[PreparedPicture], options: GenerationOptions, number: int
    ) -> list[Request]:
        return [options.request(self.prompt, pictures, number, self.grammar.start())]

    def result(
        self, pictures: Sequence[PreparedPicture], completions: Sequence[Completion]
    ) -> Answer:
        [done] = completions
        score = math.exp(sum(done.log_probs) + done.end_log_prob)
        return Answer(self.grammar.read(done.ids), score, done.finish_reason)


class _ObjectTask(Task[R]):
    """What detection and segmentation share.

    free: the model writes what it will, and what can be read of it is kept. Coordinates refer to
    the first picture of a group.

    Raises TypeError, ValueError for a `min_score` that is none, PromptError for labels that hold
    words like <loc0001>.
    """

    def __init__(
        self,
        processor: PaliGemmaProcessor,
        calibration: Calibration,
        labels: Sequence[str],
        min_score: float = 0.0,
        free: bool = False,
    ) -> None:
        given: object = min_score
        if isinstance(given, bool) or not isinstance(given, Real):
            raise TypeError(f"min_score is {given!r}; it must be a number")
        if not 0 <= min_score <= 1:
            raise ValueError(f"min_score is {min_score}; it must lie in [0, 1]")
        for label in labels:
            if match := SPECIAL_WORD.search(label):
                raise PromptError(f"the label {label!r} holds {match[0]}, which no answer can say")
        self.processor, self.calibration = processor, calibration
        self.labels, self.min_score, self.free = list(labels), min_score, free

    def _scored(
        self, completion: Completion, grammar: ObjectGrammar, calibrated: CalibratedTask
    ) -> list[tuple[ParsedBox, float]]:
        objects = parse_objects(completion, self.processor, None if self.free else grammar)
        scored = ((parsed, self.calibration.score(calibrated, raw)) for parsed, raw in objects)
        return [(parsed, score) for parsed, score in scored if score >= self.min_score]


class DetectTask(_ObjectTask[Found[Detection]]):
    """Boxes of all that has one of the labels, asked for in one prompt.

    prompt: `detect_prompt(labels)`.
    """

    def __init__(
        self,
        processor: PaliGemmaProcessor,
        calibration: Calibration,
        labels: Sequence[str],
        prompt: str,
        min_score: float = 0.0,
        free: bool = False,
    ) -> None:
        super().__init__(processor, calibration, labels, min_score, free)
        self.prompt = prompt
        self.grammar = ObjectGrammar(processor, self.labels)

    def requests(
        self, pictures: Sequence[PreparedPicture], options: GenerationOptions, number: int
    ) -> list[Request]:
        constraint = None if self.free else self.grammar.start()
        return [options.request(self.prompt, pictures, number, constraint)]

    def result(
        self, pictures: Sequence[PreparedPicture], completions: Sequence[Completion]
    ) -> Found[Detection]:
        [done] = completions
        size = pictures[0].size
        found = (
            Detection(parsed.label, _in_pixels(parsed.box, size), score)
            for parsed, score in self._scored(done, self.grammar, "detect")
        )
        return Found(found, *size, done.finish_reason, pictures[0].source)


class SegmentTask(_ObjectTask[Found[Segment]]):
    """Boxes and masks, each label in a prompt of its own, as PaliGemma was trained to segment."""

    def __init__(
        self,
        processor: PaliGemmaProcessor,
        calibration: Calibration,
        labels: Sequence[str],
        codec: MaskCodec,
        min_score: float = 0.0,
        free: bool = False,
    ) -> None:
        super().__init__(processor, calibration, labels, min_score, free)
        self.codec = codec
        self.requests_per_picture = len(self.labels)
        self.grammars = [ObjectGrammar(processor, [label], masks=True) for label in self.labels]

    def requests(
        self, pictures: Sequence[PreparedPicture], options: GenerationOptions, number: int
    ) -> list[Request]:
        first = number * len(self.labels)
        return [
            options.request(
                segment_prompt(label),
                pictures,
                first + i,
                None if self.free else self.grammars[i].start(),
            )
            for i, label in enumerate(self.labels)
        ]

    def result(
        self, pictures: Sequence[PreparedPicture], completions: Sequence[Completion]
    ) -> Found[Segment]:
        size = pictures[0].size
        scored = [
            pair
            for done, grammar in zip(completions, self.grammars, strict=True)
            for pair in self._scored(done, grammar, "segment")
            if pair[0].codes is not None
        ]
        segments = _to_segments(scored, size, self.codec)
        was_cut = any(done.finish_reason == "length" for done in completions)
        return Found(segments, *size, "length" if was_cut else "stop", pictures[0].source)


def _to_segments(
    scored: Sequence[tuple[ParsedBox, float]], size: tuple[int, int], codec: MaskCodec
) -> list[Segment]:
    """Boxes with codes → masks of a picture of that size; all are decoded together."""
    if not scored:
        return []
    device = next(codec.parameters()).device
    codes = torch.tensor([parsed.codes for parsed, _ in scored], device=device)
    with torch.inference_mode():
        masks = codec.decode(codes).float().cpu().numpy()
    segments = []
    for (parsed, score), mask in zip(scored, masks, strict=True):
        box = _in_pixels(parsed.box, size)
        whole = paste_mask(mask, box, size[1], size[0])
        segments.append(Segment(parsed.label, box, whole, score))
    return segments


def parse_answer(
    text: str, size: tuple[int, int], mask_codec: MaskCodec | None = None, picture: Any = None
) -> Found[Any]:
    """A raw answer to `detect` or `segment`, of any PaliGemma anywhere → boxes and masks in pixels.

        parse_answer("<loc0256><loc0128><loc0768><loc0896> cat", (640, 480))

    Never raises for what the text holds: what is no whole box is passed over.

    Args:
        text: `<loc0000>` ×4, for masks `<seg000>` ×16, and a label, with ` ; ` between them.
        size: width and height of the upright picture.
        mask_codec: what turns codes into masks, as a loaded model's `mask_codec`, or
            `checkpoints.load_mask_codec("vae-oid.npz")`. Without it, or without such
            codes, objects are boxes only.
        picture: for `draw()` and notebooks.

    Scores are 1: a text does not tell how sure the model was.

    Raises PaliglassError for a size that no picture has.
    """
    if len(size) != 2 or not all(isinstance(side, Integral) and side > 0 for side in size):
        raise PaliglassError(f"size is {size!r}; give a picture's width and height in pixels")
    found: list[Detection | Segment] = []
    for parsed in parse_boxes(text):
        codes = parsed.codes
        if codes is None or mask_codec is None or max(codes) >= mask_codec.config.num_codes:
            found.append(Detection(parsed.label, _in_pixels(parsed.box, size), 1.0))
        else:
            found += _to_segments([(parsed, 1.0)], size, mask_codec)
    return Found(found, *size, picture=picture)


def parse_objects(
    completion: Completion, processor: PaliGemmaProcessor, grammar: ObjectGrammar | None
) -> list[tuple[ParsedBox, float]]:
    """The objects of an answer to `detect` or `segment`, each with its raw score.

    grammar: what the answer kept to; None for one that kept to nothing. Edges are shares of the
    picture.
    """
    ids, log_probs = completion.ids, completion.log_probs
    first, last = (processor.token_id(t) for t in (LOCATION_TOKENS[0], SEGMENT_TOKENS[-1]))

    def score(places: Sequence[int]) -> float:
        shape = [log_probs[i] for i in places if first <= ids[i] <= last]
        label = [log_probs[i] for i in places if not first <= ids[i] <= last]
        return object_score(shape, label)

    if grammar is not None:
        return [(found, score(range(found.start, found.end))) for found in grammar.read(ids)]
    parsed = parse_boxes(processor.decode(ids))
    if not parsed:
        return []
    ends = [len(processor.decode(ids[: i + 1])) for i in range(len(ids))]
    # An unfinished run of byte tokens decodes to more characters than the finished one.
    ends = list(accumulate(reversed(ends), min))[::-1]
    return [
        (found, score([i for i, end in enumerate(ends) if found.start < end <= found.end]))
        for found in parsed
    ]


def _in_pixels(box: Box, size: tuple[int, int]) -> Box:
    """A box in shares of a picture → in its pixels. size: width and height."""
    width, height = size
    return Box(box.x0 * width, box.y0 * height, box.x1 * width, box.y1 * height)
