"""Classes that nobody trained for: a label is a text, and the nearest text names the picture."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from paliglass.contrastive.modeling_contrastive import ContrastiveModel
from paliglass.contrastive.processing import ContrastiveProcessor
from paliglass.errors import PromptError
from paliglass.pictures import Picture

__all__ = ["TEMPLATES", "classify", "embed_labels", "retrieval_recall"]

TEMPLATES = ("{}", "a {}", "a picture of a {}")


@torch.inference_mode()
def embed_labels(
    model: ContrastiveModel,
    processor: ContrastiveProcessor,
    labels: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
) -> Tensor:
    """One vector for each of L labels, L × D: the mean over its templates, of unit length again.

    "a {}" with the label in the braces: a single word is rarer in training than a phrase with it
    (arXiv 2103.00020, section 3.1.4). Raises PromptError for a template without braces.
    """
    for template in templates:
        if "{}" not in template:
            raise PromptError(f"template {template!r} has no {{}} for the label to stand in")
    texts = [template.replace("{}", label) for label in labels for template in templates]
    if not texts:
        raise PromptError("zero-shot classification needs at least one label and one template")
    words = processor.words(texts)
    embeds = model.embed_texts(**{key: value.to(model.device) for key, value in words.items()})
    return F.normalize(embeds.view(len(labels), len(templates), -1).mean(1), dim=-1)


@torch.inference_mode()
def classify(
    model: ContrastiveModel,
    processor: ContrastiveProcessor,
    images: Sequence[Picture],
    labels: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
) -> list[dict[str, float]]:
    """For each picture, the probability of every label, best first.

    A model trained with CLIP's loss shares 1 out among the labels; one trained with SigLIP's judges
    each label for itself, so that none or several may fit, and the sum is anything.

    Raises PromptError for no labels or a bad template, PictureError for an unreadable picture.
    """
    embeds = embed_labels(model, processor, labels, templates)
    if not images:
        return []
    pixels = torch.stack([processor.pixels(image) for image in images]).to(model.device)
    logits = model.logits(model.embed_images(pixels), embeds)
    chances = logits.softmax(-1) if model.config.loss == "clip" else logits.sigmoid()
    return [
        dict(sorted(zip(labels, row, strict=True), key=lambda pair: -pair[1]))
        for row in chances.tolist()
    ]


def retrieval_recall(
    image_embeds: Tensor, text_embeds: Tensor, k: int, same: Sequence[Hashable] | None = None
) -> float:
    """Recall@k: the share of pictures with a right text among their k nearest, 0 … 1.

    For texts → pictures, swap the first two arguments.

    Args:
        image_embeds, text_embeds: n × D, of unit length; row i of both is a pair.
        k: how many are looked at.
        same: n captions (or other names): texts with an equal one are as right as the pair's own.
    """
    n = len(image_embeds)
    names = range(n) if same is None else same
    numbers: dict[Hashable, int] = {}
    ids = torch.tensor([numbers.setdefault(name, len(numbers)) for name in names])
    nearest = (image_embeds @ text_embeds.T).topk(min(k, n), dim=-1).indices.cpu()
    return (ids[nearest] == ids[:, None]).any(-1).float().mean().item()
