"""The contrastive losses: by hand, against torch, in stripes, and round a ring of processes."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from paliglass.contrastive.losses import (
    clip_loss,
    siglip_loss,
    siglip_loss_chunked,
    similarity,
    softmax_cross_entropy,
)


def pairs(n: int, width: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    """n unit vectors for pictures and texts, leaves of the graph."""
    generator = torch.Generator().manual_seed(seed)
    images, texts = (
        F.normalize(torch.randn(n, width, generator=generator), dim=-1) for _ in range(2)
    )
    return images.requires_grad_(), texts.requires_grad_()


def temperature(scale: float = 8.0, bias: float = -3.0) -> tuple[Tensor, Tensor]:
    return torch.tensor([scale], requires_grad=True), torch.tensor([bias], requires_grad=True)


@pytest.mark.parametrize("size", [1.0, 100.0, 1e4])
def test_softmax_cross_entropy_is_torchs_in_value_and_gradient(size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(7, 11, generator=generator) * size).requires_grad_()
    labels = torch.randint(11, (7,), generator=generator)
    ours, theirs = softmax_cross_entropy(logits, labels), F.cross_entropy(logits, labels)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_clip_loss_by_hand() -> None:
    """Cosines [[1, 0], [0.6, 0.8]]; a choice of one among two, in each row and each column."""
    images = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    texts = torch.eye(2)

    def surprise(right: float, wrong: float) -> float:
        return math.log(1 + math.exp(2 * (wrong - right)))  # scale 2

    rows = (surprise(1, 0) + surprise(0.8, 0.6)) / 2
    columns = (surprise(1, 0.6) + surprise(0.8, 0)) / 2
    assert clip_loss(images, texts, 2.0).item() == pytest.approx((rows + columns) / 2, abs=1e-6)


def test_siglip_loss_by_hand() -> None:
    """Four questions of their own; the sum over texts, the mean over pictures."""
    images = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    logits = [[2 * c - 1 for c in row] for row in ([1, 0], [0.6, 0.8])]
    wrong = [math.log(1 + math.exp(logits[i][1 - i])) for i in range(2)]
    right = [math.log(1 + math.exp(-logits[i][i])) for i in range(2)]
    loss = siglip_loss(images, torch.eye(2), 2.0, -1.0)
    assert loss.item() == pytest.approx((sum(wrong) + sum(right)) / 2, abs=1e-6)


def test_pairs_in_another_order_have_the_same_loss_and_broken_pairs_a_larger_one() -> None:
    images, texts = pairs(9)
    texts = F.normalize(images + 0.3 * texts, dim=-1)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    for loss in (lambda i, t: clip_loss(i, t, 8.0), lambda i, t: siglip_loss(i, t, 8.0, -3.0)):
        torch.testing.assert_close(loss(images[order], texts[order]), loss(images, texts))
        assert loss(images, texts.roll(1, 0)) > loss(images, texts) + 1


def test_mixed_precision_does_not_touch_the_similarities() -> None:
    images, texts = pairs(9)
    expected = similarity(images, texts, 100.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (images @ texts.T).dtype == torch.bfloat16
        torch.testing.assert_close(similarity(images, texts, 100.0), expected, rtol=0, atol=0)
        inside = siglip_loss_chunked(images, texts, *temperature(), chunk=4)
    torch.testing.assert_close(inside, siglip_loss(images, texts, *temperature()))


@pytest.mark.parametrize("chunk", [1, 4, 9, 10, 64])
def test_stripes_are_the_whole(chunk: int) -> None:
    inputs = (*pairs(10), *temperature())
    plain, striped = siglip_loss(*inputs), siglip_loss_chunked(*inputs, chunk)
    torch.testing.assert_close(striped, plain, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(
        torch.autograd.grad(striped * 3, inputs),
        torch.autograd.grad(plain * 3, inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_closed_gradient_is_the_numerical_one() -> None:
    """Double precision is not kept, so a finite difference along one direction, in steps of 1 %."""
    images, texts = (t.detach() for t in pairs(6))
    scale, bias = temperature()
    siglip_loss_chunked(images, texts, scale, bias, 4).backward()
    for parameter in (scale, bias):
        step = 0.01
        with torch.no_grad():
            values = []
            for sign in (1, -1):
                parameter += sign * step
                values.append(siglip_loss_chunked(images, texts, scale, bias, 4).item())
                parameter -= sign * step
        assert parameter.grad is not None
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(
            parameter.grad.item(), rel=1e-2
        )


MEMORY = """
import pathlib, re, resource, torch
from paliglass.contrastive.losses import siglip_loss, siglip_loss_chunked
torch.manual_seed(0)
images, texts = (torch.nn.functional.normalize(torch.randn(8192, 512), dim=-1) for _ in range(2))
inputs = [images, texts, torch.tensor([10.0]), torch.tensor([-10.0])]
for tensor in inputs:
    tensor.requires_grad_()
def peak():
    # getrusage's would begin with that of the process which started this one.
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
siglip_loss_chunked(*(t[:512] if t.dim() == 2 else t for t in inputs)).backward()  # libraries in
for tensor in inputs:
    tensor.grad = None
start = peak()
striped = siglip_loss_chunked(*inputs)
ours = torch.autograd.grad(striped, inputs)
after_striped = peak()
plain = siglip_loss(*inputs)
theirs = torch.autograd.grad(plain, inputs)
errors = [abs(striped - plain) / plain]
errors += [(a - b).abs().max() / b.abs().max() for a, b in zip(ours, theirs)]
print(after_striped - start, peak() - start, max(errors).item())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="resource is POSIX")
def test_a_batch_of_8192_takes_an_eighth_of_the_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True
    )
    striped, plain, error = map(float, done.stdout.split())
    assert error < 1e-5
    assert striped < plain / 8, (striped, plain)


RING = """
import sys, torch
from torch import distributed as dist
from torch.nn import functional as F
from paliglass.contrastive.losses import clip_loss, clip_loss_distributed
from paliglass.contrastive.losses import siglip_loss, siglip_loss_distributed
rank, world, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=world)
torch.manual_seed(0)
n = 5
pictures, words = torch.randn(world * n, 7), torch.randn(world * n, 6)
weights = [torch.randn(7, 8), torch.randn(6, 8), torch.tensor([6.0]), torch.tensor([-2.0])]
for weight in weights:
    weight.requires_grad_()
own = slice(rank * n, (rank + 1) * n)

def embed(rows):
    return [F.normalize(x[rows] @ w, dim=-1) for x, w in zip((pictures, words), weights)]

for alone, shared, count in (
    (siglip_loss, siglip_loss_distributed, 4), (clip_loss, clip_loss_distributed, 3)
):
    parameters = weights[:count]
    union = alone(*embed(slice(None)), *parameters[2:])
    expected = [union.detach(), *torch.autograd.grad(union, parameters)]
    share = shared(*embed(own), *parameters[2:])
    found = [share.detach(), *torch.autograd.grad(share, parameters)]
    assert not torch.allclose(found[0], union)  # a share of its own
    for ours, theirs in zip(found, expected):
        dist.all_reduce(ours)
        torch.testing.assert_close(ours / world, theirs, rtol=1e-5, atol=1e-5)
dist.destroy_process_group()
print("equal")
"""


@pytest.mark.parametrize("world", [2, 3])  # with 2, the next and the previous are one
def test_processes_together_are_one_large_batch(world: int, tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RING, str(rank), str(world), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        for process in processes:
            out, err = process.communicate(timeout=120)
            assert (process.returncode, out) == (0, "equal\n"), err
    finally:
        for process in processes:
            process.kill()
