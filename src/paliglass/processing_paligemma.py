"""1 · Pictures and prompts → tensors, exactly as transformers' processor makes them.

    <image> × N · pictures   <bos>   prompt   \\n   | suffix   <eos>
    token_type_ids       0 … 0                      | 1 … 1
    labels            −100 … −100                   | ids

- a picture is squashed to the model's square with Pillow's bicubic filter and scaled to [−1, 1]
- `<loc0001>`, `<image>`, `<eos>` … in a user's prompt are text like any other, unless let through;
  in a suffix, which is training data, they are the tokens
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from paliglass.errors import CheckpointError, PromptError
from paliglass.layers.losses import IGNORE
from paliglass.pictures import Picture, Pictures, PreparedPicture, load_picture, picture_rows

__all__ = ["IMAGE_TOKEN", "LOCATION_TOKENS", "SEGMENT_TOKENS", "PaliGemmaProcessor", "TextStream"]

IMAGE_TOKEN = "<image>"
LOCATION_TOKENS = tuple(f"<loc{i:04}>" for i in range(1024))
SEGMENT_TOKENS = tuple(f"<seg{i:03}>" for i in range(128))


class PaliGemmaProcessor:
    """Makes a model's inputs.

    Args:
        tokenizer: a `tokenizers.Tokenizer`, or one of transformers' fast tokenizers. Location,
            segment and image tokens are added where they are missing.
        num_image_tokens: N, placeholders per picture.
        image_size: side of the model's square, in pixels.
        image_mean, image_std: what is subtracted from numbers in [0, 1], and what divides them.
        resample: Pillow's filter.
    """

    def __init__(
        self,
        tokenizer: Any,
        num_image_tokens: int,
        image_size: int,
        *,
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
        resample: int = Image.Resampling.BICUBIC,
    ) -> None:
        self.tokenizer: Tokenizer = getattr(tokenizer, "backend_tokenizer", tokenizer)
        # A file may have stored these; they would cut or pad a prompt in silence.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.num_image_tokens = num_image_tokens
        self.image_size = image_size
        self.image_mean = np.asarray(image_mean, dtype=np.float32)
        self.image_std = np.asarray(image_std, dtype=np.float32)
        self.resample = Image.Resampling(resample)
        if not (np.isfinite(self.image_mean).all() and (self.image_std > 0).all()):
            raise CheckpointError(
                f"image_mean is {image_mean} and image_std {image_std}; they are numbers, the "
                "latter above 0"
            )
        if self.tokenizer.token_to_id(SEGMENT_TOKENS[-1]) is None:
            self.tokenizer.add_tokens([*LOCATION_TOKENS, *SEGMENT_TOKENS])
        if self.tokenizer.token_to_id(IMAGE_TOKEN) is None:
            image_token = AddedToken(IMAGE_TOKEN, normalized=False, special=True)
            self.tokenizer.add_special_tokens([image_token])
        self.image_token_id = self.token_id(IMAGE_TOKEN)
        self.pad_token_id, self.bos_token_id = self.token_id("<pad>"), self.token_id("<bos>")
        self.eos_token_id = self.token_id("<eos>")
        added = self.tokenizer.get_added_tokens_decoder().values()
        special = {token.content for token in added if token.special}
        special.update(LOCATION_TOKENS, SEGMENT_TOKENS)
        self._special = re.compile("|".join(map(re.escape, sorted(special))))

    def __call__(
        self,
        text: str | Sequence[str],
        images: Pictures | None = None,
        suffix: str | Sequence[str] | None = None,
        padding: Literal["longest", "max_length"] = "longest",
        max_length: int | None = None,
        padding_side: Literal["left", "right"] = "left",
        allow_special_tokens: bool = False,
    ) -> dict[str, Tensor]:
        """A batch of B prompts, with the pictures each of them is about.

        Args:
            text: the prompts, without `<image>`, `<bos>` or the closing newline.
            images: as many entries as prompts, each a picture or a list of pictures; with a single
                prompt (a string) also one picture, or a list of pictures for it.
            suffix: the answers to train on.
            padding: to the batch's longest row, or to `max_length`.
            padding_side: "left", as transformers pads this model; both sides give equal results.
            allow_special_tokens: let `<loc0001>` and the like in `text` be tokens.

        Returns:
            pixel_values N × 3 × S × S (float32; absent without pictures); input_ids,
            attention_mask, token_type_ids B × T (int64); labels B × T with a suffix.

        Raises:
            PictureError, PromptError: a picture that cannot be read; numbers that do not match; a
                row longer than `max_length`.
        """
        texts = [text] if isinstance(text, str) else list(text)
        rows = [[] for _ in texts] if images is None else picture_rows(images)
        pictures = [picture for row in rows for picture in row]
        if isinstance(text, str):  # all of them belong to the one prompt
            rows = [pictures]
        if len(rows) != len(texts):
            raise PromptError(
                f"{len(rows)} pictures for {len(texts)} prompts: give one for each, "
                "or a list of pictures for each"
            )
        batch = self.words(
            texts,
            [len(row) for row in rows],
            [suffix] if isinstance(suffix, str) else suffix,
            padding=padding,
            max_length=max_length,
            padding_side=padding_side,
            allow_special_tokens=allow_special_tokens,
        )
        if pictures:
            batch["pixel_values"] = torch.stack([self.pixels(picture) for picture in pictures])
        return batch

    def words(
        self,
        prompts: Sequence[str],
        num_pictures: Sequence[int],
        suffixes: Sequence[str] | None = None,
        *,
        padding: Literal["longest", "max_length"] = "longest",
        max_length: int | None = None,
        padding_side: Literal["left", "right"] = "left",
        allow_special_tokens: bool = False,
    ) -> dict[str, Tensor]:
        """The batch without its pixels: each prompt with places for its number of pictures."""
        if suffixes is not None and len(suffixes) != len(prompts):
            raise PromptError(f"{len(suffixes)} suffixes for {len(prompts)} prompts")
        rows, types = [], []
        for i, (prompt, count) in enumerate(zip(prompts, num_pictures, strict=True)):
            prefix = self.encode_prefix(prompt, count, allow_special_tokens)
            answer = [] if suffixes is None else self.encode_suffix(suffixes[i])
            rows.append(prefix + answer)
            types.append([0] * len(prefix) + [1] * len(answer))

        if padding not in ("longest", "max_length") or padding_side not in ("left", "right"):
            raise PromptError(
                f"padding is {padding!r} and padding_side {padding_side!r}; "
                "they must be longest or max_length, and left or right"
            )
        length = max(map(len, rows), default=0)
        if max_length is not None and length > max_length:
            raise PromptError(f"a prompt of {length} tokens is longer than max_length {max_length}")
        if padding == "max_length":
            if max_length is None:
                raise PromptError('padding="max_length" needs max_length')
            length = max_length

        batch = self.pad(rows, length, padding_side)
        batch["token_type_ids"] = _padded(types, 0, length, padding_side)
        if suffixes is not None:
            is_suffix = batch["token_type_ids"] == 1
            batch["labels"] = batch["input_ids"].masked_fill(~is_suffix, IGNORE)
        return batch

    def pad(
        self,
        rows: Sequence[Sequence[int]],
        length: int | None = None,
        padding_side: Literal["left", "right"] = "left",
    ) -> dict[str, Tensor]:
        """Rows of ids → input_ids and attention_mask, B × T; T is the longest's, or `length`."""
        length = max(map(len, rows), default=0) if length is None else length
        return {
            "input_ids": _padded(rows, self.pad_token_id, length, padding_side),
            "attention_mask": _padded([[1] * len(row) for row in rows], 0, length, padding_side),
        }

    def pixels(self, picture: Picture) -> Tensor:
        """A picture → 3 × S × S, float32, [−1, 1] with the usual mean and deviation."""
        return self.prepare(picture).pixels

    def prepare(self, picture: Picture) -> PreparedPicture:
        """What the model needs of a picture, to be given in its place; that itself, if it is one.

        Most of the work is Pillow's, which leaves Python free: threads can prepare pictures while
        the model runs, and what they keep is small however large the pictures are.
        """
        if isinstance(picture, PreparedPicture):
            return picture
        image = load_picture(picture)
        square = image.resize((self.image_size,) * 2, self.resample)
        return PreparedPicture(self.scale(np.asarray(square)), image.size)

    def scale(self, square: NDArray[np.uint8]) -> Tensor:
        """S × S × 3 of a resized picture → its pixels, 3 × S × S."""
        values = square.astype(np.float32) * np.float32(1 / 255)
        values = (values - self.image_mean) / self.image_std
        return torch.from_numpy(values.transpose(2, 0, 1).copy())

    def encode_prefix(
        self, prompt: str, num_pictures: int = 1, allow_special_tokens: bool = False
    ) -> list[int]:
        """The ids the model is given: pictures' places, `<bos>`, the prompt, a newline."""
        if allow_special_tokens:
            words = self._encode(prompt + "\n")
            if self.image_token_id in words:
                raise PromptError(
                    f"the prompt holds {IMAGE_TOKEN}; pictures get their places by themselves"
                )
        else:
            words = self.encode_plain(prompt + "\n")
        places = [self.image_token_id] * (num_pictures * self.num_image_tokens)
        return [*places, self.bos_token_id, *words]

    def encode_suffix(self, suffix: str) -> list[int]:
        """The ids the model is to answer, `<eos>` last."""
        return [*self._encode(suffix), self.eos_token_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Ids → text up to the first `<eos>`: location and segment tokens stay, others go."""
        ids = [int(i) for i in ids]
        if self.eos_token_id in ids:
            ids = ids[: ids.index(self.eos_token_id)]
        hidden = {self.pad_token_id, self.bos_token_id, self.image_token_id}
        # Not special tokens are skipped but these: a file may mark <loc0001> as special.
        text: str = self.tokenizer.decode(
            [i for i in ids if i not in hidden], skip_special_tokens=False
        )
        return text

    @cached_property
    def num_words(self) -> int:
        """W: ids below this one are words of the tokenizer, added ones too; `<image>` often is W.

        A model's table may have more rows, which mean nothing: transformers' files pad
        PaliGemma's 257 153 to 257 216.
        """
        count: int = self.tokenizer.get_vocab_size()
        return count - 1 if self.image_token_id == count - 1 else count

    def word_logits(self, logits: Tensor) -> Tensor:
        """Logits of a model's whole table, … × V → those of what an answer may say, … × W, float32.

        What the tokenizer has may be said, `<image>` excepted: −∞, where it lies among the words.
        """
        words = logits[..., : self.num_words].float()
        if self.image_token_id >= words.shape[-1]:
            return words
        column = torch.tensor([self.image_token_id], device=words.device)
        return words.index_fill(-1, column, -torch.inf)

    def is_byte(self, token_id: int) -> bool:
        """Whether an id stands for one byte, such as `<0x0A>`, of a text the vocabulary lacks."""
        token = self.tokenizer.id_to_token(token_id) or ""  # a table may have rows beyond the words
        return re.fullmatch(r"<0x[0-9A-F]{2}>", token) is not None

    def _encode(self, text: str) -> list[int]:
        try:
            ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        except TypeError:
            raise PromptError(f"{text!r} is not text that can be written as UTF-8") from None
        return ids

    def encode_plain(self, text: str) -> list[int]:
        """Text → ids, none of them special: a seam after its `<` keeps `<loc0001>` plain text."""
        ids: list[int] = []
        start = 0
        for match in self._special.finditer(text):
            seam = match.start() + 1
            ids += self._encode(text[start:seam])
            start = seam
        return ids + self._encode(text[start:])

    def token_id(self, token: str) -> int:
        """The id of a token that every PaliGemma has; CheckpointError where it is missing."""
        found = self.tokenizer.token_to_id(token)
        if found is None:
            raise CheckpointError(f"the tokenizer has no {token}: it is not PaliGemma's")
        return int(found)


class TextStream:
    """Ids as they come → the pieces of the text they make, each handed out once it is certain."""

    def __init__(self, processor: PaliGemmaProcessor) -> None:
        self._processor = processor
        self._ids: list[int] = []
        self.text = ""  # handed out so far

    def add(self, token_id: int) -> str:
        """What this id makes certain, often nothing."""
        self._ids.append(token_id)
        # A run of byte tokens is decoded as one: what it says is certain only when it is over.
        return "" if self._processor.is_byte(token_id) else self.end()

    def end(self) -> str:
        """The rest."""
        text = self._processor.decode(self._ids)
        piece, self.text = text[len(self.text) :], max(self.text, text, key=len)
        return piece


def _padded(rows: Sequence[Sequence[int]], fill: int, length: int, side: str) -> Tensor:
    """B lists → B × T."""
    out = torch.full((len(rows), length), fill, dtype=torch.long)
    for i, row in enumerate(rows):
        start = length - len(row) if side == "left" else 0
        out[i, start : start + len(row)] = torch.tensor(row, dtype=torch.long)
    return out
