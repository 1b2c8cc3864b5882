"""The settings that PaliGemma was transferred with (arXiv 2407.07726, appendix J; big_vision's
configs/proj/paligemma/transfers, the best of each sweep).

All of them: Adam, cosine schedule with 5 % warm-up, gradients clipped to length 1. A number behind
the name is the side of the model's pictures; without it 224 and 448 have the same settings. They
are for thousands of pictures; with a few hundred, a smaller batch gives the same epochs enough
steps.

Not offered here, and so not in them: the dropout in the decoder of chartqa, refcoco-224, scicap and
widgetcap (.1) and screen2words (.3). big_vision's weight decay is not multiplied by the learning
rate, AdamW's is: its 0.1 × rate is 0.1 here.
"""

from __future__ import annotations

from typing import Any

# learning rate, weight decay, epochs, rows in a step, label smoothing
_TABLE = {
    "ai2d": (1e-5, 0.1, 10, 256, 0.0),
    "aokvqa-da": (5e-6, 0.0, 10, 128, 0.0),
    "aokvqa-mc": (5e-6, 0.0, 15, 128, 0.0),
    "chartqa": (1e-5, 0.1, 30, 256, 0.2),
    "cococap": (1e-5, 0.1, 5, 256, 0.0),
    "docvqa": (1e-5, 0.1, 10, 256, 0.0),  # 896 too
    "gqa-224": (1e-5, 0.0, 1, 256, 0.0),
    "gqa-448": (1e-5, 0.0, 1, 256, 0.0),
    "infovqa-224": (1e-5, 0.1, 3, 256, 0.4),
    "infovqa-448": (1e-5, 0.1, 3, 128, 0.4),
    "infovqa-896": (3e-6, 0.1, 3, 32, 0.4),
    "ocrvqa": (3e-6, 0.0, 3, 128, 0.0),
    "ocrvqa-896": (1e-5, 0.0, 3, 128, 0.0),
    "okvqa": (5e-6, 0.0, 10, 128, 0.0),
    "refcoco-224": (3e-5, 0.0, 100, 256, 0.3),  # boxes and masks have no single right token
    "refcoco-448": (1e-5, 0.0, 100, 256, 0.3),
    "refcoco-896": (1e-5, 0.0, 100, 64, 0.3),
    "rsvqa-hr": (1e-5, 0.0, 1, 256, 0.0),
    "rsvqa-lr": (3e-6, 0.0, 3, 256, 0.2),
    "science-qa": (1e-5, 0.0, 20, 128, 0.0),
    "scicap": (3e-5, 0.0, 80, 256, 0.1),
    "screen2words": (1e-5, 0.0, 10, 256, 0.2),
    "stvqa-224": (1e-5, 0.1, 3, 256, 0.1),
    "stvqa-448": (1e-5, 0.1, 3, 128, 0.1),
    "stvqa-896": (3e-6, 0.1, 3, 32, 0.1),
    "tallyqa-224": (1e-5, 0.0, 2, 256, 0.0),
    "tallyqa-448": (1e-5, 0.1, 2, 256, 0.0),
    "tallyqa-896": (7e-6, 0.1, 2, 256, 0.0),
    "textcaps": (1e-5, 0.1, 5, 256, 0.0),
    "textvqa-224": (3e-6, 0.0, 5, 256, 0.0),
    "textvqa-448": (3e-6, 0.1, 10, 256, 0.0),
    "textvqa-896": (3e-6, 0.0, 10, 256, 0.0),
    "vizwizvqa": (1e-5, 0.0, 10, 256, 0.0),
    "vqav2-224": (1e-5, 0.1, 10, 256, 0.0),
    "vqav2-448": (1e-5, 0.0, 10, 256, 0.0),
    "widgetcap": (3e-6, 0.1, 4, 64, 0.1),
}
_SETTINGS = ("learning_rate", "weight_decay", "epochs", "batch_size", "label_smoothing")

RECIPES: dict[str, dict[str, Any]] = {
    name: {"warm_up": 0.05, **dict(zip(_SETTINGS, numbers, strict=True))}
    for name, numbers in _TABLE.items()
}
for _name in ("gqa-448", "science-qa"):  # transferred with the vision tower frozen
    RECIPES[_name]["train_part"] = "decoder"


def picture_side(name: str) -> int | None:
    """The side of the pictures that a recipe is for, where it is for one only."""
    side = name.rpartition("-")[2]
    return int(side) if side.isdigit() else None
