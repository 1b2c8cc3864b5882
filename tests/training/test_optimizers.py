from __future__ import annotations

import pytest
import torch
from torch import nn

from paliglass.training.optimizers import Muon, Optimizers, orthogonalize

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
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_what_has_no_gradient_stays() -> None:
    still, moved = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    moved.grad = torch.ones(2, 2)
    Muon([still, moved], 0.1, torch.float32).step()
    assert torch.equal(still, torch.ones(2, 2))
    assert not torch.equal(moved, still)


def test_vectors_and_what_is_not_hidden_are_adamws() -> None:
    model = nn.ModuleDict(
        {"hidden": nn.Conv2d(2, 3, 3), "norm": nn.LayerNorm(3), "table": nn.Embedding(4, 3)}
    )
    parameters = dict(model.named_parameters())
    optimizers = Optimizers(
        parameters, lambda name: name.startswith("hidden"), weight_decay=0.1, muon_decay=0.2
    )
    names = {parameter.data_ptr(): name for name, parameter in parameters.items()}
    found = {
        (type(optimizer).__name__, group["weight_decay"]): {
            names[parameter.data_ptr()] for parameter in group["params"]
        }
        for optimizer in optimizers.all
        for group in optimizer.param_groups
    }
    assert found == {
        ("AdamW", 0.1): {"table.weight"},
        ("AdamW", 0.0): {"hidden.bias", "norm.weight", "norm.bias"},
        ("Muon", 0.2): {"hidden.weight"},
    }
    assert len(Optimizers(parameters).all) == 1


def test_each_optimizer_has_its_rate_and_kernels_are_updated_in_place() -> None:
    torch.manual_seed(0)
    kernel, bias = nn.Parameter(torch.ones(2, 2, 3, 3)), nn.Parameter(torch.ones(2))
    optimizers = Optimizers({"kernel": kernel, "bias": bias}, lambda name: True)
    kernel.grad, bias.grad = torch.randn_like(kernel), torch.randn_like(bias)
    optimizers.step(1e-3, muon_rate=0.0)
    assert torch.equal(kernel, torch.ones(2, 2, 3, 3))
    assert (bias - 1).abs().sub(1e-3).abs().max() < 1e-6  # Adam's first step is the rate
    kernel.grad = torch.randn_like(kernel)
    optimizers.step(1e-3)
    assert not torch.equal(kernel, torch.ones(2, 2, 3, 3))
    assert kernel.grad is None
