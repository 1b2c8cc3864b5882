"""6 · The loop: prefill once, then decode token by token.

- the pictures go through the vision tower once, before anything else
- prefill runs the whole prompt and fills the cache; a decode step runs one token a row
- only the last position's logits are ever computed, and only real words can be chosen
- rows of one batch may have prompts of different length, padded on either side
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from paliglass.errors import PromptError
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.ops.kv_cache import KVCache
from paliglass.sampling import Sampling, choose

GREEDY = Sampling()


@dataclass(frozen=True)
class Step:
    """One token for each row. ids: B; log_probs: B, nats; is_new: B, False once a row has ended."""

    ids: Tensor
    log_probs: Tensor
    is_new: Tensor


@dataclass(frozen=True)
class Completion:
    """What a row was answered: ids without `<eos>`, the log-probability of each, and whether
    `<eos>` ended it (else the limit did).
    """

    ids: list[int]
    log_probs: list[float]
    ended: bool


def prefill(
    model: PaliGemmaForConditionalGeneration, batch: Mapping[str, Tensor], cache: KVCache
) -> Tensor:
    """Runs the prompts, fills the cache: the logits after each prompt's last token, B × V."""
    attention_mask = batch["attention_mask"]
    hidden = model.hidden_states(
        batch["input_ids"],
        pixel_values=batch.get("pixel_values"),
        image_features=batch.get("image_features"),
        attention_mask=attention_mask,
        kv_cache=cache,
    )
    places = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    last = (attention_mask * places).argmax(-1)
    return model.language_model.logits(hidden[torch.arange(len(hidden)), last])


def decode_one_token(
    model: PaliGemmaForConditionalGeneration, ids: Tensor, cache: KVCache
) -> Tensor:
    """Runs one more token of each row, ids B: the logits after it, B × V."""
    hidden = model.hidden_states(ids[:, None], kv_cache=cache)
    return model.language_model.logits(hidden[:, -1])


@torch.inference_mode()
def generate_steps(
    model: PaliGemmaForConditionalGeneration,
    batch: Mapping[str, Tensor],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    first_row: int = 0,
) -> Iterator[Step]:
    """Answers a processor's batch, one step at a time, until every row has said `<eos>`.

    Stops after `max_new_tokens`, or when the model's length (max_position_embeddings) is full.
    `image_features` in the batch stands for pixel_values that went through the tower before.
    `first_row` is the batch's place in a longer list: what tells its random numbers from others'.

    Raises PromptError for a prompt that leaves no room for an answer.
    """
    config = model.config
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    rows, prompt_length = batch["input_ids"].shape
    limit = config.text_config.max_position_embeddings
    if prompt_length >= limit:
        raise PromptError(
            f"the prompt has {prompt_length} tokens with its pictures; the model takes fewer than "
            f"{limit}"
        )
    max_new_tokens = min(max_new_tokens, limit - prompt_length)
    if max_new_tokens < 1:
        return
    cache = model.new_cache(rows, prompt_length + max_new_tokens)
    sources = [sampling.source(first_row + row) for row in range(rows)]
    ends = torch.tensor(config.text_config.eos_token_ids, device=model.device)
    running = torch.ones(rows, dtype=torch.bool, device=model.device)
    logits = prefill(model, batch, cache)
    for step in range(max_new_tokens):
        ids, log_probs = choose(logits[:, : config.real_vocab_size], sampling, sources)
        yield Step(ids, log_probs, running)
        running = running & ~torch.isin(ids, ends)
        if step + 1 == max_new_tokens or not running.any():
            return
        logits = decode_one_token(model, ids, cache)


def generate(
    model: PaliGemmaForConditionalGeneration,
    batch: Mapping[str, Tensor],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    first_row: int = 0,
) -> list[Completion]:
    """All steps of `generate_steps`, row by row."""
    steps = list(generate_steps(model, batch, max_new_tokens, sampling, first_row))
    if not steps:
        return [Completion([], [], False) for _ in batch["input_ids"]]
    ids = torch.stack([step.ids for step in steps], dim=1).tolist()
    log_probs = torch.stack([step.log_probs for step in steps], dim=1).tolist()
    lengths = torch.stack([step.is_new for step in steps], dim=1).sum(1).tolist()
    ends = model.config.text_config.eos_token_ids
    completions = []
    for row_ids, row_log_probs, length in zip(ids, log_probs, lengths, strict=True):
        ended = row_ids[length - 1] in ends
        kept = length - 1 if ended else length
        completions.append(Completion(row_ids[:kept], row_log_probs[:kept], ended))
    return completions
