"""PaliGemma in clear glass: run it, train it, and see through it.

import paliglass
m = paliglass.load("mini")
m.caption("picture.png")
m.detect("picture.png", ["dog", "apple"])
"""

from paliglass.checkpoints import load_big_vision, load_hf_model
from paliglass.config import PRESETS, GemmaConfig, PaliGemmaConfig, SigLipConfig
from paliglass.errors import PaliglassError
from paliglass.model import PaliGemma, load
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.processing_paligemma import PaliGemmaProcessor
from paliglass.tasks.boxes import Box
from paliglass.tasks.results import Detection

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "Box",
    "Detection",
    "GemmaConfig",
    "PaliGemma",
    "PaliGemmaConfig",
    "PaliGemmaForConditionalGeneration",
    "PaliGemmaProcessor",
    "PaliglassError",
    "SigLipConfig",
    "__version__",
    "load",
    "load_big_vision",
    "load_hf_model",
]
