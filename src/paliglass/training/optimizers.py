"""AdamW (arXiv 1711.05101) and Muon (arXiv 2502.16982), and which parameters each of them updates.

torch has a Muon too; this one differs in two things:

- it orthogonalizes in a dtype of choice. torch's does so in bfloat16 alone, which takes a
  processor without instructions for it some fifteen times as long
- matrices may be sharded (FSDP2), with the very numbers of whole ones
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from paliglass.training.sharding import like, whole

__all__ = ["Muon", "Optimizers", "orthogonalize"]

MOMENTUM = 0.95
STEPS = 5
# Of the polynomial a·x + b·x³ + c·x⁵, which drives all singular values towards 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Optimizers:
    """AdamW, and Muon for the matrices that `is_hidden` names, convolutions' kernels among them.

    Vectors (norms, biases, a temperature) are AdamW's, and are not drawn towards 0. Muon wants
    matrices: a kernel of C_out × C_in × k × k is one of C_out × (C_in · k²), another view of its
    own memory.

    Args:
        parameters: by name.
        is_hidden: tells from its name whether a parameter maps one hidden layer to the next.
        weight_decay, muon_decay: of AdamW's matrices and of Muon's; times the rate, decoupled.
        betas: AdamW's.
        dtype: what Muon orthogonalizes in.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        is_hidden: Callable[[str], bool] = lambda name: False,
        *,
        weight_decay: float = 0.0,
        muon_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.parameters = list(parameters.values())
        self.views: list[tuple[nn.Parameter, nn.Parameter]] = []  # a kernel and its matrix
        hidden: list[nn.Parameter] = []
        matrices: list[nn.Parameter] = []
        vectors: list[nn.Parameter] = []
        for name, parameter in parameters.items():
            if parameter.ndim < 2:
                vectors.append(parameter)
            elif not is_hidden(name):
                matrices.append(parameter)
            elif parameter.ndim == 2:
                hidden.append(parameter)
            else:
                view = nn.Parameter(parameter.detach().view(len(parameter), -1))
                self.views.append((parameter, view))
                hidden.append(view)
        adamw = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            betas=betas,
            fused=not any(isinstance(parameter, DTensor) for parameter in self.parameters),
        )
        self.all: list[torch.optim.Optimizer] = [adamw]
        if hidden:
            self.all.append(Muon(hidden, muon_decay, dtype))

    def step(self, rate: float, muon_rate: float | None = None) -> None:
        """One update at AdamW's rate and Muon's (by default the same); gradients are then gone."""
        for kernel, view in self.views:
            view.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        for optimizer in self.all:
            is_muon = muon_rate is not None and isinstance(optimizer, Muon)
            for group in optimizer.param_groups:
                group["lr"] = muon_rate if is_muon else rate
            optimizer.step()
            optimizer.zero_grad()
        for parameter in self.parameters:
            parameter.grad = None


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalized, at AdamW's rates; weight decay is decoupled, as there.

    With G the momentum of an m × n matrix W, η the rate and λ the weight decay::

        W ← (1 − ηλ)·W − 0.2·√max(m, n)·η·orthogonalize(G)

    Of sharded matrices each process updates momentum and weights of its own rows. In between, one
    matrix at a time is gathered, as only a whole one can be orthogonalized; every process does that
    for itself.

    dtype: what is orthogonalized in.
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
                update = like(orthogonalize(update), matrix)
                matrix.mul_(1 - rate * group["weight_decay"])
                matrix.add_(update, alpha=-0.2 * max(matrix.shape) ** 0.5 * rate)


def orthogonalize(matrix: Tensor) -> Tensor:
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
