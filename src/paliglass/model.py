"""PaliGemma in one friendly object: pictures and questions in, words and boxes out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from PIL import Image
from torch import Tensor

from paliglass.checkpoints.big_vision import load_big_vision
from paliglass.checkpoints.folder import load_model, load_tokenizer
from paliglass.checkpoints.hub import locate
from paliglass.checkpoints.processor import load_processor, make_processor
from paliglass.errors import CheckpointError, PromptError
from paliglass.generation import Completion, Step, generate, generate_steps
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.pictures import Picture, Pictures, load_picture, picture_rows
from paliglass.processing_paligemma import PaliGemmaProcessor
from paliglass.sampling import Sampling
from paliglass.tasks.boxes import Box, parse_boxes
from paliglass.tasks.prompts import READ, answer_prompt, caption_prompt, detect_prompt
from paliglass.tasks.results import Detection

MAX_NEW_TOKENS = 256


def load(
    model: str | Path = "mini",
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    tokenizer: str | Path | None = None,
    **overrides: Any,
) -> PaliGemma:
    """Loads a PaliGemma or PaliGemma 2.

    Args:
        model: "mini" (shipped, offline), a folder in transformers' layout, a hub id such as
            "google/paligemma2-3b-mix-224", or a big_vision .npz.
        device: "auto" (cuda, mps, cpu), or one of them.
        dtype: None or "auto" keeps the checkpoint's; "float32", "bfloat16", "float16".
        tokenizer: for an .npz, PaliGemma's tokenizer.json or its folder; by default the
            tokenizer.json beside it.
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
        network = load_model(path, device, dtype, **overrides)
        return PaliGemma(network, load_processor(path, network.config))
    source = path.parent if tokenizer is None else Path(tokenizer)
    if not source.exists() or (source.is_dir() and not (source / "tokenizer.json").exists()):
        raise CheckpointError(
            f"{path}: an .npz holds no tokenizer; put PaliGemma's tokenizer.json beside it or name "
            "its place with tokenizer="
        )
    words = load_tokenizer(source)
    network = load_big_vision(path, device=device, dtype=dtype, **overrides)
    return PaliGemma(network, make_processor(words, network.config, path))


