"""The lab computed by torch, for a checkpoint of any size."""

from __future__ import annotations

from paliglass.lab.torch_engine.engine import METHODS, TorchLab

__all__ = ["METHODS", "TorchLab"]
