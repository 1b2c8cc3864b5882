"""The settings that PaliGemma was transferred with (arXiv 2407.07726, appendix J; big_vision's
configs/proj/paligemma/transfers, the best of each sweep).

All of them: Adam, 256 rows a step, cosine schedule with 5 % warm-up, gradients clipped to length 1,
every weight trained. A number behind the name is the picture's side. They are for thousands of
pictures; with a few hundred, a smaller batch gives the same epochs enough steps.
"""

from __future__ import annotations

from typing import Any

_COMMON = {"batch_size": 256, "warm_up": 0.05}

RECIPES: dict[str, dict[str, Any]] = {
    name: _COMMON | dict(zip(("learning_rate", "weight_decay", "epochs"), numbers, strict=True))
    for name, numbers in {
        "ai2d": (1e-5, 1e-6, 10),
        "cococap": (1e-5, 1e-6, 5),
        "docvqa": (1e-5, 1e-6, 10),
        "refcoco-224": (3e-5, 0.0, 100),
        "refcoco-448": (1e-5, 0.0, 100),
        "textcaps": (1e-5, 1e-6, 5),
        "textvqa-224": (3e-6, 0.0, 5),
        "textvqa-448": (3e-6, 3e-7, 10),
        "vqav2-224": (1e-5, 1e-6, 10),
        "vqav2-448": (1e-5, 0.0, 10),
    }.items()
}
# Boxes and masks have no single right token. (At 224 also dropout of 0.1 in the decoder, which is
# not offered here.)
for _name in ("refcoco-224", "refcoco-448"):
    RECIPES[_name]["label_smoothing"] = 0.3
