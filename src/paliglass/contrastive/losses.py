"""The two losses by which pictures and texts learn to meet: softmax (CLIP) and sigmoid (SigLIP).

Row i of `image_embeds` and row i of `text_embeds` (both n × d_e, of unit
length) are a pair. All n × n pictures and texts are compared; only the diagonal belongs together::

              T_1    T_2    T_3
        I_1  [ + ]    −      −        logits[i, j] = scale · I_i·T_j (+ bias)
        I_2    −    [ + ]    −
        I_3    −      −    [ + ]

- `clip_loss` (arXiv 2103.00020): each row and each column is a choice of one among n, by softmax
- `siglip_loss` (arXiv 2303.15343): each cell is a question of its own, by sigmoid. Cells need not
  know of each other, so the matrix can be worked off in pieces: `siglip_loss_chunked` in time,
  `siglip_loss_distributed` over processes
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

__all__ = [
    "clip_loss",
    "clip_loss_distributed",
    "siglip_loss",
    "siglip_loss_chunked",
    "siglip_loss_distributed",
    "similarity",
    "softmax_cross_entropy",
]


def softmax_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """−log of the probability that softmax gives each row's label; the mean over rows.

    With `p = softmax(x)`, that is `p_j = exp(x_j) / Σ_k exp(x_k)`::

        −log p_j = log Σ_k exp(x_k) − x_j

    exp(x_k) overflows float32 from x_k = 89 on. But adding a constant to all logits changes
    nothing in p, so with m the largest of them::

        log Σ_k exp(x_k) = m + log Σ_k exp(x_k − m)

    where no exponent is above 0, one of them is 0, and the sum is at least 1. The softmax itself is
    never formed: its logarithm would be −∞ as soon as a probability rounds to 0.

    logits: n × V, labels: n, the index of the right one in each row.
    """
    largest = logits.detach().amax(-1, keepdim=True)  # any constant would do: no gradient
    log_sum_exp = largest[:, 0] + (logits - largest).exp().sum(-1).log()
    return (log_sum_exp - logits.gather(-1, labels[:, None])[:, 0]).mean()


def similarity(
    image_embeds: Tensor, text_embeds: Tensor, scale: Tensor | float, bias: Tensor | float = 0.0
) -> Tensor:
    """scale · I·Tᵀ + bias. n_i × d_e and n_t × d_e → n_i × n_t, in float32.

    Mixed precision is switched off here: a cosine in bfloat16 is off by up to 0.4 %, which a scale
    of 100 would turn into 0.4 of a logit.
    """
    with torch.autocast(image_embeds.device.type, enabled=False):
        return image_embeds.float() @ text_embeds.float().T * scale + bias


def clip_loss(image_embeds: Tensor, text_embeds: Tensor, scale: Tensor | float) -> Tensor:
    """Which text belongs to this picture, which picture to this text? The mean of both losses.

    Embeddings: n × d_e, of unit length. scale: exp(t), the learned temperature's inverse.
    """
    logits = similarity(image_embeds, text_embeds, scale)
    labels = torch.arange(len(logits), device=logits.device)
    loss_i = softmax_cross_entropy(logits, labels)
    loss_t = softmax_cross_entropy(logits.T, labels)
    return (loss_i + loss_t) / 2


def siglip_loss(
    image_embeds: Tensor, text_embeds: Tensor, scale: Tensor | float, bias: Tensor | float
) -> Tensor:
    """−1/n Σ_i Σ_j log σ(z_ij · (scale · I_i·T_j + bias)), z_ij = 1 for pairs and −1 for others.

    Embeddings: n × d_e, of unit length. scale: exp(t). bias: starts at −10, so that the n² − n
    cells that do not belong together are not all wrong at first.
    """
    logits = similarity(image_embeds, text_embeds, scale, bias)
    z = 2 * torch.eye(len(logits), device=logits.device) - 1
    return -F.logsigmoid(z * logits).sum(-1).mean()


class _SiglipStripes(torch.autograd.Function):
    """Loss and gradients in one pass over stripes of the matrix, `chunk` pictures at a time.

    The gradient needs no graph: d(−log σ(z·x))/dx = −z · σ(−z·x), that is σ(x) − [z = 1]. With G
    the stripe of these, the pictures' gradient is scale · G·T, the texts' is the sum of
    scale · Gᵀ·I, scale's the sum of G ∘ (I·Tᵀ) = Σ_i I_i · (G·T)_i, and bias's the sum of G.

    paired: whether picture i and text i belong together; if not, no cell of the matrix is a pair.
    """

    @staticmethod
    def forward(
        ctx: Any,
        image_embeds: Tensor,
        text_embeds: Tensor,
        scale: Tensor,
        bias: Tensor,
        chunk: int,
        paired: bool,
    ) -> Tensor:
        n = len(image_embeds)
        images, texts = image_embeds.float(), text_embeds.float()
        loss, d_bias = images.new_zeros(()), images.new_zeros(())
        d_images, d_texts = torch.empty_like(images), torch.zeros_like(texts)
        for start in range(0, n, chunk):
            rows = slice(start, start + chunk)
            stripe = torch.mm(images[rows], texts.T).mul_(scale.float()).add_(bias.float())
            loss += F.softplus(stripe).sum()  # −log σ(−x), as if nothing belonged together
            pairs = stripe.diagonal(start)  # a view
            if paired:
                loss -= pairs.sum()  # −log σ(x) = −log σ(−x) − x
            stripe.sigmoid_()  # now G
            if paired:
                pairs -= 1
            d_bias += stripe.sum()
            torch.mm(stripe, texts, out=d_images[rows])
            d_texts.addmm_(stripe.T, images[rows])
        d_scale = (d_images * images).sum()
        d_images *= scale.float() / n
        d_texts *= scale.float() / n
        ctx.save_for_backward(
            d_images.to(image_embeds.dtype),
            d_texts.to(text_embeds.dtype),
            (d_scale / n).to(scale.dtype).reshape(scale.shape),
            (d_bias / n).to(bias.dtype).reshape(bias.shape),
        )
        return loss / n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        return *(saved * d_loss.to(saved.dtype) for saved in ctx.saved_tensors), None, None


_siglip_stripes: Callable[..., Tensor] = _SiglipStripes.apply


def siglip_loss_chunked(
    image_embeds: Tensor, text_embeds: Tensor, scale: Tensor, bias: Tensor, chunk: int = 256
) -> Tensor:
    """`siglip_loss`, never holding more than chunk × n of the n × n matrix, forward or backward.

    The same numbers up to the order of summation. scale and bias: tensors of one element each.
    """
    with torch.autocast(image_embeds.device.type, enabled=False):
        return _siglip_stripes(image_embeds, text_embeds, scale, bias, chunk, True)


class _FromNeighbour(torch.autograd.Function):
    """Every process hands its tensor to the next of the ring; gradients go the other way."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return _pass_round(tensor, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _pass_round(gradient, -1)


