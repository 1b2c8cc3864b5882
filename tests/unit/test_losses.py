"""The suffix loss in its two averages, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from paliglass.layers.losses import IGNORE, suffix_cross_entropy


def certain(label: int, probability: float, vocabulary: int = 4) -> torch.Tensor:
    """Logits that give one label a probability and share the rest out evenly."""
    rest = (1 - probability) / (vocabulary - 1)
    return torch.tensor([math.log(probability if i == label else rest) for i in range(vocabulary)])


def example() -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows: answers of one token (probability 1/2) and of three (1/4, 1/4, 1/8)."""
    noise = torch.tensor([9.0, -9.0, 3.0, 1.0])
    short = torch.stack([noise, noise, certain(3, 1 / 2), noise, noise])
    long = torch.stack([noise, certain(1, 1 / 4), certain(2, 1 / 4), certain(0, 1 / 8), noise])
    labels = torch.tensor([[IGNORE] * 3 + [3, IGNORE], [IGNORE] * 2 + [1, 2, 0]])
    return torch.stack([short, long]), labels


def test_token_mean_weighs_every_token_alike() -> None:
    loss = suffix_cross_entropy(*example(), "token_mean")
    assert loss.item() == pytest.approx((1 + 2 + 2 + 3) / 4 * math.log(2), abs=1e-6)


def test_example_mean_weighs_every_row_alike() -> None:
    loss = suffix_cross_entropy(*example(), "example_mean")
    assert loss.item() == pytest.approx((1 + (2 + 2 + 3) / 3) / 2 * math.log(2), abs=1e-6)


def test_the_default_is_the_token_mean() -> None:
    assert suffix_cross_entropy(*example()) == suffix_cross_entropy(*example(), "token_mean")


@pytest.mark.parametrize("reduction", ["token_mean", "example_mean"])
def test_ignored_positions_get_no_gradient(reduction: str) -> None:
    logits, labels = example()
    logits.requires_grad_()
    suffix_cross_entropy(logits, labels, reduction).backward()  # type: ignore[arg-type]
    assert logits.grad is not None
    predicts = torch.zeros_like(labels, dtype=torch.bool)
    predicts[:, :-1] = labels[:, 1:] != IGNORE
    assert logits.grad[predicts].abs().sum(-1).min() > 0
    assert not logits.grad[~predicts].any()


def test_huge_logits_do_not_overflow() -> None:
    logits, labels = example()
    assert suffix_cross_entropy(logits * 1e4, labels).isfinite()


def test_the_loss_is_computed_in_float32() -> None:
    logits, labels = example()
    rounded = logits.bfloat16()
    assert suffix_cross_entropy(rounded, labels).dtype == torch.float32
    assert suffix_cross_entropy(rounded, labels) == suffix_cross_entropy(rounded.float(), labels)
