"""bfloat16 matrices laid out for decoding on a CPU.

torch's kernel for a few tokens times a matrix reads the matrix at half of what memory gives, since
it finds rows where it wants blocks. oneDNN packs a matrix into such blocks once. The numbers stay
what they are; the packed copy takes the place of the first one.

- prompts run on the matrix as it came, mapped from its file: the first token waits for nothing
- the first decoded token packs, so a model that never decodes never pays
- where gradients are wanted, or the weights are to be saved, the matrix is unpacked again
"""

from __future__ import annotations

import os
import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# From so many tokens on, a matrix that is not packed is as fast.
MANY_TOKENS = 32
# The kernel reads the same matrix faster for four tokens than for fewer.
FEWEST_TOKENS = 4
# Smaller matrices stay in a processor's cache, and gain nothing.
SMALLEST = 1 << 20
MANY_KERNELS = "64"  # some ten are in use at a time
_packing = threading.Lock()  # threads that share a model may meet its matrices together


def pack_linears(model: nn.Module) -> None:
    """Puts a `PackedLinear` in the place of every large linear layer of bfloat16 without bias.

    Does nothing off the CPU, or on one without the kernel.
    """
    if not can_pack():
        return
    _bound_caches()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and child.bias is None:
                weight = child.weight
                on_cpu = weight.device.type == "cpu" and weight.dtype == torch.bfloat16
                if on_cpu and weight.numel() >= SMALLEST:
                    setattr(parent, name, PackedLinear(weight))


def _bound_caches() -> None:
    """Lets oneDNN keep fewer kernels than the 1,024 that it and its wrapper in torch each keep.

    It makes one for every shape. Those of attention change with each token, and a process that
    answers for hours fills its memory with kernels that it never meets again. Both read their
    variable at the first product.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", MANY_KERNELS)
    os.environ.setdefault("LRU_CACHE_CAPACITY", MANY_KERNELS)


def can_pack() -> bool:
    """Whether this processor has a bfloat16 kernel for packed matrices.

    Of AVX-512 without bfloat16 instructions oneDNN says so too, but its kernel widens numbers at
    every use: a token then takes twice torch's time, a prompt four times `fast.widened`'s.
    """
    if not (torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    return torch.cpu._is_avx512_bf16_supported() or not torch.cpu._is_avx512_supported()


class PackedLinear(nn.Module):
    """`nn.Linear` without a bias, … × K → … × N, that packs its matrix when it meets few tokens.

    weight: N × K, bfloat16; None once it is packed.
    """

    weight: nn.Parameter | None

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = weight
        self.packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """… × K → … × N."""
        tokens = x.reshape(-1, self.in_features)
        count = len(tokens)
        packed = self.packed
        wants_gradient = torch.is_grad_enabled() and (packed is None or x.requires_grad)
        if wants_gradient or (packed is None and count >= MANY_TOKENS):
            return F.linear(x, self._unpacked())
        if packed is None:
            packed = self._pack()
        if count < FEWEST_TOKENS:
            tokens = F.pad(tokens, (0, 0, 0, FEWEST_TOKENS - count))
        y = torch.ops.mkldnn._linear_pointwise(tokens, packed, None, "none", [], "")
        return y[:count].view(*x.shape[:-1], self.out_features)

    def _pack(self) -> Tensor:
        with _packing:
            if self.packed is None:
                assert self.weight is not None
                self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, FEWEST_TOKENS)
                self.weight = None
            return self.packed

    def _unpacked(self) -> Tensor:
        weight = self.weight  # once: another thread may let go of it
        if weight is not None:
            return weight
        assert self.packed is not None
        return self.packed.to_dense()

    def __getstate__(self) -> dict[str, Any]:
        """As it was before it was packed: torch cannot copy oneDNN's matrix."""
        weight = self._unpacked()
        if not isinstance(weight, nn.Parameter):
            weight = nn.Parameter(weight, requires_grad=False)
        return self.__dict__ | {"packed": None, "_parameters": {"weight": weight}}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self._unpacked().detach()

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"
