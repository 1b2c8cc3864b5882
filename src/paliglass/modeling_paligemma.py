"""PaliGemma (arXiv 2407.07726, 2412.03555): picture and words in one sequence.

    pixel_values ─ vision_tower ─ multi_modal_projector ─┐
                                                      merge ─ language_model ─ logits
    input_ids ──── embed_tokens ─────────────────────────┘

- four methods: `embed` merges picture and words; `prefill` runs a whole prompt; `extend` runs what
  follows it on a filled cache; `forward` adds logits and loss to one of the two
- the `<image>` ids are placeholders: their embeddings are replaced by the picture's features
- features enter as the projector makes them; only word embeddings are multiplied by √D
- picture and prompt see each other fully, the answer is causal (a prefix-LM)
- positions count from 1, as transformers counts them: the same rounding in bfloat16
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paliglass.config import PaliGemmaConfig
from paliglass.layers.kv_cache import KVCache
from paliglass.layers.losses import IGNORE, Reduction, suffix_cross_entropy
from paliglass.layers.masks import cached_mask, prefix_lm_mask
from paliglass.modeling_gemma import GemmaForCausalLM
from paliglass.modeling_siglip import SigLipVisionModel

__all__ = ["PaliGemmaForConditionalGeneration", "PaliGemmaMultiModalProjector", "PaliGemmaOutput"]


@dataclass
class PaliGemmaOutput:
    """logits: B × T × V. kv_cache: what a next call continues from. loss: with labels only."""

    logits: Tensor
    kv_cache: KVCache | None = None
    loss: Tensor | None = None


class PaliGemmaMultiModalProjector(nn.Module):
    """One linear layer from the vision tower's width to the decoder's."""

    def __init__(self, config: PaliGemmaConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """B × P × D_vision → B × P × D."""
        return self.linear(x)


class PaliGemmaForConditionalGeneration(nn.Module):
    """The whole model, from pixels and ids to logits."""

    def __init__(self, config: PaliGemmaConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_tower = SigLipVisionModel(config.vision_config)
        self.multi_modal_projector = PaliGemmaMultiModalProjector(config)
        self.language_model = GemmaForCausalLM(config.text_config)

    @property
    def device(self) -> torch.device:
        return self.language_model.model.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.language_model.model.norm.weight.dtype

    def tie_weights(self) -> None:
        self.language_model.tie_weights()

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """N pictures, N × 3 × S × S → N × P × D, ready for the merge.

        They depend on the picture alone, so they serve any number of prompts about it. The
        decoder's keys and values do not: there the picture's tokens have seen the prompt.
        """
        return self.multi_modal_projector(self.vision_tower(pixel_values))

    def embed(self, input_ids: Tensor, image_features: Tensor | None = None) -> Tensor:
        """Embeds ids B × T and puts the features in the places of `<image>`, in order: B × T × D.

        Raises ValueError where the numbers of places and features differ.
        """
        is_image = input_ids == self.config.image_token_index
        # The id of <image> may lie outside the table; its row is never used.
        embeddings = self.language_model.model.embed(input_ids.masked_fill(is_image, 0))
        places = int(is_image.sum())
        given = 0 if image_features is None else image_features[..., 0].numel()
        if places != given:
            raise ValueError(
                f"input_ids hold {places} <image> tokens, the pictures give {given} features"
            )
        if image_features is None:
            return embeddings
        return embeddings.masked_scatter(is_image[..., None], image_features.to(embeddings.dtype))

    def prefill(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        image_features: Tensor | None = None,
        kv_cache: KVCache | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Runs whole rows, pictures and words: B × T ids → B × T × D, before the output layer.

        Arguments as in `forward`. kv_cache: an empty one, which is filled. last_only: what comes
        out at each row's last token alone, B × D.

        Raises ValueError for a cache that is filled already.
        """
        if image_features is None and pixel_values is not None:
            image_features = self.get_image_features(pixel_values)
        embeddings = self.embed(input_ids, image_features)
        is_token = _is_token(input_ids, attention_mask)
        is_suffix = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        counts = is_token.long().cumsum(-1)
        if kv_cache is not None:
            if not kv_cache.is_empty:
                raise ValueError("the cache is filled: `extend` goes on from it, with words alone")
            kv_cache.reserve(is_token)
        return self.language_model.model(
            embeddings,
            counts.clamp(min=1),
            prefix_lm_mask(is_suffix, is_token),
            kv_cache,
            counts.argmax(-1) if last_only else None,
        )

    def extend(
        self, input_ids: Tensor, kv_cache: KVCache, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Runs the next tokens of each row, B × T, on a filled cache: B × T × D.

        attention_mask: B × T, 0 on padding, so that rows may have unlike numbers of new tokens; of
        a longer one, which tells of the cached tokens too, the last T columns count.
        """
        slots = kv_cache.reserve(_is_token(input_ids, attention_mask))
        embeddings = self.language_model.model.embed(input_ids)
        mask = cached_mask(slots, kv_cache.max_length)
        return self.language_model.model(embeddings, slots + 1, mask, kv_cache)

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        kv_cache: KVCache | None = None,
        image_features: Tensor | None = None,
        loss_reduction: Reduction = "token_mean",
    ) -> PaliGemmaOutput:
        """Logits for every token, and the loss where labels are given.

        Args:
            input_ids: B × T; P places of `<image>` for each picture.
            pixel_values: N × 3 × S × S, the pictures of the batch in order, numbers in [−1, 1].
            attention_mask: B × T, 0 on padding (on either side). None: no padding. With a filled
                cache it may also cover the cached tokens; only the last T columns are read.
            token_type_ids: B × T, 1 on the suffix, which is causal. None: what the labels say is
                suffix; without labels all of it is prefix and sees itself fully, padded or not.
            labels: B × T, −100 where nothing is to be predicted.
            kv_cache: where to continue (`extend`). None: without labels a new one is returned, to
                go on from; `new_cache` makes an empty one of a known capacity, to be filled.
            image_features: instead of pixel_values, what `get_image_features` made of them.
            loss_reduction: see `layers.losses.suffix_cross_entropy`.

        Raises ValueError for arguments that do not go together.
        """
        if labels is not None and labels.shape != input_ids.shape:
            raise ValueError(
                f"labels are {tuple(labels.shape)}, input_ids {tuple(input_ids.shape)}: a label "
                "for each token, -100 where there is none"
            )
        if kv_cache is not None and not kv_cache.is_empty:
            if pixel_values is not None or image_features is not None:
                raise ValueError("the cache holds a prompt with its pictures: words alone follow")
            hidden = self.extend(input_ids, kv_cache, attention_mask)
        else:
            if labels is not None and token_type_ids is None:
                token_type_ids = ((labels != IGNORE).cumsum(-1) > 0).long()
            if kv_cache is None and labels is None:
                kv_cache = self.new_cache(*input_ids.shape)
            hidden = self.prefill(
                input_ids,
                pixel_values,
                attention_mask=attention_mask,
                token_type_ids=token_type_ids,
                image_features=image_features,
                kv_cache=kv_cache,
            )
        logits = self.language_model.logits(hidden)
        loss = None if labels is None else suffix_cross_entropy(logits, labels, loss_reduction)
        return PaliGemmaOutput(logits, kv_cache, loss)

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """An empty cache for rows of up to `capacity` tokens, prompt and answer together."""
        return KVCache(self.config.text_config, batch_size, capacity, self.device, self.dtype)

    def find_broken_weight(self) -> str | None:
        """The name of the first weight that holds NaN or an infinity."""
        for name, weight in (*self.named_parameters(), *self.named_buffers()):
            if weight.is_floating_point() and not weight.isfinite().all():
                return name
        return None


def _is_token(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """B × T, False on padding."""
    if attention_mask is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    return attention_mask[:, -input_ids.shape[1] :].bool()
