"""The names under which published files keep the same weights → the names of our modules.

(a) language_model.model.layers.0.…   vision_tower.vision_model.encoder.…   ours, published
(b) model.language_model.layers.0.…   model.vision_tower.vision_model.…     lm_head
(c) language_model.model.layers.0.…   vision_tower.encoder.…                transformers 5
"""

from __future__ import annotations

import re

__all__ = ["EMBEDDING", "HEAD", "module_name", "transformers_name"]

EMBEDDING = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"

_RULES = (
    (re.compile(r"^model\.language_model\."), "language_model.model."),
    (re.compile(r"^model\.(vision_tower|multi_modal_projector)\."), r"\1."),
    (re.compile(r"^lm_head\."), "language_model.lm_head."),
    (
        re.compile(r"^vision_tower\.(embeddings|encoder|post_layernorm)\."),
        r"vision_tower.vision_model.\1.",
    ),
)


def module_name(key: str) -> str:
    """The key of any known layout in ours; an unknown key comes back as it is."""
    for pattern, replacement in _RULES:
        key = pattern.sub(replacement, key)
    return key


_THEIRS = (
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.vision_model.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)


def transformers_name(name: str) -> str:
    """What transformers 5 calls the module or parameter that is `name` here."""
    for ours, theirs in _THEIRS:
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    return name
