"""A small tokenizer, learned from texts: byte-pair encoding (arXiv 1508.07909) in Gemma's style.

    0 <pad>  1 <eos>  2 <bos>  3 <unk>  4 … 259 the bytes <0x00> … <0xFF>  260 newline
    261 … 2047     characters and merges
    2048 … 3071    <loc0000> … <loc1023>
    3072 … 3199    <seg000> … <seg127>
    3200           <image>

- a space is `▁`, glued to the front of the word it precedes; no dummy space opens a text
- what the merges cannot spell falls back to bytes, so every text has ids and comes back whole
- digits and capitals are never merged: reading a sign is naming its characters
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers.pre_tokenizers import Split
from tokenizers.trainers import BpeTrainer

from paliglass.processing_paligemma import IMAGE_TOKEN, LOCATION_TOKENS, SEGMENT_TOKENS

__all__ = ["BASE_VOCABULARY", "train_tokenizer"]

BASE_VOCABULARY = 2048
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
# Letters may be merged, together with the space before them. Everything else stands alone.
PIECE = Regex(r"▁?[a-z]+|[^a-z]")


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A tokenizer of 3201 ids whose merges were learned from `texts` (repeats count)."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = Split(PIECE, "isolated")
    reserved = len(SPECIAL) + len(BYTES) + 1
    trainer = BpeTrainer(
        vocab_size=BASE_VOCABULARY - reserved,
        initial_alphabet=["▁", *map(chr, range(ord("!"), ord("~") + 1))],
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    learned = json.loads(learner.to_str())["model"]
    pieces = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    pieces = [piece for piece in pieces if piece != "\n"]
    # A small corpus runs out of merges; the ids above must stay where they are.
    spare = [f"<unused{i}>" for i in range(BASE_VOCABULARY - reserved - len(pieces))]
    base = [*SPECIAL, *BYTES, "\n", *pieces, *spare]

    # No pre-tokenizer: no merge crosses a piece's edge, so whole texts split the same way.
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(base)},
            merges=[tuple(merge) for merge in learned["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    tokenizer.add_tokens(
        [AddedToken(t, normalized=False) for t in (*LOCATION_TOKENS, *SEGMENT_TOKENS)]
    )
    tokenizer.add_special_tokens([AddedToken(IMAGE_TOKEN, normalized=False, special=True)])
    return tokenizer
