"""PaliGemma in one friendly object: pictures and questions in, words and boxes out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, Unpack, get_args, overload

import torch

from paliglass.checkpoints.adapters import with_base
from paliglass.checkpoints.assembly import DeviceName, DtypeName, skeleton
from paliglass.checkpoints.big_vision import load_big_vision, read_big_vision_config
from paliglass.checkpoints.folder import load_model, load_tokenizer, read_config
from paliglass.checkpoints.hub import locate
from paliglass.checkpoints.mask_codec import find_mask_codec
from paliglass.checkpoints.processor import load_processor, make_processor
from paliglass.errors import CheckpointError, PaliglassError, PromptError
from paliglass.fast import Method, accelerate
from paliglass.generation import Completion, FinishReason, Request, complete, run
from paliglass.modeling_mask_codec import MaskCodec
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.pictures import Picture, Pictures, PreparedPicture, picture_rows
from paliglass.processing_paligemma import PaliGemmaProcessor, TextStream
from paliglass.tasks.answering import (
    DetectTask,
    GenerationOptions,
    Options,
    SegmentTask,
    Task,
    TextTask,
    WordTask,
)
from paliglass.tasks.confidence import CalibratedTask, Calibration, load_calibration
from paliglass.tasks.grammar import YES_NO, ChoiceGrammar, NumberGrammar
from paliglass.tasks.prompts import (
    READ,
    CaptionStyle,
    answer_prompt,
    caption_prompt,
    detect_prompt,
    require_texts,
    split_labels,
    without_placeholders,
)
from paliglass.tasks.results import Answer, Detection, Found, Segment

__all__ = ["PaliGemma", "load"]

Choices = Sequence[str] | Literal["yes_no", "number"] | None
R = TypeVar("R")


def load(
    model: str | Path = "mini",
    *,
    device: DeviceName | str | torch.device = "auto",
    dtype: DtypeName | torch.dtype | None = None,
    quantize: Method | None = None,
    fast: bool = True,
    tokenizer: str | Path | None = None,
    mask_codec: str | Path | None = None,
    adapter: str | Path | None = None,
    tensor_parallel: bool = False,
    **overrides: Any,
) -> PaliGemma:
    """Loads a PaliGemma or PaliGemma 2.

    Args:
        model: "mini" (shipped, offline), a folder in transformers' layout, a hub id such as
            "google/paligemma2-3b-mix-224", or a big_vision .npz.
        device: "auto" (cuda, mps, cpu), or one of them.
        dtype: None or "auto" keeps the checkpoint's; "float32", "bfloat16", "float16".
        quantize: "int8" makes the matrices int8 while they are read: half of bfloat16's memory,
            and faster on most processors; see `fast.int8`. "int4" makes most of the decoder's
            int4, on a CPU and with the extra `fast`; see `fast.int4`. None leaves them as they are.
        fast: put what is fastest on this processor in the place of the plain modules, see
            `fast.accelerate`: they cannot be trained, or looked at by name, any more. False
            leaves them as they are, save what `quantize` asks for.
        tokenizer: for an .npz, PaliGemma's tokenizer.json or its folder; by default the
            tokenizer.json beside it.
        mask_codec: what turns an answer to `segment` into masks: a .safetensors file of
            `save_mask_codec`, or Google's vae-oid.npz; by default the model folder's
            mask_codec.safetensors, if it has one. Only `segment` needs it.
        adapter: a folder (or hub id) with a LoRA adapter in peft's format, which is merged
            into the weights while they are read.
        tensor_parallel: under `torchrun`, hold a part of the model in each process; all must ask
            it the same, and get the same answers. See docs/scale.md.
        overrides: settings that config.json, or the shapes of an .npz's arrays, do not tell
            rightly, such as final_logit_softcapping=0; see `PaliGemmaConfig.replace`.

    Raises PaliglassError (CheckpointError, ConfigError): one line with the cause and the mend.
    """
    path, adapter = with_base(locate(model), adapter)
    if tensor_parallel and quantize is not None:
        raise PaliglassError(
            "several processes cannot share a quantized model yet: leave quantize out, or run one"
        )
    if tensor_parallel and path.suffix == ".npz":
        raise CheckpointError(
            f"{path}: several processes cannot share an .npz; `paliglass convert` makes a folder "
            "of it"
        )
    read: Callable[..., PaliGemmaForConditionalGeneration]
    settings: dict[str, Any] = {"device": device, **overrides}
    fresh_seed = None
    # All small files before the weights, which may take a minute.
    if path.suffix == ".npz":
        source = path.parent if tokenizer is None else Path(tokenizer)
        if not source.exists() or (source.is_dir() and not (source / "tokenizer.json").exists()):
            raise CheckpointError(
                f"{path}: an .npz holds no tokenizer; put PaliGemma's tokenizer.json beside it or "
                "name its place with tokenizer="
            )
        words = load_tokenizer(source)
        processor = make_processor(words, read_big_vision_config(path).replace(**overrides), path)
        folder, read = path.parent, load_big_vision
    elif tokenizer is not None:
        raise CheckpointError(f"{path}: a folder has its own tokenizer.json; edit it there")
    elif not path.is_dir():
        raise CheckpointError(
            f"{path}: is neither a folder with config.json nor a big_vision .npz file"
        )
    else:
        config = read_config(path).replace(**overrides)
        processor = load_processor(path, config)
        folder, read = path, load_model
        if tensor_parallel:
            # Imported here: the distributed parts of torch take half a second.
            from paliglass.parallel.tensor_parallel import TensorParallel

            shard = TensorParallel(config, device)
            settings |= {"shard": shard, "device": shard.device}
            fresh_seed = shard.fresh_seed
    codec, calibration = find_mask_codec(folder, mask_codec), load_calibration(folder)
    network = read(
        path,
        dtype=dtype,
        quantize=quantize,
        adapter=adapter,
        accelerate=partial(accelerate, plain=not fast),
        **settings,
    )
    if tensor_parallel:
        network.requires_grad_(False)
    codec = codec and codec.to(network.device)
    return PaliGemma(network, processor, codec, calibration, fresh_seed)


class PaliGemma:
    """A model with its processor.

    Every task takes one picture and returns one result, or takes a list of pictures and returns a
    list of results, run together. A picture is a path, a PIL image, the bytes of a file, an array,
    or what `processor.prepare` made of one; a list within the list holds several pictures of one
    prompt. Coordinates refer to the (first) picture upright, see `load_picture`. Options of all
    tasks: see `GenerationOptions`.

    fresh_seed: where requests without a seed take theirs from, if not from the system.
    """

    def __init__(
        self,
        model: PaliGemmaForConditionalGeneration,
        processor: PaliGemmaProcessor,
        mask_codec: MaskCodec | None = None,
        calibration: Calibration | None = None,
        fresh_seed: Callable[[], tuple[int, ...]] | None = None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.mask_codec = mask_codec
        self.calibration = calibration or Calibration()
        self.fresh_seed = fresh_seed

    @overload
    def caption(  # type: ignore[overload-overlap]
        self,
        image: Picture,
        language: str = ...,
        *,
        style: CaptionStyle = ...,
        **options: Unpack[Options],
    ) -> Answer: ...
    @overload
    def caption(
        self,
        image: Sequence[Picture | Sequence[Picture]],
        language: str = ...,
        *,
        style: CaptionStyle = ...,
        **options: Unpack[Options],
    ) -> list[Answer]: ...
    def caption(
        self,
        image: Pictures,
        language: str = "en",
        *,
        style: CaptionStyle = "caption",
        **options: Unpack[Options],
    ) -> Answer | list[Answer]:
        """The picture in words, a str with a `score`.

        style: "caption" is a sentence, "cap" shorter, "describe" more.
        """
        return self._answer(self.caption_task(language, style), image, options)

    @overload
    def ask(  # type: ignore[overload-overlap]
        self,
        image: Picture,
        question: str,
        language: str = ...,
        *,
        choices: Choices = ...,
        **options: Unpack[Options],
    ) -> Answer: ...
    @overload
    def ask(
        self,
        image: Pictures,
        question: str | Sequence[str],
        language: str = ...,
        *,
        choices: Choices = ...,
        **options: Unpack[Options],
    ) -> list[Answer]: ...
    def ask(
        self,
        image: Pictures,
        question: str | Sequence[str],
        language: str = "en",
        *,
        choices: Choices = None,
        **options: Unpack[Options],
    ) -> Answer | list[Answer]:
        """A short answer to a question about the picture, a str with a `score`.

        Args:
            question: one, or a list: about one picture each, or one for each picture of a list.
            choices: the answers that may be given, such as ["left", "right"]; "yes_no" for yes or
                no, "number" for digits. The score is then the probability of the answer among
                those, and no calibration is applied to it.

        Raises PromptError for an empty question, for no or an empty choice, or one longer than
        max_new_tokens.
        """
        texts = require_texts(question, "the question")
        tasks = [self.ask_task(text, language, choices) for text in texts]
        return self._answer(tasks[0] if isinstance(question, str) else tasks, image, options)

    @overload
    def read(self, image: Picture, **options: Unpack[Options]) -> Answer: ...  # type: ignore[overload-overlap]
    @overload
    def read(
        self, image: Sequence[Picture | Sequence[Picture]], **options: Unpack[Options]
    ) -> list[Answer]: ...
    def read(self, image: Pictures, **options: Unpack[Options]) -> Answer | list[Answer]:
        """The text in the picture, line by line, with a `score`; "" where there is none."""
        return self._answer(self.text_task(READ, "ocr"), image, options)

    @overload
    def detect(  # type: ignore[overload-overlap]
        self,
        image: Picture,
        labels: str | Sequence[str],
        *,
        free: bool = ...,
        min_score: float = ...,
        **options: Unpack[Options],
    ) -> Found[Detection]: ...
    @overload
    def detect(
        self,
        image: Sequence[Picture | Sequence[Picture]],
        labels: str | Sequence[str],
        *,
        free: bool = ...,
        min_score: float = ...,
        **options: Unpack[Options],
    ) -> list[Found[Detection]]: ...
    def detect(
        self,
        image: Pictures,
        labels: str | Sequence[str],
        *,
        free: bool = False,
        min_score: float = 0.0,
        **options: Unpack[Options],
    ) -> Found[Detection] | list[Found[Detection]]:
        """All that has one of the labels, with its box in pixels.

        Args:
            labels: "dog", "dog ; cat" or ["dog", "cat"].
            free: let the model write what it will and keep what can be read, rather than hold it
                to boxes with these labels; see `tasks.grammar`.
            min_score: leave out what has a lower score.
        """
        return self._answer(self.detect_task(labels, free, min_score), image, options)

    @overload
    def segment(  # type: ignore[overload-overlap]
        self,
        image: Picture,
        labels: str | Sequence[str],
        *,
        free: bool = ...,
        min_score: float = ...,
        **options: Unpack[Options],
    ) -> Found[Segment]: ...
    @overload
    def segment(
        self,
        image: Sequence[Picture | Sequence[Picture]],
        labels: str | Sequence[str],
        *,
        free: bool = ...,
        min_score: float = ...,
        **options: Unpack[Options],
    ) -> list[Found[Segment]]: ...
    def segment(
        self,
        image: Pictures,
        labels: str | Sequence[str],
        *,
        free: bool = False,
        min_score: float = 0.0,
        **options: Unpack[Options],
    ) -> Found[Segment] | list[Found[Segment]]:
        """All that has one of the labels, with its box and a mask of the picture's size.

        Each label is a prompt of its own, as PaliGemma was trained to segment; what is found comes
        in the order of the labels. Arguments as in `detect`.

        Raises CheckpointError for a model without a mask codec.
        """
        return self._answer(self.segment_task(labels, free, min_score), image, options)

    @overload
    def generate(
        self,
        images: Picture,
        prompts: str,
        *,
        stream: Literal[True],
        task: CalibratedTask | None = ...,
        **options: Unpack[Options],
    ) -> Generator[str, None, FinishReason]: ...
    @overload
    def generate(  # type: ignore[overload-overlap]
        self,
        images: Picture,
        prompts: str,
        *,
        stream: Literal[False] = ...,
        task: CalibratedTask | None = ...,
        **options: Unpack[Options],
    ) -> Answer: ...
    @overload
    def generate(
        self,
        images: Pictures,
        prompts: str | Sequence[str],
        *,
        stream: Literal[False] = ...,
        task: CalibratedTask | None = ...,
        **options: Unpack[Options],
    ) -> list[Answer]: ...
    def generate(
        self,
        images: Pictures,
        prompts: str | Sequence[str],
        *,
        stream: bool = False,
        task: CalibratedTask | None = None,
        **options: Unpack[Options],
    ) -> Answer | list[Answer] | Generator[str, None, FinishReason]:
        """The model's raw answer to any prompt, location and segment tokens as text.

        `<image>` and `<bos>` before a prompt are left out: the processor puts them there.

        One picture and one prompt give a string; lists of equal length give a list of strings, as
        does one picture with many prompts, or one prompt about many pictures. A string has a
        `score`: the geometric mean of the probabilities of its tokens and its end, calibrated where
        the task is named.

        Args:
            stream: for one picture and one prompt, a generator of the answer's pieces as they come,
                which returns the finish_reason.
            task: what the prompts ask for: "caption", "answer" or "ocr".

        Raises PictureError, PromptError, ValueError.
        """
        if stream:
            if isinstance(images, list | tuple) or not isinstance(prompts, str):
                raise PromptError("stream works with one picture and one prompt")
            how = GenerationOptions.of(options)
            pictures = [self.processor.prepare(picture) for [picture] in picture_rows(images)]
            [request] = self.text_task(prompts).requests(pictures, how, 0)
            return self._pieces(request)
        if task is not None and task not in (known := get_args(CalibratedTask)):
            raise PromptError(f"task is {task!r}; it must be one of {', '.join(known)}")
        tasks = [self.text_task(text, task) for text in require_texts(prompts, "the prompt")]
        return self._answer(tasks[0] if isinstance(prompts, str) else tasks, images, options)

    def __repr__(self) -> str:
        config, network = self.model.config, self.model
        text = config.text_config
        # Counted by its shapes: quantized matrices are no parameters.
        numbers = sum(parameter.numel() for parameter in skeleton(config).parameters())
        side = config.vision_config.image_size
        masks = ", segment" if self.mask_codec is not None else ""
        return (
            f"PaliGemma{' 2' if text.has_post_norms else ''}: {_short(numbers)} parameters, "
            f"computes in {str(network.dtype).removeprefix('torch.')} on {network.device}\n"
            f"  sees {side} × {side} pixels as {config.num_image_tokens} tokens; "
            f"{text.num_hidden_layers} layers of width {text.hidden_size}; "
            f"{self.processor.num_words:,} words\n"
            f"  caption, ask, read, detect{masks}, generate"
        )

    def caption_task(self, language: str = "en", style: CaptionStyle = "caption") -> TextTask:
        return self.text_task(caption_prompt(language, style), "caption")

    def ask_task(
        self, question: str, language: str = "en", choices: Choices = None
    ) -> TextTask | WordTask:
        if not without_placeholders(question).strip():
            raise PromptError("the question is empty")
        prompt = answer_prompt(question, language)
        if choices is None:
            return self.text_task(prompt, "answer")
        if isinstance(choices, str):
            if choices == "number":
                return WordTask(self.processor, prompt, NumberGrammar(self.processor))
            if choices != "yes_no":
                raise PromptError(f"choices is {choices!r}; give a list, or yes_no or number")
            choices = YES_NO
        answers = require_texts(choices, "a choice")
        return WordTask(self.processor, prompt, ChoiceGrammar(self.processor, answers))

    def text_task(self, prompt: str, calibrated: CalibratedTask | None = None) -> TextTask:
        bare = without_placeholders(prompt)
        return TextTask(self.processor, bare, self.calibration, calibrated)

    def detect_task(
        self, labels: str | Sequence[str], free: bool = False, min_score: float = 0.0
    ) -> DetectTask:
        names = split_labels(labels, "detect")
        prompt = detect_prompt(names)
        return DetectTask(self.processor, self.calibration, names, prompt, min_score, free)

    def segment_task(
        self, labels: str | Sequence[str], free: bool = False, min_score: float = 0.0
    ) -> SegmentTask:
        if self.mask_codec is None:
            raise CheckpointError(
                "this model has no mask codec, which turns <seg> tokens into masks: name Google's "
                "vae-oid.npz, or a .safetensors file, with load(..., mask_codec=PATH)"
            )
        names = split_labels(labels, "segment")
        codec = self.mask_codec
        return SegmentTask(self.processor, self.calibration, names, codec, min_score, free)

    def complete(
        self, requests: Iterable[Request], batch_size: int = 8, raises: bool = True
    ) -> Iterator[Completion]:
        """Token ids and log-probabilities of the answer to each request, in their order.

        raises: see `generation.complete`.
        """
        seeded = map(self._seeded, requests)
        return complete(self.model, self.processor, seeded, batch_size, raises)

    def answer(
        self,
        jobs: Iterable[tuple[int, Task[R], Sequence[PreparedPicture]]],
        options: GenerationOptions,
    ) -> Iterator[tuple[R | PaliglassError, int]]:
        """Runs tasks over groups of pictures, as many together as fit: result, tokens of each.

        A job whose numbers overflow has an error for its result; the others go on.

        jobs: a number that tells the job's random numbers from those of others, a task, and its
        pictures; they are taken as the batch has room, so that their pictures need not all be in
        memory.
        """
        under_way: deque[tuple[Task[R], Sequence[PreparedPicture]]] = deque()

        def requests() -> Iterator[Request]:
            for number, task, pictures in jobs:
                under_way.append((task, pictures))
                yield from task.requests(pictures, options, number)

        done: list[Completion] = []
        for completion in self.complete(requests(), options.batch_size, raises=False):
            done.append(completion)
            task, pictures = under_way[0]
            if len(done) == task.requests_per_picture:
                error = next((some.error for some in done if some.error is not None), None)
                result = error or task.result(pictures, done)
                yield result, sum(some.num_tokens for some in done)
                under_way.popleft()
                done = []

    def _answer(
        self, tasks: Task[R] | Sequence[Task[R]], images: Pictures, options: Options
    ) -> Any:
        """One task about one picture, or about each of a list; or as many tasks as pictures.

        A list of one, of tasks or of pictures, is taken as often as there are of the other.
        """
        how = GenerationOptions.of(options)
        one = isinstance(tasks, Task) and not isinstance(images, list | tuple)
        asked = [tasks] if isinstance(tasks, Task) else list(tasks)
        groups = [[self._prepare(picture) for picture in row] for row in picture_rows(images)]
        if len(groups) == 1:
            groups *= len(asked)
        elif len(asked) == 1:
            asked *= len(groups)
        if len(groups) != len(asked):
            raise PromptError(f"{len(groups)} pictures for {len(asked)} prompts")
        results: list[Any] = []
        for result, _ in self.answer(zip(range(len(asked)), asked, groups, strict=True), how):
            if isinstance(result, PaliglassError):
                raise result
            results.append(result)
        return results[0] if one else results

    def _prepare(self, picture: Picture) -> PreparedPicture:
        """Prepared, and with the picture itself (most often a path) for results to draw on."""
        if isinstance(picture, PreparedPicture):
            return picture
        return replace(self.processor.prepare(picture), source=picture)

    def _seeded(self, request: Request) -> Request:
        if request.seed is not None or self.fresh_seed is None:
            return request
        return replace(request, seed=self.fresh_seed())

    def _pieces(self, request: Request) -> Generator[str, None, FinishReason]:
        text = TextStream(self.processor)
        reason: FinishReason | None = None
        for event in run(self.model, self.processor, [self._seeded(request)], 1):
            if event.error is not None:
                raise event.error
            reason = event.finish_reason
            if reason != "stop" and (piece := text.add(event.token)):
                yield piece
        if rest := text.end():
            yield rest
        return reason or "stop"


def _short(number: int) -> str:
    """2923466480 → "2.92 B"."""
    for unit, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.3g} {letter}"
    return str(number)
