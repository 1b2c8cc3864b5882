"""Masks against matrices written out by hand: a row for each query, x where it may look."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from paliglass.layers.masks import cached_mask, prefix_lm_mask


def matrix(*rows: str) -> Tensor:
    return torch.tensor([[cell == "x" for cell in row] for row in rows])


def numbers(text: str) -> Tensor:
    return torch.tensor([[int(digit) for digit in text]])


def test_all_prefix_sees_everything() -> None:
    mask = prefix_lm_mask(numbers("000"), numbers("111"))
    assert torch.equal(mask[0, 0], matrix("xxx", "xxx", "xxx"))


def test_all_suffix_is_causal() -> None:
    mask = prefix_lm_mask(numbers("111"), numbers("111"))
    assert torch.equal(mask[0, 0], matrix("x..", "xx.", "xxx"))


def test_prefix_is_whole_and_suffix_causal() -> None:
    mask = prefix_lm_mask(numbers("00011"), numbers("11111"))
    expected = matrix("xxx..", "xxx..", "xxx..", "xxxx.", "xxxxx")
    assert torch.equal(mask[0, 0], expected)


def test_nobody_sees_padding_on_either_side() -> None:
    left = prefix_lm_mask(numbers("00011"), numbers("01111"))
    assert torch.equal(left[0, 0, 1:], matrix(".xx..", ".xx..", ".xxx.", ".xxxx"))
    right = prefix_lm_mask(numbers("00110"), numbers("11110"))
    assert torch.equal(right[0, 0, :4], matrix("xx...", "xx...", "xxx..", "xxxx."))


def test_rows_of_a_batch_do_not_mix() -> None:
    types, tokens = torch.tensor([[0, 0, 1], [0, 1, 1]]), torch.tensor([[1, 1, 1], [1, 1, 1]])
    mask = prefix_lm_mask(types, tokens)
    assert mask.shape == (2, 1, 3, 3)
    assert torch.equal(mask[0, 0], matrix("xx.", "xx.", "xxx"))
    assert torch.equal(mask[1, 0], matrix("x..", "xx.", "xxx"))


@given(
    prefix=st.integers(1, 6),
    suffix=st.integers(0, 6),
    padding=st.integers(0, 4),
    left=st.booleans(),
)
def test_a_prefix_never_sees_its_answer(prefix: int, suffix: int, padding: int, left: bool) -> None:
    """No leak: what is to be predicted reaches neither the prefix nor earlier answer tokens."""
    before, after = ("." * padding, "") if left else ("", "." * padding)
    layout = before + "p" * prefix + "s" * suffix + after
    types = torch.tensor([[int(kind == "s") for kind in layout]])
    tokens = torch.tensor([[int(kind != ".") for kind in layout]])
    mask = prefix_lm_mask(types, tokens)[0, 0]
    for query, kind in enumerate(layout):
        if kind == ".":
            continue
        for key, seen in enumerate(layout):
            allowed = seen == "p" or (seen == "s" and kind == "s" and key <= query)
            assert mask[query, key] == allowed, (layout, query, key)


def test_padding_still_sees_something() -> None:
    """A query without any key would come out of the softmax as NaN."""
    mask = prefix_lm_mask(numbers("000110"), numbers("001110"))
    assert mask[0, 0].any(-1).all()


def test_cached_tokens_see_their_row_up_to_themselves() -> None:
    slots = torch.tensor([[2], [4]])
    mask = cached_mask(slots, 5)
    assert torch.equal(mask[:, 0, 0], matrix("xxx..", "xxxxx"))
