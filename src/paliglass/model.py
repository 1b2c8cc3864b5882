"""PaliGemma in one friendly object: pictures and questions in, words and boxes out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paliglass.checkpoints.big_vision import load_big_vision
from paliglass.checkpoints.folder import load_model, load_tokenizer
from paliglass.checkpoints.hub import locate
from paliglass.checkpoints.processor import load_processor, make_processor
from paliglass.errors import CheckpointError, PromptError
from paliglass.generation import Completion, Step, generate, generate_steps, generate_within
from paliglass.modeling_mask_codec import MaskCodec
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.pictures import Picture, Pictures, picture_rows
from paliglass.processing_paligemma import LOCATION_TOKENS, SEGMENT_TOKENS, PaliGemmaProcessor
from paliglass.sampling import Sampling
from paliglass.tasks.boxes import Box, ParsedBox, parse_boxes
from paliglass.tasks.confidence import Calibration, Task, load_calibration, object_score, raw_score
from paliglass.tasks.grammar import YES_NO, ChoiceGrammar, Grammar, NumberGrammar, ObjectGrammar
from paliglass.tasks.masks import paste_mask
from paliglass.tasks.prompts import (
    READ,
    CaptionStyle,
    answer_prompt,
    caption_prompt,
    detect_prompt,
    segment_prompt,
    split_labels,
)
from paliglass.tasks.results import Answer, Detection, Found, Segment

CODEC = "mask_codec.safetensors"
Choices = Sequence[str] | Literal["yes_no", "number"] | None
MAX_NEW_TOKENS = 256
WINDOW = 8  # batches among which prompts are sorted by length


def load(
    model: str | Path = "mini",
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    quantize: str | None = None,
    pack: bool = True,
    tokenizer: str | Path | None = None,
    mask_codec: str | Path | None = None,
    adapter: str | Path | None = None,
    **overrides: Any,
) -> PaliGemma:
    """Loads a PaliGemma or PaliGemma 2.

    Args:
        model: "mini" (shipped, offline), a folder in transformers' layout, a hub id such as
            "google/paligemma2-3b-mix-224", or a big_vision .npz.
        device: "auto" (cuda, mps, cpu), or one of them.
        dtype: None or "auto" keeps the checkpoint's; "float32", "bfloat16", "float16".
        quantize: "int8" makes the matrices int8 while they are read: half of bfloat16's memory,
            and faster on processors with VNNI; see `fast.int8`. None leaves them as they are.
        pack: on a CPU, lay matrices out for its fastest kernels: they cannot be trained, or looked
            at by name, any more. False leaves them as they are.
        tokenizer: for an .npz, PaliGemma's tokenizer.json or its folder; by default the
            tokenizer.json beside it.
        mask_codec: what turns an answer to `segment` into masks: a .safetensors file of
            `MaskCodec.save`, or Google's vae-oid.npz; by default the model folder's
            mask_codec.safetensors, if it has one. Only `segment` needs it.
        adapter: a folder (or hub id) with a LoRA adapter in peft's format, which is merged
            into the weights while they are read.
        overrides: settings that config.json, or the shapes of an .npz's arrays, do not tell
            rightly, such as sliding_window=4096; see `PaliGemmaConfig.replace`.

    Raises PaliglassError (CheckpointError, ConfigError): one line with the cause and the mend.
    """
    path = locate(model)
    if path.suffix != ".npz":
        if tokenizer is not None:
            raise CheckpointError(f"{path}: a folder has its own tokenizer.json; edit it there")
        if not path.is_dir():
            raise CheckpointError(
                f"{path}: is neither a folder with config.json nor a big_vision .npz file"
            )
        network = load_model(path, device, dtype, quantize, pack, adapter, **overrides)
        processor = load_processor(path, network.config)
        return PaliGemma(network, processor, *_beside(path, mask_codec, network.device))
    source = path.parent if tokenizer is None else Path(tokenizer)
    if not source.exists() or (source.is_dir() and not (source / "tokenizer.json").exists()):
        raise CheckpointError(
            f"{path}: an .npz holds no tokenizer; put PaliGemma's tokenizer.json beside it or name "
            "its place with tokenizer="
        )
    words = load_tokenizer(source)
    network = load_big_vision(
        path,
        device=device,
        dtype=dtype,
        quantize=quantize,
        pack=pack,
        adapter=adapter,
        **overrides,
    )
    processor = make_processor(words, network.config, path)
    return PaliGemma(network, processor, *_beside(path.parent, mask_codec, network.device))


def _beside(
    folder: Path, mask_codec: str | Path | None, device: torch.device
) -> tuple[MaskCodec | None, Calibration]:
    """The mask codec, given or the folder's, and the folder's calibration."""
    path = folder / CODEC if mask_codec is None else Path(mask_codec)
    codec = None
    if mask_codec is not None or path.exists():
        codec = MaskCodec.from_npz(path) if path.suffix == ".npz" else MaskCodec.load(path)
        codec.to(device)
    return codec, load_calibration(folder)


class PaliGemma:
    """A model with its processor.

    Every task takes one picture and returns one result, or takes a list of pictures and returns a
    list of results, run in batches. A picture is a path, a PIL image, the bytes of a file, an
    array, or what `processor.prepare` made of one; coordinates refer to it upright (see
    `load_picture`).
    """

    def __init__(
        self,
        model: PaliGemmaForConditionalGeneration,
        processor: PaliGemmaProcessor,
        mask_codec: MaskCodec | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.mask_codec = mask_codec
        self.calibration = calibration or Calibration()
        self.generated_tokens = 0  # of all answers so far, each with its `<eos>`, padding left out

    @overload
    def caption(self, image: Picture, language: str = ..., **options: Any) -> Answer: ...
    @overload
    def caption(
        self, image: Sequence[Picture], language: str = ..., **options: Any
    ) -> list[Answer]: ...
    def caption(
        self, image: Any, language: str = "en", *, style: CaptionStyle = "caption", **options: Any
    ) -> Any:
        """The picture in words, a str with a `score`.

        style: "caption" is a sentence, "cap" shorter, "describe" more. Options: see `generate`.
        """
        return self.generate(image, caption_prompt(language, style), task="caption", **options)

    @overload
    def ask(
        self,
        image: Picture,
        question: str,
        language: str = ...,
        *,
        choices: Choices = ...,
        **options: Any,
    ) -> Answer: ...
    @overload
    def ask(
        self,
        image: Sequence[Picture],
        question: str,
        language: str = ...,
        *,
        choices: Choices = ...,
        **options: Any,
    ) -> list[Answer]: ...
    def ask(
        self,
        image: Any,
        question: str,
        language: str = "en",
        *,
        choices: Choices = None,
        **options: Any,
    ) -> Any:
        """A short answer to a question about the picture, a str with a `score`.

        Args:
            choices: the answers that may be given, such as ["left", "right"]; "yes_no" for yes or
                no, "number" for digits. The score is then the probability of the answer among
                those, and no calibration is applied to it.
            options: see `generate`.

        Raises PromptError for no or an empty choice, or one longer than max_new_tokens.
        """
        prompt = answer_prompt(question, language)
        if choices is None:
            return self.generate(image, prompt, task="answer", **options)
        if choices == "number":
            grammar: Grammar = NumberGrammar(self.processor)
        else:
            answers = YES_NO if choices == "yes_no" else choices
            grammar = ChoiceGrammar(
                self.processor, [answers] if isinstance(answers, str) else answers
            )
        pictures = [self.processor.prepare(p) for p in (image if _is_list(image) else [image])]
        count = len(pictures)
        completions = self.complete(
            pictures, [prompt] * count, grammars=[grammar] * count, **options
        )
        found = [
            Answer(
                grammar.read(done.ids)
                if isinstance(grammar, ChoiceGrammar)
                else self.processor.decode(done.ids),
                math.exp(sum(done.log_probs) + done.end_log_prob),
            )
            for done in completions
        ]
        return found if _is_list(image) else found[0]

    @overload
    def read(self, image: Picture, **options: Any) -> Answer: ...
    @overload
    def read(self, image: Sequence[Picture], **options: Any) -> list[Answer]: ...
    def read(self, image: Any, **options: Any) -> Any:
        """The text in the picture, line by line, with a `score`. Options: see `generate`."""
        return self.generate(image, READ, task="ocr", **options)

    @overload
    def detect(
        self, image: Picture, labels: str | Sequence[str], **options: Any
    ) -> Found[Detection]: ...
    @overload
    def detect(
        self, image: Sequence[Picture], labels: str | Sequence[str], **options: Any
    ) -> list[Found[Detection]]: ...
    def detect(
        self,
        image: Any,
        labels: str | Sequence[str],
        *,
        free: bool = False,
        min_score: float = 0.0,
        **options: Any,
    ) -> Any:
        """All that has one of the labels, with its box in pixels.

        Args:
            labels: "dog", "dog ; cat" or ["dog", "cat"].
            free: let the model write what it will and keep what can be read, rather than hold it
                to boxes with these labels; see `tasks.grammar`.
            min_score: leave out what has a lower score.
            options: see `generate`.
        """
        names = split_labels(labels, "detect")
        pictures = [self.processor.prepare(p) for p in (image if _is_list(image) else [image])]
        grammars = None if free else [ObjectGrammar(self.processor, names)] * len(pictures)
        prompts = [detect_prompt(names)] * len(pictures)
        completions = self.complete(pictures, prompts, grammars=grammars, **options)
        found = []
        for i, (picture, completion) in enumerate(zip(pictures, completions, strict=True)):
            objects = self.objects(completion, grammars[i] if grammars else None)
            detections = (
                Detection(parsed.label, _in_pixels(parsed.box, picture.size), score)
                for parsed, raw in objects
                if (score := self.calibration.score("detect", raw)) >= min_score
            )
            found.append(Found(detections, *picture.size))
        return found if _is_list(image) else found[0]

    @overload
    def segment(
        self, image: Picture, labels: str | Sequence[str], **options: Any
    ) -> Found[Segment]: ...
    @overload
    def segment(
        self, image: Sequence[Picture], labels: str | Sequence[str], **options: Any
    ) -> list[Found[Segment]]: ...
    def segment(
        self,
        image: Any,
        labels: str | Sequence[str],
        *,
        free: bool = False,
        min_score: float = 0.0,
        first_row: int = 0,
        **options: Any,
    ) -> Any:
        """All that has one of the labels, with its box and a mask of the picture's size.

        Each label is a prompt of its own, as PaliGemma was trained to segment; what is found comes
        in the order of the labels. Arguments as in `detect`.

        Raises CheckpointError for a model without a mask codec.
        """
        codec = self._codec()
        names = split_labels(labels, "segment")
        pictures = [self.processor.prepare(p) for p in (image if _is_list(image) else [image])]
        rows = [picture for picture in pictures for _ in names]
        prompts = [segment_prompt(name) for name in names] * len(pictures)
        own = [ObjectGrammar(self.processor, [name], masks=True) for name in names]
        grammars = None if free else own * len(pictures)
        first_row *= len(names)
        completions = self.complete(
            rows, prompts, grammars=grammars, first_row=first_row, **options
        )
        found: list[Found[Segment]] = [Found((), *picture.size) for picture in pictures]
        for i, completion in enumerate(completions):
            picture = rows[i]
            scored = [
                (parsed, score)
                for parsed, raw in self.objects(completion, grammars[i] if grammars else None)
                if (score := self.calibration.score("segment", raw)) >= min_score
                and parsed.codes is not None
            ]
            masks = _decode_masks(codec, [parsed.codes or () for parsed, _ in scored])
            for (parsed, score), mask in zip(scored, masks, strict=True):
                box = _in_pixels(parsed.box, picture.size)
                width, height = picture.size
                whole = paste_mask(mask, box, height, width)
                found[i // len(names)].append(Segment(parsed.label, box, whole, score))
        return found if _is_list(image) else found[0]

    def generate(
        self,
        images: Pictures,
        prompts: str | Sequence[str],
        *,
        stream: bool = False,
        task: Task | None = None,
        **options: Any,
    ) -> Any:
        """The model's raw answer to any prompt, location and segment tokens as text.

        One picture and one prompt give a string; lists of equal length give a list of strings, as
        does one picture with many prompts, or one prompt about many pictures. A list within the
        list holds several pictures of one prompt. A string has a `score`: the geometric mean of
        the probabilities of its tokens and its end, calibrated where the task is named.

        Args:
            stream: for one picture and one prompt, an iterator over the answer's pieces as they
                come.
            task: what the prompts ask for: "caption", "answer" or "ocr".
            max_new_tokens: limit of the answer; 256.
            temperature, top_k, top_p, seed: see `Sampling`; greedy by default.
            batch_size: prompts that run together; 8.
            allow_special_tokens: let `<loc0001>` and the like in a prompt be tokens, not text.

        Raises PictureError, PromptError, ValueError.
        """
        many = _is_list(images) or not isinstance(prompts, str)
        if stream and many:
            raise PromptError("stream works with one picture and one prompt")
        rows = picture_rows(images)
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        texts = texts * len(rows) if len(texts) == 1 else texts
        rows = rows * len(texts) if len(rows) == 1 else rows
        if stream:
            return self._stream(rows, texts, **options)
        answers = []
        for completion in self.complete(rows, texts, **options):
            ending = [completion.end_log_prob] if completion.ended else []
            raw = raw_score([*completion.log_probs, *ending])
            text = self.processor.decode(completion.ids)
            answers.append(Answer(text, self.calibration.score(task, raw)))
        return answers if many else answers[0]

    def complete(
        self,
        images: Pictures,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        batch_size: int = 8,
        allow_special_tokens: bool = False,
        first_row: int = 0,
        grammars: Sequence[Grammar] | None = None,
        **sampling: Any,
    ) -> list[Completion]:
        """Token ids and log-probabilities of the answer to each prompt about its picture(s).

        As many pictures (or lists of pictures) as prompts; the rest as in `generate`. Prompts of
        like length run together, so that little padding is computed. A picture given for several
        prompts in a row goes through the vision tower once. `first_row` is the
        first prompt's place in a longer list that is worked off in several calls: with a seed, it
        tells the random numbers of each. `grammars`: one for each prompt, which its answer keeps to
        (see `tasks.grammar`).
        """
        for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be 1 or more")
        chosen = Sampling(**sampling)
        rows = picture_rows(images)
        if len(rows) != len(prompts):
            raise PromptError(f"{len(rows)} pictures for {len(prompts)} prompts")
        lengths = [
            len(self.processor.encode_prefix(prompt, len(row), allow_special_tokens))
            for row, prompt in zip(rows, prompts, strict=True)
        ]
        batches = _by_length(lengths, batch_size)
        completions: dict[int, Completion] = {}
        features: dict[int, Tensor] = {}
        for number, some in enumerate(batches):
            asked = [prompts[i] for i in some]
            batch = self._batch([rows[i] for i in some], asked, allow_special_tokens, features)
            limits = self.model, batch, max_new_tokens
            places = [first_row + i for i in some]
            if grammars is None:
                done = generate(*limits, chosen, places)
            else:
                states = [grammars[i].start() for i in some]
                done = generate_within(*limits, states, chosen, places)
            completions.update(zip(some, done, strict=True))
            self.generated_tokens += sum(len(answer.ids) + answer.ended for answer in done)
            # A picture's next prompt in the list comes no later than at the end of the next window.
            soon = chain.from_iterable(batches[number + 1 : number + 2 * WINDOW])
            wanted = {id(picture) for i in soon for picture in rows[i]}
            features = {key: kept for key, kept in features.items() if key in wanted}
        return [completions[i] for i in range(len(prompts))]

    def _batch(
        self,
        rows: Sequence[Sequence[Picture]],
        prompts: Sequence[str],
        allow_special_tokens: bool,
        features: dict[int, Tensor],
    ) -> dict[str, Tensor]:
        """A batch of prompts about pictures.

        features: of pictures by their identity, which do not go through the vision tower again;
        those of the others are added.
        """
        counts = [len(row) for row in rows]
        batch = self.processor.words(prompts, counts, allow_special_tokens=allow_special_tokens)
        flat = [picture for row in rows for picture in row]
        new = {id(picture): picture for picture in flat if id(picture) not in features}
        if new:
            pixels = torch.stack([self.processor.pixels(picture) for picture in new.values()])
            with torch.inference_mode():
                encoded = self.model.get_image_features(pixels.to(self.model.device))
            features.update(zip(new, encoded, strict=True))
        if flat:
            batch["image_features"] = torch.stack([features[id(picture)] for picture in flat])
        return batch

    def _stream(
        self,
        rows: Sequence[Sequence[Picture]],
        prompts: Sequence[str],
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        allow_special_tokens: bool = False,
        **sampling: Any,
    ) -> Iterator[str]:
        """Checks and prepares at once; the pieces come as the returned iterator is read."""
        chosen = Sampling(**sampling)
        batch = self._batch(rows, prompts, allow_special_tokens, {})
        return self._pieces(generate_steps(self.model, batch, max_new_tokens, chosen))

    def _pieces(self, steps: Iterator[Step]) -> Iterator[str]:
        ids: list[int] = []
        said = ""
        for step in steps:
            ids += step.ids.tolist()
            self.generated_tokens += 1
            # A run of byte tokens is decoded as one: what it says is certain only when it is over.
            if self.processor.is_byte(ids[-1]):
                continue
            text = self.processor.decode(ids)
            if len(text) > len(said):
                yield text[len(said) :]
                said = text
        rest = self.processor.decode(ids)[len(said) :]
        if rest:
            yield rest

    def objects(
        self, completion: Completion, grammar: ObjectGrammar | None
    ) -> list[tuple[ParsedBox, float]]:
        """The objects of an answer to `detect` or `segment`, each with its raw score.

        grammar: what the answer kept to; None for one that kept to nothing. Edges are shares of
        the picture.
        """
        ids, log_probs = completion.ids, completion.log_probs
        if grammar is not None:
            return [
                (found, self._score(ids[span], log_probs[span]))
                for found in grammar.read(ids)
                for span in [slice(found.start, found.end)]
            ]
        parsed = parse_boxes(self.processor.decode(ids))
        if not parsed:
            return []
        ends = [len(self.processor.decode(ids[: i + 1])) for i in range(len(ids))]
        # An unfinished run of byte tokens decodes to more characters than the finished one.
        ends = list(accumulate(reversed(ends), min))[::-1]
        objects = []
        for found in parsed:
            mine = [i for i, end in enumerate(ends) if found.start < end <= found.end]
            score = self._score([ids[i] for i in mine], [log_probs[i] for i in mine])
            objects.append((found, score))
        return objects

    def _score(self, ids: Sequence[int], log_probs: Sequence[float]) -> float:
        """The raw score of an object from its own tokens."""
        first, last = (self.processor.token_id(t) for t in (LOCATION_TOKENS[0], SEGMENT_TOKENS[-1]))
        shape = [p for i, p in zip(ids, log_probs, strict=True) if first <= i <= last]
        label = [p for i, p in zip(ids, log_probs, strict=True) if not first <= i <= last]
        return object_score(shape, label)

    def _codec(self) -> MaskCodec:
        if self.mask_codec is None:
            raise CheckpointError(
                "this model has no mask codec, which turns <seg> tokens into masks: name Google's "
                "vae-oid.npz, or a .safetensors file, with load(..., mask_codec=PATH)"
            )
        return self.mask_codec


def _by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Batches of row numbers: the rows of every `WINDOW` batches sorted by length, stably.

    Not all rows at once: the features of a picture with several prompts are kept until its last.
    """
    window = WINDOW * batch_size
    starts = range(0, len(lengths), window)
    windows = (range(len(lengths))[start : start + window] for start in starts)
    order = [row for rows in windows for row in sorted(rows, key=lengths.__getitem__)]
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _decode_masks(codec: MaskCodec, codes: Sequence[tuple[int, ...]]) -> list[NDArray[np.float32]]:
    """N × 16 codes → N masks of 64 × 64, in about [−1, 1]."""
    if not codes:
        return []
    device = next(codec.parameters()).device
    with torch.inference_mode():
        masks = codec.decode(torch.tensor(codes, device=device))
    return list(masks.float().cpu().numpy())


def _in_pixels(box: Box, size: tuple[int, int]) -> Box:
    """A box in shares of a picture → in its pixels. size: width and height."""
    width, height = size
    return Box(box.x0 * width, box.y0 * height, box.x1 * width, box.y1 * height)


def _is_list(images: object) -> bool:
    return isinstance(images, list | tuple)
