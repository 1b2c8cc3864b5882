from __future__ import annotations

import pytest
import torch
from torch import nn

from paliglass.training.muon import Muon, orthogonalise

SHAPES = [(8, 8), (24, 8), (8, 24), (1, 8)]


def matrices() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def step(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for i, matrix in enumerate(optimizer.param_groups[0]["params"]):
        torch.manual_seed(i)
        matrix.grad = torch.randn_like(matrix)
    optimizer.param_groups[0]["lr"] = rate
    optimizer.step()


def test_in_bfloat16_it_is_torch_s() -> None:
    ours, theirs = matrices(), matrices()
    mine = Muon(ours, 0.1, torch.bfloat16)
    reference = torch.optim.Muon(theirs, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for rate in (1e-2, 2e-2, 3e-2):
        step(mine, rate)
        step(reference, rate)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_float32_is_a_finer_bfloat16() -> None:
    fine, coarse = matrices(), matrices()
    step(Muon(fine, 0.1, torch.float32), 1e-2)
    step(Muon(coarse, 0.1, torch.bfloat16), 1e-2)
    for start, a, b in zip(matrices(), fine, coarse, strict=True):
        assert 0 < (a - b).norm() < 0.05 * (a - start).norm()


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_get_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_what_has_no_gradient_stays() -> None:
    still, moved = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    moved.grad = torch.ones(2, 2)
    Muon([still, moved], 0.1, torch.float32).step()
    assert torch.equal(still, torch.ones(2, 2))
    assert not torch.equal(moved, still)
