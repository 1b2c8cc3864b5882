"""The names under which published files keep the same weights → the names of our modules.

(a) language_model.model.layers.0.…   vision_tower.vision_model.encoder.…   ours, published
(b) model.language_model.layers.0.…   model.vision_tower.vision_model.…     lm_head
(c) language_model.model.layers.0.…   vision_tower.encoder.…                transformers 5
(d) vlm.… before any of these, and embedding_proj_layer.…                   ColPali, transformers
(e) model.… before any of these, and custom_text_proj.…                     ColPali, colpali-engine
"""

from __future__ import annotations

import re

__all__ = ["EMBEDDING", "HEAD", "module_name", "transformers_name"]

EMBEDDING = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"

_WRAPPED = r"^(?:vlm\.)?(?:model\.)*"
_RULES = (
    (
        re.compile(_WRAPPED + r"language_model\.(?:model\.)?(?=embed_tokens|layers|norm)"),
        "language_model.model.",
    ),
    (re.compile(_WRAPPED + r"(?:language_model\.)?lm_head\."), "language_model.lm_head."),
    (
        re.compile(
            _WRAPPED + r"vision_tower\.(?:vision_model\.)?(?=embeddings|encoder|post_layernorm)"
        ),
        "vision_tower.vision_model.",
    ),
    (re.compile(_WRAPPED + r"multi_modal_projector\."), "multi_modal_projector."),
    (re.compile(r"^custom_text_proj(?=\.|$)"), "embedding_proj_layer"),
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
