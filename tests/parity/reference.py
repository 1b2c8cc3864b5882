"""transformers' PaliGemma and ours with the same weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from tests.tiny import randomise
from torch import Tensor

from paliglass import PaliGemmaConfig
from paliglass.checkpoints.assembly import assemble
from paliglass.checkpoints.config_json import paligemma_to_json
from paliglass.checkpoints.layouts import module_name
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration

NEVER = 319  # an end-of-sequence id that is never generated: the tiny model's <image>


def reference_config(config: PaliGemmaConfig) -> Any:
    """transformers' configuration, from the JSON that ours writes."""
    return transformers.PaliGemmaConfig.from_dict(paligemma_to_json(config))


def reference_model(
    config: PaliGemmaConfig, attention: str = "eager", std: float = 0.2, seed: int = 0
) -> Any:
    """A transformers model. Its kernels other than eager leave Gemma 2's softcap out."""
    theirs = transformers.PaliGemmaForConditionalGeneration._from_config(
        reference_config(config), attn_implementation=attention
    )
    randomise(theirs, std, seed)
    return theirs.eval()


def ours_from(theirs: Any, config: PaliGemmaConfig) -> PaliGemmaForConditionalGeneration:
    state = copy.deepcopy(theirs.state_dict())
    return assemble(config, ((module_name(key), key, t) for key, t in state.items()), "memory")


def pair(config: PaliGemmaConfig, **options: Any) -> tuple[Any, PaliGemmaForConditionalGeneration]:
    theirs = reference_model(config, **options)
    return theirs, ours_from(theirs, config)


def logits_of(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Logits where there are tokens: what padding says is nobody's business."""
    with torch.inference_mode():
        logits: Tensor = model(**batch).logits
    return logits[batch["attention_mask"].bool()].float()
