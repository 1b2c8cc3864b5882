"""SigLIP's vision tower: a picture becomes one vector per patch.

A Vision Transformer (arXiv 2010.11929) trained contrastively (arXiv 2303.15343). What is unusual:

- no class token and no pooling: PaliGemma wants every patch, in reading order
- positions are learned, one vector a patch; attention is full, any patch sees any other
- biases everywhere, LayerNorm before each block (pre-norm), tanh-GELU
- So400m is "shape-optimised" (arXiv 2305.13035): width 1152, 27 layers, 16 heads of 72
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paliglass.config import SigLipConfig
from paliglass.layers.attention import Attention

__all__ = [
    "SigLipAttention",
    "SigLipMLP",
    "SigLipVisionEmbeddings",
    "SigLipVisionEncoder",
    "SigLipVisionEncoderLayer",
    "SigLipVisionModel",
    "SigLipVisionTransformer",
    "interpolate_positions",
    "with_positions",
]


class SigLipVisionEmbeddings(nn.Module):
    """Cuts the picture into patches, projects each to the tower's width, adds its position."""

    def __init__(self, config: SigLipConfig) -> None:
        super().__init__()
        self.image_size = config.image_size
        # A convolution whose stride is its kernel: one linear map, applied to each patch.
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size
        )
        self.position_embedding = nn.Embedding(config.num_patches, config.hidden_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """B × 3 × S × S, numbers in [−1, 1] → B × P × D, patches row by row."""
        if pixel_values.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"pixel_values are {tuple(pixel_values.shape)}; this tower takes pictures of "
                f"{self.image_size} × {self.image_size}"
            )
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        patches = patches.flatten(2).transpose(1, 2)  # B D √P √P -> B P D
        return patches.contiguous() + self.position_embedding.weight


class SigLipAttention(nn.Module):
    """Multi-head self-attention over patches, without a mask."""

    def __init__(self, config: SigLipConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.attention = Attention(scale=config.head_dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """B × P × D → B × P × D."""
        query, key, value = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # B H P head_dim
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(self.attention(query, key, value, None))


class SigLipMLP(nn.Module):
    """Two linear layers with a tanh-GELU between them, on each patch alone."""

    def __init__(self, config: SigLipConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """B × P × D → B × P × D."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class SigLipVisionEncoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: SigLipConfig) -> None:
        super().__init__()
        self.self_attn = SigLipAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = SigLipMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """B × P × D → B × P × D."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class SigLipVisionEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: SigLipConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            SigLipVisionEncoderLayer(config) for _ in range(config.num_hidden_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """B × P × D → B × P × D."""
        for layer in self.layers:
            x = layer(x)
        return x


class SigLipVisionTransformer(nn.Module):
    """Embeddings, encoder, and a LayerNorm at the end."""

    def __init__(self, config: SigLipConfig) -> None:
        super().__init__()
        self.embeddings = SigLipVisionEmbeddings(config)
        self.encoder = SigLipVisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """B × 3 × S × S → B × P × D."""
        return self.post_layernorm(self.encoder(self.embeddings(pixel_values)))


class SigLipVisionModel(nn.Module):
    """The tower under the name that checkpoints give it: `vision_tower.vision_model.…`."""

    def __init__(self, config: SigLipConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = SigLipVisionTransformer(config)
        self.apply(self._init_weights)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """B × 3 × S × S, numbers in [−1, 1] → B × P × D: a contextual embedding per patch."""
        return self.vision_model(pixel_values)

    def _init_weights(self, module: nn.Module) -> None:
        """Xavier for matrices, as SigLIP's training starts; positions with deviation 1/√D."""
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.hidden_size**-0.5)
        elif isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            torch.nn.init.trunc_normal_(module.weight, std=fan_in**-0.5)
            assert module.bias is not None
            nn.init.zeros_(module.bias)


def interpolate_positions(table: Tensor, side: int) -> Tensor:
    """A tower's position embeddings, P × D, for side × side patches: a learned picture, resized.

    So PaliGemma goes on from 224 to 448 pixels (arXiv 2407.07726, section 3.2.3).
    """
    old = math.isqrt(len(table))
    if old == side:
        return table
    picture = table.T.reshape(1, -1, old, old)  # 1 × D × √P × √P
    return F.interpolate(picture, (side, side), mode="bicubic")[0].flatten(1).T.contiguous()


def with_positions(state: dict[str, Tensor], side: int) -> dict[str, Tensor]:
    """The weights of a tower, or of a model with one, for side × side patches."""
    (name,) = (name for name in state if name.endswith("position_embedding.weight"))
    return state | {name: interpolate_positions(state[name], side)}
