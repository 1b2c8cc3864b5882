"""3 · PaliGemma (arXiv 2407.07726, 2412.03555): picture and words in one sequence.

    pixel_values ─ vision_tower ─ multi_modal_projector ─┐
                                                      merge ─ language_model ─ logits
    input_ids ──── embed_tokens ─────────────────────────┘

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
from paliglass.layers.losses import Reduction, suffix_cross_entropy
from paliglass.layers.masks import cached_mask, prefix_lm_mask, sliding_window
from paliglass.modeling_gemma import GemmaForCausalLM
from paliglass.modeling_siglip import SigLipVisionModel


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

    def merge(self, input_ids: Tensor, image_features: Tensor | None) -> Tensor:
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

    def hidden_states(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        image_features: Tensor | None = None,
        kv_cache: KVCache | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """All of `forward` but the output layer: B × T × D, for those who need few logits.

        wanted: a place in each row, B, for those who need what comes out there alone, B × 1 × D.
        """
        is_prompt = kv_cache is None or kv_cache.max_length == 0
        if is_prompt and image_features is None and pixel_values is not None:
            image_features = self.get_image_features(pixel_values)
        if attention_mask is None:
            is_token = torch.ones_like(input_ids, dtype=torch.bool)
        else:  # of a longer mask, which tells of the cached tokens too, the last T columns count
            is_token = attention_mask[:, -input_ids.shape[1] :].bool()

        if kv_cache is None or is_prompt:
            embeddings = self.merge(input_ids, image_features)
            positions = is_token.long().cumsum(-1).clamp(min=1)
            key_positions = positions
            is_suffix = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            mask = prefix_lm_mask(is_suffix, is_token)
            if kv_cache is not None:
                kv_cache.reserve(is_token)
        else:  # past the prompt there are words alone: no picture, and no count of its places
            embeddings = self.language_model.model.embed(input_ids)
            slots = kv_cache.reserve(is_token)
            positions = slots + 1
            is_suffix = torch.ones_like(input_ids)
            mask = cached_mask(slots, kv_cache.max_length)
            key_positions = torch.arange(1, kv_cache.max_length + 1, device=mask.device)[None]

        text = self.config.text_config
        masks = [mask] * text.num_hidden_layers
        if text.sliding_window is not None:
            narrow = sliding_window(mask, positions, key_positions, is_suffix, text.sliding_window)
            masks = [narrow if text.layer_window(i) else mask for i in range(len(masks))]
        return self.language_model.model(embeddings, positions, masks, kv_cache, wanted)

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
                With a filled cache they are not looked at again.
            attention_mask: B × T, 0 on padding (on either side). None: no padding. With a filled
                cache it may also cover the cached tokens; only the last T columns are read.
            token_type_ids: B × T, 1 on the suffix, which is causal. None: all of it is prefix and
                sees itself fully, padded or not. Ignored with a filled cache: what follows the
                prompt is suffix.
            labels: B × T, −100 where nothing is to be predicted.
            kv_cache: where to continue. None: without labels a new one is returned, to go on from;
                `new_cache` makes one of a known capacity.
            image_features: instead of pixel_values, what `get_image_features` made of them.
            loss_reduction: see `layers.losses.suffix_cross_entropy`.
        """
        if kv_cache is None and labels is None:
            kv_cache = self.new_cache(*input_ids.shape)
        hidden = self.hidden_states(
            input_ids, pixel_values, attention_mask, token_type_ids, image_features, kv_cache
        )
        logits = self.language_model.logits(hidden)
        loss = None if labels is None else suffix_cross_entropy(logits, labels, loss_reduction)
        return PaliGemmaOutput(logits, kv_cache, loss)

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """An empty cache for rows of up to `capacity` tokens, prompt and answer together."""
        return KVCache(self.config.text_config, batch_size, capacity, self.device, self.dtype)