class PaliGemma:
    """A model with its processor.

    Every task takes one picture and returns one result, or takes a list of pictures and returns a
    list of results, run in batches. A picture is a path, a PIL image, the bytes of a file or an
    array; coordinates refer to it upright (see `load_picture`).
    """

    def __init__(
        self, model: PaliGemmaForConditionalGeneration, processor: PaliGemmaProcessor
    ) -> None:
        self.model = model
        self.processor = processor

    @overload
    def caption(self, image: Picture, language: str = ..., **options: Any) -> str: ...
    @overload
    def caption(
        self, image: Sequence[Picture], language: str = ..., **options: Any
    ) -> list[str]: ...
    def caption(self, image: Any, language: str = "en", **options: Any) -> Any:
        """A sentence about the picture. Options: see `generate`."""
        return self.generate(image, caption_prompt(language), **options)

    @overload
    def ask(self, image: Picture, question: str, language: str = ..., **options: Any) -> str: ...
    @overload
    def ask(
        self, image: Sequence[Picture], question: str, language: str = ..., **options: Any
    ) -> list[str]: ...
    def ask(self, image: Any, question: str, language: str = "en", **options: Any) -> Any:
        """A short answer to a question about the picture. Options: see `generate`."""
        return self.generate(image, answer_prompt(question, language), **options)

    @overload
    def read(self, image: Picture, **options: Any) -> str: ...
    @overload
    def read(self, image: Sequence[Picture], **options: Any) -> list[str]: ...
    def read(self, image: Any, **options: Any) -> Any:
        """The text in the picture, line by line. Options: see `generate`."""
        return self.generate(image, READ, **options)

    @overload
    def detect(
        self, image: Picture, labels: str | Sequence[str], **options: Any
    ) -> list[Detection]: ...
    @overload
    def detect(
        self, image: Sequence[Picture], labels: str | Sequence[str], **options: Any
    ) -> list[list[Detection]]: ...
    def detect(self, image: Any, labels: str | Sequence[str], **options: Any) -> Any:
        """All that has one of the labels, with its box in pixels. Options: see `generate`."""
        pictures = [load_picture(p) for p in (image if _is_list(image) else [image])]
        prompt = detect_prompt(labels)
        completions = self.complete(pictures, [prompt] * len(pictures), **options)
        found = [
            self._detections(picture, completion)
            for picture, completion in zip(pictures, completions, strict=True)
        ]
        return found if _is_list(image) else found[0]

    def generate(
        self,
        images: Pictures,
        prompts: str | Sequence[str],
        *,
        stream: bool = False,
        **options: Any,
    ) -> Any:
        """The model's raw answer to any prompt, location and segment tokens as text.

        One picture and one prompt give a string; lists of equal length give a list of strings, as
        does one picture with many prompts, or one prompt about many pictures. A list within the
        list holds several pictures of one prompt.

        Args:
            stream: for one picture and one prompt, an iterator over the answer's pieces as they
                come.
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
        completions = self.complete(rows, texts, **options)
        answers = [self.processor.decode(completion.ids) for completion in completions]
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
        **sampling: Any,
    ) -> list[Completion]:
        """Token ids and log-probabilities of the answer to each prompt about its picture(s).

        As many pictures (or lists of pictures) as prompts; the rest as in `generate`. A picture
        given for several prompts in a row goes through the vision tower once. `first_row` is the
        first prompt's place in a longer list that is worked off in several calls: with a seed, it
        tells the random numbers of each.
        """
        for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be 1 or more")
        chosen = Sampling(**sampling)
        rows = picture_rows(images)
        if len(rows) != len(prompts):
            raise PromptError(f"{len(rows)} pictures for {len(prompts)} prompts")
        completions: list[Completion] = []
        seen: dict[int, Tensor] = {}
        for start in range(0, len(prompts), batch_size):
            some = slice(start, start + batch_size)
            batch, seen = self._batch(rows[some], prompts[some], allow_special_tokens, seen)
            completions += generate(self.model, batch, max_new_tokens, chosen, first_row + start)
        return completions

    def _batch(
        self,
        rows: Sequence[Sequence[Picture]],
        prompts: Sequence[str],
        allow_special_tokens: bool,
        seen: Mapping[int, Tensor],
    ) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
        """A batch of prompts, and the features of its pictures by the pictures' identity.

        Pictures of the last batch, in `seen`, do not go through the vision tower again.
        """
        counts = [len(row) for row in rows]
        batch = self.processor.words(prompts, counts, allow_special_tokens=allow_special_tokens)
        flat = [picture for row in rows for picture in row]
        features = {id(picture): seen[id(picture)] for picture in flat if id(picture) in seen}
        new = {id(picture): picture for picture in flat if id(picture) not in seen}
        if new:
            pixels = torch.stack([self.processor.pixels(picture) for picture in new.values()])
            with torch.inference_mode():
                encoded = self.model.get_image_features(pixels.to(self.model.device))
            features.update(zip(new, encoded, strict=True))
        if flat:
            batch["image_features"] = torch.stack([features[id(picture)] for picture in flat])
        return batch, features

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
        batch, _ = self._batch(rows, prompts, allow_special_tokens, {})
        return self._pieces(generate_steps(self.model, batch, max_new_tokens, chosen))

    def _pieces(self, steps: Iterator[Step]) -> Iterator[str]:
        ids: list[int] = []
        said = ""
        for step in steps:
            ids += step.ids.tolist()
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

    def _detections(self, picture: Image.Image, completion: Completion) -> list[Detection]:
        answer = self.processor.decode(completion.ids)
        parsed = parse_boxes(answer)
        if not parsed:
            return []
        ids = completion.ids
        ends = [len(self.processor.decode(ids[: i + 1])) for i in range(len(ids))]
        # An unfinished run of byte tokens decodes to more characters than the finished one.
        ends = [min(ends[i:]) for i in range(len(ends))]
        width, height = picture.size
        found = []
        for label, box, start, end in parsed:
            mine = [
                log_prob
                for log_prob, token_end in zip(completion.log_probs, ends, strict=True)
                if start < token_end <= end
            ]
            pixels = Box(box.x0 * width, box.y0 * height, box.x1 * width, box.y1 * height)
            found.append(Detection(label, pixels, math.exp(sum(mine) / max(len(mine), 1))))
        return found


def _is_list(images: object) -> bool:
    return isinstance(images, list | tuple)
