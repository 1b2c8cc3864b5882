"""The decoder: Gemma (arXiv 2403.08295) and Gemma 2 (arXiv 2408.00118). What is unusual:

- RMSNorm whose stored weight is an offset from 1
- one key/value head in Gemma 2B (multi-query), half as many as query heads in Gemma 2
- heads wider than width / heads: 8 × 256 over a width of 2048 or 2304
- GeGLU: the MLP's hidden layer is a product of two projections, one of them through a GELU
- the output layer is the embedding table itself (weight tying, arXiv 1608.05859)
- Gemma 2 also normalises what attention and MLP return, and caps attention scores and logits

In checkpoints, `post_attention_layernorm` names Gemma 1's norm *before* the MLP, but Gemma 2's
norm *after* attention: the same name, two places.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paliglass.config import GemmaConfig
from paliglass.layers.attention import Attention
from paliglass.layers.kv_cache import KVCache
from paliglass.layers.norms import RMSNorm
from paliglass.layers.rope import apply_rotary, rotary_cos_sin

__all__ = ["GemmaAttention", "GemmaDecoderLayer", "GemmaForCausalLM", "GemmaMLP", "GemmaModel"]


class GemmaAttention(nn.Module):
    """Self-attention with rotary positions, shared key/value heads and a cache."""

    def __init__(self, config: GemmaConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        width, head_dim = config.hidden_size, config.head_dim
        self.q_proj = nn.Linear(width, config.num_attention_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * head_dim, width, bias=False)
        self.attention = Attention(config.query_scale, config.attn_logit_softcapping)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor,
        cache: KVCache | None = None,
    ) -> Tensor:
        """B × T × D → B × T × D. mask: B × 1 × T × T, or B × 1 × T × S over a filled cache."""
        query, key, value = (
            project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # B heads T head_dim
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = apply_rotary(query, *rotary), apply_rotary(key, *rotary)
        if cache is not None:
            key, value = cache.update(self.layer, key, value)
        return self.o_proj(self.attention(query, key, value, mask))


class GemmaMLP(nn.Module):
    """GeGLU (arXiv 2002.05202): down(gelu(gate(x)) · up(x))."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """B × T × D → B × T × D."""
        gated = F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x)
        return self.down_proj(gated)


class GemmaDecoderLayer(nn.Module):
    """Gemma: x + f(norm(x)), for f attention and then MLP. Gemma 2: x + norm(f(norm(x)))."""

    def __init__(self, config: GemmaConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = GemmaAttention(config, layer)
        self.mlp = GemmaMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.has_post_norms = config.has_post_norms
        if config.has_post_norms:
            self.pre_feedforward_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
            self.post_feedforward_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor,
        cache: KVCache | None = None,
    ) -> Tensor:
        """B × T × D → B × T × D."""
        return self.after_attention(x, self.self_attn(self.input_layernorm(x), rotary, mask, cache))

    def after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """What follows attention, on each token alone: … × D and … × D → … × D."""
        if self.has_post_norms:
            x = x + self.post_attention_layernorm(attended)
            return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x))


class GemmaModel(nn.Module):
    """Embeddings in, contextual embeddings out."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            GemmaDecoderLayer(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def embed(self, input_ids: Tensor) -> Tensor:
        """B × T ids → B × T × D: table rows times √D, that number rounded to the table's dtype.

        Training scales embeddings by √D so that they enter at the size of a normalised vector;
        bfloat16 makes of √2048 = 45.2548 the 45.25 that the published weights have seen.
        """
        rows: Tensor = self.embed_tokens(input_ids)
        return rows * rows.new_full((), self.config.hidden_size**0.5)

    def forward(
        self,
        embeddings: Tensor,
        positions: Tensor,
        mask: Tensor,
        cache: KVCache | None = None,
        last_positions: Tensor | None = None,
    ) -> Tensor:
        """embeddings: B × T × D; positions: B × T; mask: B × 1 × T × S → B × T × D.

        last_positions: B places, one in each row, for who needs what comes out there alone: B × D.
        """
        x = embeddings
        rotary = rotary_cos_sin(positions, self.config.head_dim, self.config.rope_theta, x.dtype)
        for layer in self.layers:
            x = layer(x, rotary, mask, cache)
        x = self.norm(x)
        if last_positions is None:
            return x
        return x[torch.arange(len(x), device=x.device), last_positions]


class GemmaForCausalLM(nn.Module):
    """The decoder and its output layer, which shares its matrix with the embedding."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = GemmaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie_weights()
        self.apply(self._init_weights)

    def tie_weights(self) -> None:
        """Makes the head's matrix the embedding's: one parameter, seen twice by every update."""
        self.lm_head.weight = self.model.embed_tokens.weight

    def logits(self, hidden: Tensor, token_ids: Tensor | None = None) -> Tensor:
        """… × D → … × V, unnormalised log-probabilities; Gemma 2 caps them: c·tanh(x / c).

        With `token_ids`, U of them, these tokens' logits alone, … × U: where a grammar leaves 1024
        of 257 152 tokens, the others' rows of the (tied) table are not read.
        """
        logits: Tensor
        if token_ids is None:
            logits = self.lm_head(hidden)
        else:
            logits = F.linear(hidden, self.model.embed_tokens(token_ids))
        cap = self.config.final_logit_softcapping
        return (logits / cap).tanh() * cap if cap else logits

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
