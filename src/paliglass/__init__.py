"""PaliGemma in clear glass: run it, train it, and see through it.

import paliglass
m = paliglass.load("mini")
m.caption("picture.png")
m.detect("picture.png", ["dog", "apple"])
m.segment("picture.png", "dog")
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from paliglass.config import PRESETS, GemmaConfig, PaliGemmaConfig, SigLipConfig
from paliglass.errors import PaliglassError
from paliglass.tasks.boxes import Box
from paliglass.tasks.results import Answer, Detection, Found, Segment

if TYPE_CHECKING:
    from paliglass.checkpoints import load_big_vision, load_hf_model
    from paliglass.inspect.tracing import trace
    from paliglass.model import PaliGemma, load
    from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
    from paliglass.processing_paligemma import PaliGemmaProcessor
    from paliglass.tasks.answering import parse_answer

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "Answer",
    "Box",
    "Detection",
    "Found",
    "GemmaConfig",
    "PaliGemma",
    "PaliGemmaConfig",
    "PaliGemmaForConditionalGeneration",
    "PaliGemmaProcessor",
    "PaliglassError",
    "Segment",
    "SigLipConfig",
    "__version__",
    "load",
    "load_big_vision",
    "load_hf_model",
    "parse_answer",
    "trace",
]

# GNU's OpenMP, torch's on Linux, lets a thread that waits for another spin 300 000 times, or seven
# milliseconds, on a core that the other may need: on a busy machine it does so at each of a
# prompt's many parallel loops. It reads this when torch is imported. 2000 times are 50 µs. OpenMP's
# own setting says the same in general, and would be overruled.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

# What needs torch is imported on first use: `paliglass --help` should not wait two seconds for it.
_NEEDS_TORCH = {
    "PaliGemma": "paliglass.model",
    "PaliGemmaForConditionalGeneration": "paliglass.modeling_paligemma",
    "PaliGemmaProcessor": "paliglass.processing_paligemma",
    "load": "paliglass.model",
    "load_big_vision": "paliglass.checkpoints",
    "load_hf_model": "paliglass.checkpoints",
    "parse_answer": "paliglass.tasks.answering",
    "trace": "paliglass.inspect.tracing",
}


def __getattr__(name: str) -> Any:
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_NEEDS_TORCH[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
