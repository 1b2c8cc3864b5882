"""The settings of a pre-training run, and the shape of mini."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from paliglass.config import GemmaConfig, PaliGemmaConfig, SigLipConfig
from paliglass.errors import PaliglassError
from paliglass.training.recipes import TimedRecipe

TASKS = ("caption", "answer", "detect", "segment", "ocr")
MINI = PaliGemmaConfig(
    SigLipConfig(
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=192,
        patch_size=16,
    ),
    GemmaConfig(
        vocab_size=3201,
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=48,
        max_position_embeddings=512,
    ),
    image_token_index=3200,
)


@dataclass(frozen=True)
class PretrainRecipe(TimedRecipe):
    """It ends at `steps` or after `minutes`, whichever is first reached.

    Raises PaliglassError where `more` names no task with a weight.
    """

    scenes: int = field(default=32, metadata={"min": 1, "help": "In a step, over all processes."})
    prompts: int = field(
        default=8,
        metadata={
            "min": 2,
            "help": "About each scene, packed in a row; half as many in rows of their own.",
        },
    )
    image_size: int | None = field(
        default=None,
        metadata={
            "min": 1,
            "metavar": "PIXELS",
            "help": "Along a side; positions of --weights are interpolated. [mini's]",
        },
    )
    repeats: int = field(
        default=1,
        metadata={"min": 1, "help": "How often a scene is learned from, if making one is slower."},
    )
    more: list[str] = field(
        default_factory=list,
        metadata={
            "metavar": "TASK=WEIGHT",
            "help": "Ask a task so much more often: segment=1.5; repeatable.",
        },
    )
    vision_warmup: float = field(
        default=0.15,
        metadata={
            "min": 0,
            "max": 1,
            "help": "Share of the run, at its start, for the vision tower alone.",
        },
    )
    unpacked_share: float = field(
        default=0.2,
        metadata={
            "min": 0,
            "max": 1,
            "help": "Share of the run, at its end, with each prompt in a row of its own.",
        },
    )
    rate: float = field(default=1.0, metadata={"min": 0, "help": "Times both learning rates."})
    muon_rate: float = field(default=5e-3, metadata={"min": 0, "help": "Of hidden matrices."})
    adamw_rate: float = field(default=2e-3, metadata={"min": 0, "help": "Of the rest."})
    weight_decay: float = field(default=0.05, metadata={"min": 0, "help": "Of hidden matrices."})
    warm_up_steps: int = field(
        default=100, metadata={"min": 1, "help": "Steps until the highest rates."}
    )
    decay: float = field(
        default=0.5,
        metadata={"min": 0.001, "max": 1, "help": "Share of the run in which rates fall to 0."},
    )
    patch_weight: float = field(
        default=0.5, metadata={"min": 0, "help": "Of the loss on what each patch shows."}
    )

    def __post_init__(self) -> None:
        _ = self.mixture

    @property
    def mixture(self) -> dict[str, float]:
        """How much more often than usual each task is asked."""
        return dict(_weight(text) for text in self.more)


def _weight(text: str) -> tuple[str, float]:
    """A task and its weight, of "segment=1.5"."""
    task, _, number = text.partition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = 0.0
    if task not in TASKS or not 0 < weight < math.inf:
        raise PaliglassError(
            f"--more {text}: write TASK=WEIGHT, a task of {', '.join(TASKS)} and a weight above 0"
        )
    return task, weight