_from_neighbour: Callable[[Tensor], Tensor] = _FromNeighbour.apply


def _pass_round(tensor: Tensor, step: int) -> Tensor:
    rank, world = dist.get_rank(), dist.get_world_size()
    received = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    exchange = [
        dist.P2POp(dist.isend, tensor.contiguous(), (rank + step) % world),
        dist.P2POp(dist.irecv, received, (rank - step) % world),
    ]
    for request in dist.batch_isend_irecv(exchange):
        request.wait()
    return received


def siglip_loss_distributed(
    image_embeds: Tensor, text_embeds: Tensor, scale: Tensor, bias: Tensor, chunk: int = 256
) -> Tensor:
    """One process's share of `siglip_loss` on the union of all processes' batches.

    Each process holds n pairs. Its pictures meet its own texts, then the neighbour's, and so on
    round the ring (arXiv 2303.15343, section 3.3): after W processes' texts have come by, all
    (W·n)² cells are done, and nobody has ever held more than chunk × n of them.

    The convention is that of DistributedDataParallel, which *averages* gradients: the value is
    −1/n over this process's pictures of the sum over all W·n texts, so the mean of it over the
    processes is the loss of the union. Gradients of texts go back to the process that they came
    from; after each process's backward, the mean of the parameters' gradients is the gradient of
    the union. To be called by every process, with equal n.
    """
    loss = image_embeds.new_zeros((), dtype=torch.float32)
    with torch.autocast(image_embeds.device.type, enabled=False):
        for step in range(dist.get_world_size()):
            if step:
                text_embeds = _from_neighbour(text_embeds)
            own = step == 0
            loss = loss + _siglip_stripes(image_embeds, text_embeds, scale, bias, chunk, own)
    return loss


class _Gather(torch.autograd.Function):
    """Every process's rows, one below the other; each row's gradients are added up at its owner."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


_gather: Callable[[Tensor], Tensor] = _Gather.apply


def clip_loss_distributed(
    image_embeds: Tensor, text_embeds: Tensor, scale: Tensor | float
) -> Tensor:
    """One process's share of `clip_loss` on the union of all processes' batches.

    A softmax needs its whole row, so the embeddings of all processes are gathered: n × W·n logits
    each way. The convention is that of `siglip_loss_distributed`: mean over processes = the union.
    """
    n, rank = len(image_embeds), dist.get_rank()
    labels = torch.arange(n, device=image_embeds.device) + rank * n
    logits_i = similarity(image_embeds, _gather(text_embeds), scale)
    logits_t = similarity(text_embeds, _gather(image_embeds), scale)
    return (softmax_cross_entropy(logits_i, labels) + softmax_cross_entropy(logits_t, labels)) / 2
