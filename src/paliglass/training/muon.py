"""Muon (arXiv 2502.16982): a matrix's momentum, orthogonalised so that all directions learn alike.

torch has one too; this one differs in two things:

- it orthogonalises in a dtype of choice. torch's does so in bfloat16 alone, which takes a
  processor without instructions for it some fifteen times as long
- matrices may be sharded (FSDP2), with the very numbers of whole ones
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from paliglass.training.sharding import like, whole

MOMENTUM = 0.95
STEPS = 5
# Of the polynomial a·x + b·x³ + c·x⁵, which drives all singular values towards 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, at AdamW's rates; weight decay is decoupled, as there.

    With G the momentum of an m × n matrix W, η the rate and λ the weight decay::

        W ← (1 − ηλ)·W − 0.2·√max(m, n)·η·orthogonalise(G)

    Of sharded matrices each process updates momentum and weights of its own rows. In between, one
    matrix at a time is gathered, as only a whole one can be orthogonalised; every process does that
    for itself.

    dtype: what is orthogonalised in.
    """

    def __init__(
        self, matrices: Iterable[nn.Parameter], weight_decay: float, dtype: torch.dtype
    ) -> None:
        super().__init__(matrices, {"lr": 1e-3, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of all matrices that have a gradient."""
        for group in self.param_groups:
            rate = group["lr"]
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix.grad)
                momentum = state["momentum_buffer"].lerp_(matrix.grad, 1 - MOMENTUM)
                update = whole(matrix.grad.lerp(momentum, MOMENTUM)).to(self.dtype)
                update = like(orthogonalise(update), matrix)
                matrix.mul_(1 - rate * group["weight_decay"])
                matrix.add_(update, alpha=-0.2 * max(matrix.shape) ** 0.5 * rate)


def orthogonalise(matrix: Tensor) -> Tensor:
    """m × n → m × n: U·Vᵀ of its singular value decomposition U·S·Vᵀ, roughly.

    Five steps of a Newton-Schulz iteration, which leave singular values of 0.7 … 1.2.
    """
    a, b, c = COEFFICIENTS
    x = matrix.T if len(matrix) > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(STEPS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.T if len(matrix) > matrix.shape[1] else x
