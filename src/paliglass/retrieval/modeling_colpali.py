"""ColPali (arXiv 2407.01449): a page and a query as one short vector for each of their tokens.

    picture + "Describe the image."  ─ vlm ─ B × T × D ─ embedding_proj_layer ─ l2_normalize ─┐
                                                                                         MaxSim
    "Question: …" + 10 × <pad>       ─ vlm ─ B × Q × D ─ embedding_proj_layer ─ l2_normalize ─┘

- the output layer is left out: what the decoder hands it, 2048 numbers a token, becomes 128
- nothing is generated: a prompt runs once, and all of its tokens see each other
- late interaction (arXiv 2004.12832): page and query meet after both are vectors, so that a page is
  embedded once for all queries
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration

__all__ = ["ColPaliForRetrieval", "late_interaction"]


class ColPaliForRetrieval(nn.Module):
    """A PaliGemma whose every token ends as a vector of `embedding_dim` numbers."""

    def __init__(self, vlm: PaliGemmaForConditionalGeneration, embedding_dim: int = 128) -> None:
        super().__init__()
        self.vlm = vlm
        self.embedding_dim = embedding_dim
        self.embedding_proj_layer = nn.Linear(vlm.config.text_config.hidden_size, embedding_dim)

    @property
    def device(self) -> torch.device:
        return self.vlm.device

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
    ) -> Tensor:
        """B × T ids, and N × 3 × S × S with pictures → B × T × embedding_dim float32, of length 1.

        attention_mask: B × T, 0 on padding, whose vectors are 0.
        """
        hidden = self.vlm.prefill(input_ids, pixel_values, attention_mask)
        layer = self.embedding_proj_layer
        embeddings = F.normalize(layer(hidden.to(layer.weight.dtype)).float(), dim=-1)
        return embeddings if attention_mask is None else embeddings * attention_mask[..., None]


def late_interaction(query: Tensor, pages: Tensor) -> Tensor:
    """How well each page answers a query: each token of that counts with its nearest of the page's.

        score_n = Σ_q max_t ⟨query_q, page_nt⟩

    Args:
        query: Q × D, of length 1.
        pages: N × T × D.

    Returns N scores, at most Q. Also called MaxSim (arXiv 2004.12832).
    """
    return (pages @ query.T).amax(dim=1).sum(dim=-1)
