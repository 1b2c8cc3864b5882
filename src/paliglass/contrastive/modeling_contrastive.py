"""The dual encoder: CLIP (arXiv 2103.00020) and SigLIP (arXiv 2303.15343).

    I [n, 3, h, w] ─ image_encoder ─ I_f [n, d_i] ─ W_i ─ l2_normalize ─ I_e [n, d_e] ─┐
                                                                       I_e · T_eᵀ · exp(t) (+ b)
    T [n, l] ─────── text_encoder ── T_f [n, d_t] ─ W_t ─ l2_normalize ─ T_e [n, d_e] ─┘

- picture and text meet only in the last product: a million pictures can be embedded once, and a
  new text then costs one encoding and a million dot products
- t, the logarithm of the scale, is learned: too soft and the loss cannot fall, too hard and it
  stops teaching anything but the worst mistake
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paliglass.contrastive.config import CbowConfig, ContrastiveConfig, ResNetConfig
from paliglass.contrastive.encoders import Cbow, ResNet, TextTransformer, VisionTransformer
from paliglass.contrastive.losses import (
    clip_loss,
    clip_loss_distributed,
    siglip_loss,
    siglip_loss_distributed,
    similarity,
)

__all__ = ["ContrastiveModel", "ContrastiveOutput"]

# exp(t) and b at the start. CLIP lets exp(t) grow to 100 and no further.
CLIP_SCALE, CLIP_MAX_SCALE = 1 / 0.07, 100.0
SIGLIP_SCALE, SIGLIP_BIAS = 10.0, -10.0


@dataclass
class ContrastiveOutput:
    """loss: of the batch's pairs. logits: B × B, pictures by texts. Embeddings: B × D, unit."""

    loss: Tensor
    logits: Tensor
    image_embeds: Tensor
    text_embeds: Tensor


class ContrastiveModel(nn.Module):
    """An image encoder, a text encoder, and the space in which they meet."""

    def __init__(self, config: ContrastiveConfig) -> None:
        super().__init__()
        self.config = config
        width = config.projection_dim
        self.image_encoder: nn.Module = (
            ResNet(config.image)
            if isinstance(config.image, ResNetConfig)
            else VisionTransformer(config.image, config.image_pooling)
        )
        self.text_encoder: nn.Module = (
            Cbow(config.text)
            if isinstance(config.text, CbowConfig)
            else TextTransformer(config.text)
        )
        self.image_projection: nn.Module = (
            nn.Linear(config.image.hidden_size, width, bias=config.projection_bias)
            if config.image_projection
            else nn.Identity()
        )
        self.text_projection = nn.Linear(
            config.text.hidden_size, width, bias=config.projection_bias
        )
        siglip = config.loss == "siglip"
        start = math.log(SIGLIP_SCALE if siglip else CLIP_SCALE)
        self.logit_scale = nn.Parameter(torch.full((1,), start))
        self.logit_bias = nn.Parameter(torch.full((1,), SIGLIP_BIAS)) if siglip else None

    @property
    def device(self) -> torch.device:
        return self.logit_scale.device

    @property
    def dtype(self) -> torch.dtype:
        return self.logit_scale.dtype

    @property
    def scale(self) -> Tensor:
        """exp(t), what cosines are multiplied by: one number."""
        return self.logit_scale.float().exp()

    def embed_images(self, pixel_values: Tensor) -> Tensor:
        """B × 3 × S × S, numbers in [−1, 1] → B × D float32, of unit length."""
        return F.normalize(self.image_projection(self.image_encoder(pixel_values)).float(), dim=-1)

    def embed_texts(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """B × T, and 0 on padding (on the right) → B × D float32, of unit length."""
        features = self.text_encoder(input_ids, attention_mask)
        return F.normalize(self.text_projection(features).float(), dim=-1)

    def logits(self, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """How well each picture goes with each text: B_i × D and B_t × D → B_i × B_t, float32."""
        bias = 0.0 if self.logit_bias is None else self.logit_bias.float()
        return similarity(image_embeds, text_embeds, self.scale, bias)

    def loss(self, image_embeds: Tensor, text_embeds: Tensor, distributed: bool = False) -> Tensor:
        """The configuration's loss on B pairs, both B × D.

        distributed: this process's share of the loss on all processes' pairs, by the convention of
        `contrastive.losses.siglip_loss_distributed`; every process must call it.
        """
        if self.logit_bias is None:
            clip = clip_loss_distributed if distributed else clip_loss
            return clip(image_embeds, text_embeds, self.scale)
        siglip = siglip_loss_distributed if distributed else siglip_loss
        return siglip(image_embeds, text_embeds, self.scale, self.logit_bias.float())

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        distributed: bool = False,
    ) -> ContrastiveOutput:
        """Loss and logits of B pairs: B × 3 × S × S, B × T, and B × T with 0 on padding.

        distributed: see `loss`; the logits are those of this process's pairs.

        Raises ValueError where the numbers of pictures and texts differ.
        """
        if len(pixel_values) != len(input_ids):
            raise ValueError(
                f"{len(pixel_values)} pictures and {len(input_ids)} texts: a batch is made of pairs"
            )
        if self.training and self.config.loss == "clip":
            with torch.no_grad():  # the value itself: clamped in the graph it could not come back
                self.logit_scale.clamp_(max=math.log(CLIP_MAX_SCALE))
        image_embeds = self.embed_images(pixel_values)
        text_embeds = self.embed_texts(input_ids, attention_mask)
        return ContrastiveOutput(
            self.loss(image_embeds, text_embeds, distributed),
            self.logits(image_embeds, text_embeds),
            image_embeds,
            text_embeds,
        )
