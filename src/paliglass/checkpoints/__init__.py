"""Checkpoints in and out: transformers folders, hub repositories, big_vision .npz files."""

from paliglass.checkpoints.big_vision import load_big_vision
from paliglass.checkpoints.folder import load_hf_model
from paliglass.checkpoints.saving import save_folder

__all__ = ["load_big_vision", "load_hf_model", "save_folder"]
