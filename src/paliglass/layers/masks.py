"""Who may look at whom: the prefix-LM mask, from which every mask of PaliGemma follows.

Write 0 for a token that is given and 1 for a token that is to be predicted, and add up from the
left. A token may look at every token whose sum is no larger than its own::

    picture picture <bos> what \\n | a dog <eos>
       0       0      0    0    0 |  1   1   1      is_autoregressive
       0       0      0    0    0 |  1   2   3      its running sum

    0 0 0 0 0     all zeros: everyone sees everyone (the vision tower)
    1 1 1 1 1     all ones: each sees itself and the past (a causal language model)
    0 0 0 1 1     prefix-LM: the prefix sees itself whole, the suffix sees the prefix and its past
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["cached_mask", "prefix_lm_mask"]


def prefix_lm_mask(is_autoregressive: Tensor, is_token: Tensor) -> Tensor:
    """The attention mask of a batch. B × T and B × T (bool or 0/1) → B × 1 × T × T, True = may see.

    `is_token` is False on padding, which nobody may look at. Padding itself may look around (its
    output is never used): a row without a single key would turn into NaN.
    """
    order = is_autoregressive.long().cumsum(-1)
    visible = order[:, None, :] <= order[:, :, None]
    return (visible & is_token.bool()[:, None, :])[:, None]


def cached_mask(slots: Tensor, num_slots: int) -> Tensor:
    """The mask of new tokens over a cache: B × T slot indices → B × 1 × T × S.

    A cache holds each row's tokens in order and without gaps, and what is decoded is causal: the
    token in slot i sees the slots 0 … i.
    """
    keys = slots.new_ones(num_slots).cumsum(0) - 1
    return (keys <= slots[..., None])[:, None]
