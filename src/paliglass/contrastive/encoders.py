"""The encoders: a picture or a text becomes one feature vector.

image_encoder   VisionTransformer  SigLIP's tower, its patches pooled by attention or averaged
                ResNet             convolutions with shortcuts
text_encoder    TextTransformer    SigLIP's or CLIP's
                Cbow               the mean of the words' embeddings
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paliglass.config import SigLipConfig
from paliglass.contrastive.config import (
    CbowConfig,
    ImagePooling,
    ResNetConfig,
    TextTransformerConfig,
)
from paliglass.layers.attention import Attention
from paliglass.modeling_siglip import SigLipMLP, SigLipVisionModel

__all__ = [
    "AttentionPooling",
    "BasicBlock",
    "Cbow",
    "ResNet",
    "TextAttention",
    "TextEmbeddings",
    "TextEncoder",
    "TextLayer",
    "TextMLP",
    "TextTransformer",
    "VisionTransformer",
]

# ------------------------------------------------------------------ pictures


class AttentionPooling(nn.Module):
    """SigLIP's pooling head: a learned probe asks all patches and gets one vector back.

    Attention with one query (multi-head attention pooling, arXiv 1810.00825), then an MLP on top:
    `y = attention(probe, patches); y + mlp(norm(y))`.
    """

    def __init__(self, config: SigLipConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.probe = nn.Parameter(torch.empty(1, 1, width))
        self.attention = nn.MultiheadAttention(width, config.num_attention_heads, batch_first=True)
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = SigLipMLP(config)
        nn.init.normal_(self.probe, std=width**-0.5)
        for linear in (self.mlp.fc1, self.mlp.fc2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, patches: Tensor) -> Tensor:
        """B × P × D → B × D."""
        probe = self.probe.expand(len(patches), -1, -1)
        pooled: Tensor = self.attention(probe, patches, patches, need_weights=False)[0][:, 0]
        return pooled + self.mlp(self.layernorm(pooled))


class VisionTransformer(nn.Module):
    """PaliGemma's own vision tower, and what makes one vector of its patches."""

    def __init__(self, config: SigLipConfig, pooling: ImagePooling) -> None:
        super().__init__()
        self.tower = SigLipVisionModel(config)
        self.head = AttentionPooling(config) if pooling == "attention" else None

    def forward(self, pixel_values: Tensor) -> Tensor:
        """B × 3 × S × S, numbers in [−1, 1] → B × D."""
        patches = self.tower(pixel_values)
        return patches.mean(1) if self.head is None else self.head(patches)


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    """A convolution without bias (the norm's would undo it) and its BatchNorm."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    norm = nn.BatchNorm2d(outputs)
    norm.num_batches_tracked = None  # only a cumulative average would need it; ours is a moving one
    return nn.Sequential(convolution, norm)


class BasicBlock(nn.Module):
    """relu(shortcut(x) + conv(relu(conv(x)))), 3 × 3 each.

    The shortcut is x itself, or a 1 × 1 convolution where side or channels change. The last norm's
    scale starts at 0, so that every block starts as its shortcut (arXiv 1706.02677).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else _convolution(inputs, outputs, 1, stride)
        self.convolution1 = _convolution(inputs, outputs, 3, stride)
        self.convolution2 = _convolution(outputs, outputs, 3, 1)
        nn.init.zeros_(self.convolution2[1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """B × C × h × w → B × C' × h/stride × w/stride."""
        return F.relu(self.shortcut(x) + self.convolution2(F.relu(self.convolution1(x))))


class ResNet(nn.Module):
    """Stem, stages of basic blocks, global average pooling (arXiv 1512.03385).

    BatchNorm (arXiv 1502.03167) normalises with the batch's own mean and variance in training, and
    with their moving averages in evaluation: only then does a picture's vector not depend on the
    pictures beside it.
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.image_size = config.image_size
        width = config.hidden_sizes[0]
        self.stem = _convolution(config.num_channels, width, 7, 2)
        blocks: list[nn.Module] = []
        for stage, (channels, depth) in enumerate(
            zip(config.hidden_sizes, config.depths, strict=True)
        ):
            for block in range(depth):
                blocks.append(BasicBlock(width, channels, 2 if stage and not block else 1))
                width = channels
        self.blocks = nn.Sequential(*blocks)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """B × 3 × S × S, numbers in [−1, 1] → B × D."""
        if pixel_values.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"pixel_values are {tuple(pixel_values.shape)}; this encoder takes pictures of "
                f"{self.image_size} × {self.image_size}"
            )
        x = F.relu(self.stem(pixel_values.to(next(self.parameters()).dtype)))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        return self.blocks(x).mean((-2, -1))


# --------------------------------------------------------------------- texts


class TextAttention(nn.Module):
    """Multi-head self-attention over tokens, under a mask."""

    def __init__(self, config: TextTransformerConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.attention = Attention(scale=config.head_dim**-0.5)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """B × T × D, mask B or 1 × 1 × T or 1 × T (True = may see) → B × T × D."""
        query, key, value = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # B H T head_dim
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(self.attention(query, key, value, mask))


class TextMLP(nn.Module):
    """Two linear layers, between them SigLIP's tanh-GELU or CLIP's x · σ(1.702 x)."""

    def __init__(self, config: TextTransformerConfig) -> None:
        super().__init__()
        self.quick = config.hidden_act == "quick_gelu"
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """B × T × D → B × T × D."""
        x = self.fc1(x)
        return self.fc2(x * (1.702 * x).sigmoid() if self.quick else F.gelu(x, approximate="tanh"))


class TextLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: TextTransformerConfig) -> None:
        super().__init__()
        self.self_attn = TextAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = TextMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """B × T × D → B × T × D."""
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class TextEmbeddings(nn.Module):
    """The token's embedding plus its position's."""

    def __init__(self, config: TextTransformerConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, input_ids: Tensor) -> Tensor:
        """B × T → B × T × D."""
        positions = self.position_embedding.weight
        length = input_ids.shape[1]
        if length > len(positions):
            raise ValueError(
                f"input_ids are {length} tokens long; this encoder has {len(positions)} positions"
            )
        return self.token_embedding(input_ids) + positions[:length]


class TextEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: TextTransformerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TextLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """B × T × D → B × T × D."""
        for layer in self.layers:
            x = layer(x, mask)
        return x


class TextTransformer(nn.Module):
    """A Transformer whose last token stands for the text.

    The last token is the one before the padding (the end-of-text token, as in CLIP), or, where
    texts are padded to all positions and padding counts as a word, the last position (SigLIP).
    """

    def __init__(self, config: TextTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = TextEmbeddings(config)
        self.encoder = TextEncoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.apply(self._init_weights)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """B × T, and 0 on padding (to the right of the text) → B × D.

        A model with `padding="max_length"` has no use for the mask and ignores it.
        """
        batch, length = input_ids.shape
        if attention_mask is None or self.config.padding == "max_length":
            is_token = None
            last = torch.full((batch,), length - 1, device=input_ids.device)
        else:
            is_token = attention_mask.bool()
            last = (is_token.sum(-1) - 1).clamp(min=0)
        x = self.encoder(self.embeddings(input_ids), self._mask(is_token, input_ids))
        return self.final_layer_norm(x[torch.arange(batch, device=x.device), last])

    def _mask(self, is_token: Tensor | None, input_ids: Tensor) -> Tensor | None:
        """Who may look at whom, B or 1 × 1 × T or 1 × T; None: everyone at everyone."""
        if self.config.causal:
            # The past holds no padding, for that is on the right: no need to hide it.
            length = input_ids.shape[1]
            square = torch.ones(length, length, dtype=torch.bool, device=input_ids.device)
            return square.tril()[None, None]
        return None if is_token is None else is_token[:, None, None, :]

    def _init_weights(self, module: nn.Module) -> None:
        """Xavier for matrices; embeddings with deviation 1/√D."""
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.hidden_size**-0.5)


class Cbow(nn.Module):
    """The mean of the tokens' embeddings: "dog bites man" is "man bites dog"."""

    def __init__(self, config: CbowConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        nn.init.normal_(self.token_embedding.weight, std=config.hidden_size**-0.5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """B × T, and 0 on padding → B × D. A text without tokens is the zero vector."""
        embeddings = self.token_embedding(input_ids)
        if attention_mask is None:
            return embeddings.mean(1)
        counts = attention_mask.to(embeddings.dtype)[..., None]
        return (embeddings * counts).sum(1) / counts.sum(1).clamp(min=1)
